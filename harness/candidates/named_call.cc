#include "harness/candidates/named_call.h"

#include <fmt/format.h>

#include <algorithm>

namespace assay {
namespace {

struct CDtype {
  Dtype ours;
  std::uint8_t code, bits;
};
constexpr CDtype dtypes[] = {
    {Dtype::f64, ASSAY_FLOAT, 64},           {Dtype::f32, ASSAY_FLOAT, 32},
    {Dtype::f16, ASSAY_FLOAT, 16},           {Dtype::bf16, ASSAY_BFLOAT, 16},
    {Dtype::f8e4m3, ASSAY_FLOAT8_E4M3FN, 8}, {Dtype::f8e5m2, ASSAY_FLOAT8_E5M2, 8},
    {Dtype::e8m0, ASSAY_FLOAT8_E8M0FNU, 8},
};

// Describes contiguous storage of rank 1 or 2 (`inner` is 1).
assay_tensor c_list(const void* data, std::uint8_t code, std::uint8_t bits, ListExtent extent) {
  assay_tensor t;
  assay_tensor_init(&t, const_cast<void*>(data), code, bits, extent.outer, extent.inner, 1, 1);
  t.rank = extent.inner == 1 ? 1 : 2;
  t.strides[0] = extent.inner;
  t.strides[1] = 1;
  return t;
}

template <class T>
constexpr std::uint8_t code_of = std::is_same_v<T, float> ? ASSAY_FLOAT : ASSAY_INT;

// Lists tensors under their names, and leaves out those that are absent.
class Named {
 public:
  void add(const char* name, const TensorView& t, int rank = 4) {
    // A tensor without elements has no storage.
    if (t || element_count(t.shape) == 0) to.push_back({name, c_tensor(t, rank)});
  }
  void add_if(const char* name, const TensorView& t, int rank = 4) {
    if (t) add(name, t, rank);
  }
  void add_masks(const Attention& p) {
    const AttentionShape& s = p.shape;
    const Extents pairs{s.batch, s.query_heads, s.rows, s.keys};
    if (p.bias) {
      TensorView bias = p.bias;  // for a chunk of rows it may still have the shape of all rows
      bias.shape = pairs;
      add("bias", bias);
    }
    if (p.keep) {
      assay_tensor keep = c_tensor(
          {const_cast<std::uint8_t*>(p.keep.data), Dtype::f8e5m2, pairs, p.keep.stride, 0});
      keep.dtype = {ASSAY_BOOL, 8, 1};
      to.push_back({"keep", keep});
    }
    for_each_list([&](const auto& field) {
      const auto& list = p.*field.list;
      using T = typename std::remove_cvref_t<decltype(list)>::value_type;
      if (!list.empty())
        to.push_back({std::string(field.recorded),
                      c_list(list.data(), code_of<T>, 8 * sizeof(T), extent_of(field.along, s))});
    });
  }
  void add_low_bit(const std::string& name, const LowBitView& m) {
    const LowBitSizes sizes = sizes_of(m.format, m.k, m.n, m.group);
    const auto bytes = [&](const char* part, const std::byte* from, Index count) {
      if (count > 0) to.push_back({name + part, c_list(from, ASSAY_UINT, 8, {count, 1})});
    };
    bytes(".codes", m.codes, sizes.codes);
    bytes(".scales", m.scales, sizes.scales);
    bytes(".extra", m.extra, sizes.extra);
  }
  std::vector<NamedTensor> to;
};

// A view of O or LSE with the extents of the problem's rows.
TensorView shaped(TensorView t, Index columns, const Attention& p) {
  t.shape = {p.shape.batch, p.shape.query_heads, p.shape.rows, columns};
  return t;
}

// A tensor of one number for each row, if it is there.
void add_rows(Named& named, const char* name, const TensorView& t, const Attention& p) {
  if (!t) return;
  assay_tensor rows = c_tensor(shaped(t, 1, p));
  rows.rank = 3;
  named.to.push_back({name, rows});
}

void add_outputs(Named& named, const AttentionOutput& out, const Attention& p) {
  named.add("o", shaped(out.o, p.shape.value_dim, p));
  add_rows(named, "lse", out.lse, p);
}

NamedCall named(const ForwardCall& c) {
  NamedCall call{"attention", record_line(c.problem, Operation::attention), {}, {}, {}, {}};
  Named in, out;
  in.add("q", c.problem.q);
  in.add("k", c.problem.k);
  in.add("v", c.problem.v);
  in.add_masks(c.problem);
  add_outputs(out, c.out, c.problem);
  call.inputs = std::move(in.to);
  call.outputs = std::move(out.to);
  return call;
}

NamedCall named(const BackwardCall& c) {
  NamedCall call{"backward", record_line(c.problem, Operation::backward), {}, {}, {}, {}};
  Named in, out;
  in.add("q", c.problem.q);
  in.add("k", c.problem.k);
  in.add("v", c.problem.v);
  in.add_masks(c.problem);
  add_outputs(in, {c.in.o, c.in.lse}, c.problem);
  in.add("do", shaped(c.in.d_o, c.problem.shape.value_dim, c.problem));
  add_rows(in, "dlse", c.in.d_lse, c.problem);
  out.add("dq", c.out.dq);
  out.add("dk", c.out.dk);
  out.add("dv", c.out.dv);
  out.add_if("d_bias", c.out.d_bias);
  if (c.out.d_sink) {
    assay_tensor d_sink = c_tensor(c.out.d_sink);
    d_sink.rank = 1;
    d_sink.shape[0] = d_sink.shape[1];
    d_sink.strides[0] = d_sink.strides[1];
    out.to.push_back({"d_sink", d_sink});
  }
  call.inputs = std::move(in.to);
  call.outputs = std::move(out.to);
  return call;
}

NamedCall named(const CachedCall& c, Chunk rows) {
  auto problem = std::make_shared<const Attention>(paged_problem(c.c, c.inputs.problem, rows));
  const Attention& p = *problem;
  auto pages = std::make_shared<PagedTokens>(paged_tokens(c.c, c.inputs, p));
  if (c.pages == PagesFrom::sharing) share_pages(*pages);
  NamedCall call{"decode", record_line(p, Operation::attention), {}, {}, {}, {}};
  Named in, out;
  in.add("q", p.q);
  in.add("k_pages", pages->k.elements);
  in.add("v_pages", pages->v.elements);
  in.to.push_back(
      {"block_table", c_list(pages->table.data(), ASSAY_INT, 32, {c.c.shape.batch, pages->each})});
  in.to.back().tensor.rank = 2;
  in.add_masks(p);
  add_outputs(out, rows_of(c.out, rows), p);
  call.inputs = std::move(in.to);
  call.outputs = std::move(out.to);
  call.pages = std::move(pages);
  call.problem = std::move(problem);
  return call;
}

NamedCall named(const ProductCall& c) {
  NamedCall call{"product", record_line(c.problem), {}, {}, {}, {}};
  Named in, out;
  if (c.problem.a) in.add("a", c.problem.a, 2);
  else in.add_low_bit("a", c.problem.a_low);
  in.add_low_bit("w", c.problem.w);
  out.add("c", c.c, 2);
  call.inputs = std::move(in.to);
  call.outputs = std::move(out.to);
  return call;
}

std::string format_text(const LowBitView& m) {
  return fmt::format("{}{}", traits(m.format).name,
                     traits(m.format).group_free ? fmt::format(":{}", m.group) : "");
}

}  // namespace

assay_tensor c_tensor(const TensorView& t, int rank) {
  const auto dtype = std::ranges::find(dtypes, t.dtype, &CDtype::ours);
  assay_tensor c;
  assay_tensor_init(&c, t.data, dtype->code, dtype->bits, 1, 1, 1, 1);
  c.rank = rank;
  c.offset = t.origin;
  for (int axis = 0; axis < 4; ++axis) {
    c.shape[axis] = axis < rank ? t.shape[usize(axis + 4 - rank)] : 1;
    c.strides[axis] = axis < rank ? t.stride[usize(axis + 4 - rank)] : 0;
  }
  return c;
}

std::optional<Dtype> dtype_of(const assay_dtype& dtype) {
  for (const CDtype& d : dtypes)
    if (d.code == dtype.code && d.bits == dtype.bits && dtype.lanes == 1) return d.ours;
  return std::nullopt;
}

std::vector<NamedCall> named_calls(const Call& call) {
  return std::visit(ByCall{[](const CachedCall& c) {
                             std::vector<NamedCall> calls;
                             for (const Chunk& rows : chunks_of(c.c))
                               calls.push_back(named(c, rows));
                             return calls;
                           },
                           [](const QuantizeCall&) { return std::vector<NamedCall>(); },
                           [](const DequantizeCall&) { return std::vector<NamedCall>(); },
                           [](const AppendCall&) { return std::vector<NamedCall>(); },
                           [](const auto& c) { return std::vector<NamedCall>{named(c)}; }},
                    call);
}

std::string record_line(const Attention& p, Operation operation) {
  std::string line(name_of(operation));
  const auto say = [&](const std::string& text) { line += " " + text; };
  if (p.scale != default_scale(p.shape.dim)) say(fmt::format("scale={}", p.scale));
  if (p.softcap > 0) say(fmt::format("softcap={}", p.softcap));
  if (p.causal) say("causal");
  if (p.finite_min_masks) say("finite-min-masks");
  if (p.window_left >= 0 || p.window_right >= 0)
    say(fmt::format("window={},{}", p.window_left, p.window_right));
  if (p.dropout > 0) say(fmt::format("dropout={}:{}", p.dropout, p.dropout_seed));
  return line;
}

std::string record_line(const Product& p) {
  std::string line = fmt::format("product m={} n={} k={} w={}", p.m, p.n, p.k, format_text(p.w));
  if (p.w.tensor_scale != 1) line += fmt::format(" tensor-scale={}", p.w.tensor_scale);
  if (p.a) return line;
  line += " a=" + format_text(p.a_low);
  if (p.a_low.tensor_scale != 1) line += fmt::format(" a-tensor-scale={}", p.a_low.tensor_scale);
  return line;
}

}  // namespace assay
