#include "harness/records/record.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <ranges>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include "harness/text.h"
#include "kernels/validate.h"
#include "oracle/product.h"
#include "problem/cached_tokens.h"
#include "problem/generate.h"
#include "problem/read_number.h"

namespace assay {
namespace {

constexpr const char* record_key = "record";

// Names that other programs give to tensors, and the names that records have for them.
constexpr std::pair<std::string_view, std::string_view> usual_names[] = {
    {"query", "q"},
    {"key", "k"},
    {"value", "v"},
    {"out", "o"},
    {"output", "o"},
    {"attn_output", "o"},
    {"logsumexp", "lse"},
    {"softmax_lse", "lse"},
    {"dout", "do"},
    {"d_o", "do"},
    {"grad_out", "do"},
    {"grad_output", "do"},
    {"d_lse", "dlse"},
    {"grad_lse", "dlse"},
    {"dsoftmax_lse", "dlse"},
    {"grad_q", "dq"},
    {"grad_k", "dk"},
    {"grad_v", "dv"},
    {"dbias", "d_bias"},
    {"dsink", "d_sink"},
    {"mask", "keep, or bias"},
    {"attn_mask", "keep, or bias"}};

// The name of a record for what other programs call `name`, or nothing.
std::string_view meant_by(std::string_view name) {
  const auto found =
      std::ranges::find(usual_names, name, [](const auto& usual) { return usual.first; });
  return found == std::end(usual_names) ? std::string_view() : found->second;
}

// Finds the tensors of a record by their names, and throws errors that name the record.
class Reader {
 public:
  Reader(const std::string& path, const Safetensors& contents, Record& into)
      : contents_(contents),
        record_(into),
        where_(into.name.empty() ? path : fmt::format("{}, record {}", path, into.name)) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw FileError(fmt::format("{}: {}", where_, shown(what)));
  }

  const StoredTensor* find(const std::string& name) {
    const std::string full = record_.name.empty() ? name : record_.name + "." + name;
    const auto at = contents_.tensors.find(full);
    if (at == contents_.tensors.end()) return nullptr;
    used_.insert(full);
    return &at->second;
  }
  const StoredTensor& need(const std::string& name, const char* why) {
    const StoredTensor* t = find(name);
    if (t) return *t;
    for (const auto& [other, stored] : own_tensors())
      if (meant_by(own_name(other)) == name)
        fail(fmt::format("tensor {} is missing; did you mean {} by {}?", name, name, other));
    fail(fmt::format("tensor {} is missing; {}", name, why));
  }

  // Gives a float tensor as a view.
  TensorView floats(const std::string& name, const StoredTensor& t, std::vector<Index> shape) {
    constexpr std::pair<const char*, Dtype> dtypes[] = {
        {"F32", Dtype::f32}, {"F16", Dtype::f16}, {"BF16", Dtype::bf16}};
    for (const auto& [stored, dtype] : dtypes)
      if (t.dtype == stored) return view(t, dtype, std::move(shape));
    fail(fmt::format("tensor {} is {}; F32, F16 and BF16 can be judged", name, t.dtype));
  }

  // Reads exactly `count` integers of either width.
  template <class T>
  std::vector<T> integers(const std::string& name, const StoredTensor& t, Index count, Index low,
                          Index high) {
    if (t.dtype != "I32" && t.dtype != "I64")
      fail(fmt::format("tensor {} is {}, not I32 or I64", name, t.dtype));
    check_count(name, t, count);
    std::vector<T> list;
    for (std::size_t at = 0, width = t.dtype == "I32" ? 4 : 8; at < t.bytes.size(); at += width) {
      std::int64_t value = 0;
      std::int32_t narrow = 0;
      if (width == 4) std::memcpy(&narrow, t.bytes.data() + at, 4), value = narrow;
      else std::memcpy(&value, t.bytes.data() + at, 8);
      if (value < low || value > high)
        fail(fmt::format("tensor {} holds {}, outside [{}, {}]", name, value, low, high));
      list.push_back(static_cast<T>(value));
    }
    return list;
  }
  std::vector<float> numbers(const std::string& name, const StoredTensor& t, Index count) {
    if (t.dtype != "F32") fail(fmt::format("tensor {} is {}, not F32", name, t.dtype));
    check_count(name, t, count);
    std::vector<float> list(t.bytes.size() / 4);
    if (!list.empty()) std::memcpy(list.data(), t.bytes.data(), t.bytes.size());
    return list;
  }

  // Refuses a tensor of this record that nothing asked for. If its name is misspelt, a mask would
  // be ignored.
  void check_all_used() const {
    for (const auto& [name, t] : own_tensors()) {
      if (used_.contains(name)) continue;
      const std::string_view meant = meant_by(own_name(name));
      fail(fmt::format("tensor {} belongs to nothing that the record's line asks for{}", name,
                       meant.empty() ? "" : fmt::format("; did you mean {}?", meant)));
    }
  }

 private:
  using Tensors = decltype(Safetensors::tensors);
  // The names are sorted, so a file of many records is not searched for each of them.
  std::ranges::subrange<Tensors::const_iterator> own_tensors() const {
    const std::string prefix = record_.name.empty() ? "" : record_.name + ".";
    const auto first = contents_.tensors.lower_bound(prefix);
    const auto last = std::find_if(first, contents_.tensors.end(), [&](const auto& named) {
      return !named.first.starts_with(prefix);
    });
    return {first, last};
  }
  // The name without that of the record.
  std::string_view own_name(std::string_view name) const {
    return record_.name.empty() ? name : name.substr(record_.name.size() + 1);
  }
  TensorView view(const StoredTensor& t, Dtype dtype, std::vector<Index> shape) {
    TensorView v;
    v.dtype = dtype;
    const int bytes = format(dtype).bits / 8;
    Index step = 1;
    for (std::size_t axis = 4; axis-- > 0;) {
      v.shape[axis] = shape[axis];
      v.stride[axis] = step;
      step *= shape[axis];
    }
    if (t.bytes.empty()) return v;
    if (reinterpret_cast<std::uintptr_t>(t.bytes.data()) % static_cast<std::uintptr_t>(bytes) ==
        0) {
      v.data = const_cast<std::byte*>(t.bytes.data());  // judging does not write to the tensors
      return v;
    }
    Tensor copy(dtype, v.shape, {v.stride, 0, element_count(v.shape)});
    std::memcpy(copy.bytes(), t.bytes.data(), t.bytes.size());
    record_.owned.push_back(std::move(copy));
    return record_.owned.back().view();
  }
  void check_count(const std::string& name, const StoredTensor& t, Index count) const {
    Index elements = 1;
    for (Index n : t.shape) elements *= n;
    if (elements != count)
      fail(fmt::format("tensor {} has {} elements, not {}", name, elements, count));
  }

  const Safetensors& contents_;
  Record& record_;
  const std::string where_;
  std::set<std::string> used_;
};

std::string shape_text(const std::vector<Index>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// The line of a record: an operation, then flags and fields.
class RecordLine {
 public:
  RecordLine(const Reader& reader, const std::string& line) : reader_(reader) {
    std::istringstream words(line);
    words >> operation;
    for (std::string word; words >> word;) {
      const auto equals = word.find('=');
      const std::string field = word.substr(0, equals);
      if (!fields_.emplace(field, equals == std::string::npos ? "" : word.substr(equals + 1))
               .second)
        reader_.fail(fmt::format("its line says {} twice", field));
    }
  }

  bool flag(const std::string& name) {
    const std::optional<std::string> value = text(name);
    if (value && !value->empty())
      reader_.fail(fmt::format("{}={}: a flag has no value", name, *value));
    return value.has_value();
  }
  std::optional<std::string> text(const std::string& name) {
    const auto at = fields_.find(name);
    if (at == fields_.end()) return std::nullopt;
    std::string value = at->second;
    fields_.erase(at);
    return value;
  }
  template <class T>
  T number(const std::string& field, const std::string& value) const {
    T x{};
    const auto [end, error] = read_number(value.data(), value.data() + value.size(), x);
    if (error != std::errc() || end != value.data() + value.size())
      reader_.fail(fmt::format("{}={}: not a number that fits", field, value));
    return x;
  }
  void check_all_used() const {
    if (!fields_.empty())
      reader_.fail(fmt::format("its line says {}, which {} does not have", fields_.begin()->first,
                               operation));
  }

  std::string operation;

 private:
  const Reader& reader_;
  std::map<std::string, std::string> fields_;
};

// A view with the extents in the order batch, heads, positions, columns, and with the strides of
// the file.
TensorView rank_four(Reader& reader, const std::string& name, const StoredTensor& t,
                     bool positions_first) {
  std::vector<Index> shape = t.shape;
  if (shape.size() == 3) shape.insert(shape.begin(), 1);
  if (shape.size() != 4)
    reader.fail(fmt::format("tensor {} has shape {}; 4 extents are wanted, or 3 of one batch", name,
                            shape_text(t.shape)));
  TensorView v = reader.floats(name, t, shape);
  if (positions_first) std::swap(v.shape[1], v.shape[2]), std::swap(v.stride[1], v.stride[2]);
  return v;
}

void check_shape(const Reader& reader, const std::string& name, const TensorView& t,
                 const Extents& wanted) {
  if (t.shape != wanted)
    reader.fail(fmt::format(
        "tensor {} is [{}] as batch, heads, positions, columns; q, k and v ask for [{}]", name,
        fmt::join(t.shape, ", "), fmt::join(wanted, ", ")));
}

// Strides over [B, Hq, Lq, Lk] of a tensor that has these extents or 1, and may lack the leading
// ones.
Extents broadcast(const Reader& reader, const std::string& name, const std::vector<Index>& stored,
                  const Extents& wanted) {
  Extents stride{};
  Index step = 1;
  if (stored.size() > 4)
    reader.fail(
        fmt::format("tensor {} has shape {}, more than 4 extents", name, shape_text(stored)));
  for (std::size_t k = 0; k < stored.size(); ++k) {
    const Index n = stored[stored.size() - 1 - k];
    const std::size_t axis = 3 - k;
    if (n != 1 && n != wanted[axis])
      reader.fail(fmt::format("tensor {} has shape {}, which does not broadcast to [{}]", name,
                              shape_text(stored), fmt::join(wanted, ", ")));
    stride[axis] = n == 1 ? 0 : step;
    step *= n;
  }
  return stride;
}

TensorView broadcast_floats(Reader& reader, const std::string& name, const StoredTensor& t,
                            const Extents& wanted) {
  const Extents stride = broadcast(reader, name, t.shape, wanted);
  std::vector<Index> padded(4 - t.shape.size(), 1);
  padded.insert(padded.end(), t.shape.begin(), t.shape.end());
  TensorView v = reader.floats(name, t, padded);
  v.shape = wanted;
  v.stride = stride;
  return v;
}

// Reads a list of numbers. Integers must lie in the range of what they count.
template <class T>
void read_list(Reader& reader, const ListField<T>& field, const StoredTensor& t, Attention& p) {
  const std::string name(field.recorded);
  const auto [outer, inner] = extent_of(field.along, p.shape);
  if constexpr (std::is_same_v<T, float>) {
    p.*field.list = reader.numbers(name, t, outer * inner);
  } else {
    Index low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    if (field.along == Along::batches) {
      const bool is_offset = field.name == "offset";
      low = is_offset ? -largest_extent : 0;
      high = is_offset ? largest_extent : p.shape.keys;
    }
    p.*field.list = reader.integers<T>(name, t, outer * inner, low, high);
  }
}

void read_masks(Reader& reader, RecordLine& line, Record& r) {
  Attention& p = r.problem;
  const AttentionShape& s = p.shape;
  const Extents pairs = s.pair_extents();
  if (const auto scale = line.text("scale")) p.scale = line.number<float>("scale", *scale);
  else p.scale = default_scale(s.dim);
  if (const auto cap = line.text("softcap")) p.softcap = line.number<float>("softcap", *cap);
  for (const FlagField& field : attention_flags)
    p.*field.flag = line.flag(std::string(field.recorded));
  if (const auto window = line.text("window")) {
    const auto comma = window->find(',');
    if (comma == std::string::npos)
      reader.fail(fmt::format("window={}: two numbers are wanted, left,right", *window));
    p.window_left = line.number<Index>("window", window->substr(0, comma));
    p.window_right = line.number<Index>("window", window->substr(comma + 1));
    for (const Index side : {p.window_left, p.window_right})
      if (side < -1 || side > largest_extent)
        reader.fail(fmt::format("window={}: outside [-1, 2^40]", *window));
  }
  if (const auto offset = line.text("offset"))
    p.offset.assign(usize(s.batch),
                    *offset == "end" ? s.keys - s.rows : line.number<Index>("offset", *offset));
  if (const auto dropout = line.text("dropout")) {
    const auto colon = dropout->find(':');
    if (colon == std::string::npos)
      reader.fail(fmt::format("dropout={}: probability:seed is wanted", *dropout));
    p.dropout = line.number<float>("dropout", dropout->substr(0, colon));
    p.dropout_seed = line.number<std::uint64_t>("dropout", dropout->substr(colon + 1));
  }
  if (const StoredTensor* t = reader.find("keep")) {
    if (t->dtype != "BOOL" && t->dtype != "U8")
      reader.fail(fmt::format("tensor keep is {}, not BOOL or U8", t->dtype));
    p.keep = {reinterpret_cast<const std::uint8_t*>(t->bytes.data()),
              broadcast(reader, "keep", t->shape, pairs)};
  }
  if (const StoredTensor* t = reader.find("bias"))
    p.bias = broadcast_floats(reader, "bias", *t, pairs);
  if (reader.find("offset") && !p.offset.empty())
    reader.fail("there is a tensor offset, and the line says offset as well");
  for_each_list([&](const auto& field) {
    if (const StoredTensor* t = reader.find(std::string(field.recorded)))
      read_list(reader, field, *t, p);
  });
}

// Reads a number for each row, F32: [B, Hq, Lq], or with a last extent of 1.
TensorView read_rows(Reader& reader, const char* name, const AttentionShape& s,
                     const StoredTensor& t) {
  std::vector<Index> shape = t.shape;
  if (shape.size() < 4) shape.push_back(1);
  if (shape.size() == 3) shape.insert(shape.begin(), 1);
  if (!std::ranges::equal(shape, s.lse_extents()))
    reader.fail(fmt::format(
        "tensor {} has shape {}, not [{}, {}, {}]: batch, query heads, rows, whatever the layout",
        name, shape_text(t.shape), s.batch, s.query_heads, s.rows));
  TensorView v = reader.floats(name, t, shape);
  if (v.dtype != Dtype::f32) reader.fail(fmt::format("tensor {} is {}, not F32", name, t.dtype));
  return v;
}

// Reads LSE. An LSE in base 2 is converted to natural units in double, whose rounding is
// negligible.
TensorView read_lse(Reader& reader, RecordLine& line, Record& r, const StoredTensor& t) {
  const TensorView v = read_rows(reader, "lse", r.problem.shape, t);
  const std::string unit = line.text("lse").value_or("natural");
  if (unit == "natural") return v;
  if (unit != "base2") reader.fail(fmt::format("lse={}: natural or base2", unit));
  Tensor natural(Dtype::f64, v.shape, {v.stride, 0, element_count(v.shape)});
  for (Index e = 0; e < element_count(v.shape); ++e)
    store(natural.view(), e, load(v, e) * 0x1.62e42fefa39efp-1);
  r.owned.push_back(std::move(natural));
  return r.owned.back().view();
}

void read_conventions(Reader& reader, RecordLine& line, Record& r) {
  const auto text = line.text("convention");
  if (!text) return;
  try {
    r.conventions = Conventions::parse(*text);
  } catch (const ConventionError& e) {
    reader.fail(fmt::format("convention={}: {}", *text, e.what()));
  }
}

// Reads scales that are given, [B, Hkv, Lk, 1] or what broadcasts to that.
Tensor given_scales(Reader& reader, const char* name, const TensorView& tokens) {
  const StoredTensor& t = reader.need(name, "the scales of pages and tensors are given");
  Extents shape = tokens.shape;
  shape[3] = 1;
  const TensorView given = broadcast_floats(reader, name, t, shape);
  Tensor scales(Dtype::f64, shape, make_layout(LayoutKind::bhsd, shape, 1));
  for_each_index(shape, [&](Index b, Index h, Index j, Index d) {
    const double scale = load(given, given.at(b, h, j, d));
    if (!(scale > 0 && std::isfinite(scale)))
      reader.fail(fmt::format("tensor {} holds {}; a scale is finite and above 0", name, scale));
    store(scales.view(), scales.view().at(b, h, j, d), scale);
  });
  return scales;
}

// k and v are the tokens as they were appended, if the line says how the cache stores them. The
// kernel read what the rule of caches makes of them.
void read_store(Reader& reader, RecordLine& line, Record& r) {
  const auto text = line.text("store");
  if (!text) return;
  ProjectedAttention& p = r.problem;
  Case c;
  c.shape = p.shape;
  c.shape.rows = std::min(c.shape.rows, c.shape.keys);
  c.offset.kind = OffsetSpec::Kind::end;
  c.dtype = p.q.dtype;
  try {
    set_fields(c, "cache=contiguous store=" + *text);
    check_case(c);
  } catch (const CaseError& e) {
    reader.fail(e.what());
  }
  const auto keep = [&](Tensor t) {
    r.owned.push_back(std::move(t));
    return r.owned.back().view();
  };
  const bool given = is_given(c.cache.scale), is_product = c.cache.scale != CacheScale::e8m0;
  const auto stored = [&](TensorView& tokens, const char* name, TensorView& scales,
                          TensorView& magnitudes) {
    Tensor of = given ? given_scales(reader, name, tokens)
                      : scales_of_tokens(c, tokens, Surroundings::bands);
    if (of.view()) scales = keep(std::move(of));
    try {
      tokens = keep(values_of_tokens(c, tokens, scales, Surroundings::bands));
    } catch (const std::domain_error& e) {
      reader.fail(fmt::format("store={}: {}", *text, e.what()));
    }
    if (is_product) magnitudes = keep(magnitudes_of(tokens));
  };
  stored(p.k, "k_scales", r.k_scales, p.projection.k_absolute);
  stored(p.v, "v_scales", r.v_scales, p.projection.v_absolute);
  p.projection.length = is_product ? 1 : 0;
  r.scale_group = c.cache.group;
}

// Reads tensors of batch, heads, positions and columns, in the order that the line of the record
// says.
struct FourAxes {
  Reader& reader;
  bool positions_first = false;
  TensorView need(const char* name, const char* why) const {
    return rank_four(reader, name, reader.need(name, why), positions_first);
  }
};

FourAxes read_layout(Reader& reader, RecordLine& line) {
  const std::string layout = line.text("layout").value_or("bhsd");
  if (layout != "bhsd" && layout != "bshd")
    reader.fail(fmt::format("layout={}: bhsd or bshd", layout));
  return {reader, layout == "bshd"};
}

// Reads what attention and its gradients have in common: the problem, O and LSE.
void read_forward(Reader& reader, RecordLine& line, const FourAxes& tensors, Record& r) {
  const char* always = "q, k, v and o always are needed";
  Attention& p = r.problem;
  p.q = tensors.need("q", always);
  p.k = tensors.need("k", always);
  p.v = tensors.need("v", always);
  AttentionShape& s = p.shape;
  s = {p.q.shape[0], p.q.shape[1], p.k.shape[1], p.q.shape[2],
       p.k.shape[2], p.q.shape[3], p.v.shape[3]};
  if (element_count(p.q.shape) == 0) reader.fail("q has no element: there is nothing to judge");
  if (s.kv_heads < 1 || s.query_heads % s.kv_heads != 0)
    reader.fail(fmt::format("q has {} heads, k {}: no multiple", s.query_heads, s.kv_heads));
  check_shape(reader, "k", p.k, s.k_extents());
  check_shape(reader, "v", p.v, s.v_extents());
  read_masks(reader, line, r);
  r.out.o = tensors.need(
      "o", "the record holds inputs only: run them, and add what your kernel answered");
  check_shape(reader, "o", r.out.o, s.o_extents());
  if (const StoredTensor* t = reader.find("lse")) r.out.lse = read_lse(reader, line, r, *t);
  if (const kernels::Status status = kernels::validate_attention(p, {r.out.o, {}}); !status.ok())
    reader.fail(status.detail);
}

void read_attention(Reader& reader, RecordLine& line, Record& r) {
  read_conventions(reader, line, r);
  read_forward(reader, line, read_layout(reader, line), r);
  read_store(reader, line, r);
}

void read_backward(Reader& reader, RecordLine& line, Record& r) {
  read_conventions(reader, line, r);
  const FourAxes tensors = read_layout(reader, line);
  read_forward(reader, line, tensors, r);
  const Attention& p = r.problem;
  const AttentionShape& s = p.shape;
  if (r.out.lse && r.out.lse.dtype != Dtype::f32)
    reader.fail("lse=base2: gradients are judged with a natural LSE in F32");
  r.d_o = tensors.need("do", "gradients are those of <dO, O>");
  check_shape(reader, "do", r.d_o, s.o_extents());
  if (const StoredTensor* t = reader.find("dlse")) r.d_lse = read_rows(reader, "dlse", s, *t);
  const char* all = "the operation backward needs dq, dk and dv";
  AttentionGradients& to = r.gradients;
  to.dq = tensors.need("dq", all);
  to.dk = tensors.need("dk", all);
  to.dv = tensors.need("dv", all);
  check_shape(reader, "dq", to.dq, p.q.shape);
  check_shape(reader, "dk", to.dk, p.k.shape);
  check_shape(reader, "dv", to.dv, p.v.shape);
  if (const StoredTensor* t = reader.find("d_bias"))
    to.d_bias = broadcast_floats(reader, "d_bias", *t, s.pair_extents());
  if (const StoredTensor* t = reader.find("d_sink")) {
    reader.numbers("d_sink", *t, s.query_heads);
    to.d_sink = reader.floats("d_sink", *t, {1, s.query_heads, 1, 1});
  }
  // The check of the call wants an LSE, but the verdict does not need one.
  const Extents rows = s.lse_extents();
  const Tensor stand_in(Dtype::f32, rows,
                        {{s.query_heads * s.rows, s.rows, 1, 1}, 0, element_count(rows)});
  const TensorView lse = r.out.lse ? r.out.lse : stand_in.view();
  const kernels::Status status =
      kernels::validate_backward(p, {r.out.o, lse, r.d_o, r.d_lse}, r.gradients);
  if (!status.ok()) reader.fail(status.detail);
  if (line.text("store")) reader.fail("store=: gradients do not go into a cache");
}

// Refuses bytes to which docs/formats.md gives no meaning.
void check_low_bit(const Reader& reader, const std::string& name, const LowBitView& v) {
  const LowBitTraits& t = traits(v.format);
  const auto byte_at = [](const std::byte* p, Index at) {
    return std::to_integer<unsigned>(p[at]);
  };
  for (Index s = 0; v.scales && s < v.groups() * v.n; ++s) {
    if (t.scale == Dtype::f8e4m3 && byte_at(v.scales, s) > 0x7F)
      reader.fail(fmt::format("tensor {}.scales: scale {} is negative", name, s));
    const unsigned half =
        t.scale == Dtype::f16 ? byte_at(v.scales, 2 * s) | byte_at(v.scales, 2 * s + 1) << 8 : 0;
    if ((half & 0x7FFF) == 0x7C00)
      reader.fail(fmt::format("tensor {}.scales: scale {} is infinite", name, s));
  }
  if (v.format == LowBit::int4)
    for (Index s = 0; s < v.groups() * v.n; ++s)
      if (byte_at(v.extra, s) > 15)
        reader.fail(fmt::format("tensor {}.extra: zero point {} is {}, above 15", name, s,
                                byte_at(v.extra, s)));
  if (v.format == LowBit::fp4_sparse)
    for (Index quad = 0; quad < v.k / 4; ++quad)
      for (Index n = 0; n < v.n; ++n) {
        const Index nibble = (quad / 8 * v.n + n) * 8 + quad % 8;
        const unsigned kept = byte_at(v.extra, nibble / 2) >> (nibble % 2 * 4) & 15,
                       first = kept & 3, second = kept >> 2;
        if (first >= second)
          reader.fail(
              fmt::format("tensor {}.extra: column {} keeps positions {} and {} of the four from k "
                          "= {} on; they must rise",
                          name, n, first, second, 4 * quad));
      }
}

// Reads the codes, scales and other bytes of one low-bit matrix. Each must have exactly its size.
LowBitView read_low_bit(Reader& reader, const std::string& name, LowBit format, Index group,
                        Index k, Index n) {
  const LowBitSizes sizes = sizes_of(format, k, n, group);
  const auto bytes = [&](const char* part, Index wanted) -> const std::byte* {
    if (wanted == 0) return nullptr;
    const StoredTensor& t = reader.need(
        name + "." + part, "a low-bit matrix is its bytes, as docs/formats.md lays them out");
    if (t.dtype != "U8" && t.dtype != "I8" && t.dtype != "F8_E4M3" && t.dtype != "F8_E5M2" &&
        t.dtype != "F8_E8M0" && !(t.dtype == "F16" && std::string_view(part) == "scales"))
      reader.fail(fmt::format("tensor {}.{} is {}, not bytes (U8)", name, part, t.dtype));
    if (std::ssize(t.bytes) != wanted)
      reader.fail(fmt::format("tensor {}.{} has {} bytes; {} of {} x {} takes {}", name, part,
                              t.bytes.size(), traits(format).name, k, n, wanted));
    return t.bytes.data();
  };
  LowBitView v;
  v.format = format;
  v.k = k;
  v.n = n;
  v.group = group;
  v.codes = bytes("codes", sizes.codes);
  v.scales = bytes("scales", sizes.scales);
  v.extra = bytes("extra", sizes.extra);
  check_low_bit(reader, name, v);
  return v;
}

void read_product(Reader& reader, RecordLine& line, Record& r) {
  const auto format_of = [&](const std::string& field, const std::string& text, Index& group) {
    const auto colon = text.find(':');
    const std::optional<LowBit> format = value_named<LowBit>(text.substr(0, colon));
    if (!format)
      reader.fail(fmt::format("{}={}: no such format; docs/formats.md names them", field, text));
    group = traits(*format).group;
    if (colon != std::string::npos) {
      const Index wanted = line.number<Index>(field, text.substr(colon + 1));
      const bool without = wanted == 0 && (*format == LowBit::f8e4m3 || *format == LowBit::f8e5m2);
      if (wanted != group &&
          !(traits(*format).group_free &&
            (without || (wanted >= 8 && wanted % 8 == 0 && wanted <= largest_extent))))
        reader.fail(fmt::format("{}={}: {} has no groups of {}", field, text, traits(*format).name,
                                wanted));
      group = wanted;
    }
    return *format;
  };
  const auto matrix = [&](const char* name) {
    const StoredTensor& t = reader.need(name, "a product has a and c");
    if (t.shape.size() != 2)
      reader.fail(fmt::format("tensor {} has shape {}, not 2 extents", name, shape_text(t.shape)));
    return reader.floats(name, t, {1, 1, t.shape[0], t.shape[1]});
  };
  const auto extent = [&](const char* field) {
    const std::optional<std::string> value = line.text(field);
    if (!value) reader.fail(fmt::format("its line does not say {}=", field));
    const Index n = line.number<Index>(field, *value);
    if (n < 1 || n > Index{1} << 28)
      reader.fail(fmt::format("{}={} is outside [1, 2^28]", field, *value));
    return n;
  };
  Product& p = r.product;
  p.m = extent("m");
  p.n = extent("n");
  p.k = extent("k");
  Index group = 0;
  const std::optional<std::string> w = line.text("w");
  if (!w) reader.fail("its line does not say w=, the format of the weights");
  const LowBit format = format_of("w", *w, group);
  if (format == LowBit::fp4_sparse && p.k % 4 != 0)
    reader.fail(fmt::format("k={} is no multiple of 4, as 2:4 sparse weights need", p.k));
  p.w = read_low_bit(reader, "w", format, group, p.k, p.n);
  const auto tensor_scale = [&](const char* field, LowBit of, LowBitView& v) {
    if (const auto scale = line.text(field)) {
      if (of != LowBit::nvfp4) reader.fail(fmt::format("{}: only nvfp4 has a tensor scale", field));
      v.tensor_scale = line.number<float>(field, *scale);
      if (!(v.tensor_scale > 0 && v.tensor_scale <= std::numeric_limits<float>::max()))
        reader.fail(fmt::format("{}={}: no positive finite number", field, *scale));
    }
  };
  tensor_scale("tensor-scale", format, p.w);
  if (const auto a = line.text("a")) {
    const LowBit a_format = format_of("a", *a, group);
    if (a_format != LowBit::mxfp4 && a_format != LowBit::nvfp4 && a_format != LowBit::f8e4m3 &&
        a_format != LowBit::f8e5m2)
      reader.fail(fmt::format("a={}: A may be mxfp4, nvfp4, f8e4m3 or f8e5m2", *a));
    p.a_low = read_low_bit(reader, "a", a_format, group, p.k, p.m);
    tensor_scale("a-tensor-scale", a_format, p.a_low);
  } else {
    p.a = matrix("a");
    if (p.a.shape[2] != p.m || p.a.shape[3] != p.k)
      reader.fail(fmt::format("tensor a is {} x {}, not m x k = {} x {}", p.a.shape[2],
                              p.a.shape[3], p.m, p.k));
  }
  r.c = matrix("c");
  if (r.c.shape[2] != p.m || r.c.shape[3] != p.n)
    reader.fail(fmt::format("tensor c is {} x {}, not m x n = {} x {}", r.c.shape[2], r.c.shape[3],
                            p.m, p.n));
}

bool same_number(double a, double b) {
  return (a == b && std::signbit(a) == std::signbit(b)) || (std::isnan(a) && std::isnan(b));
}

bool same_elements(const TensorView& a, const TensorView& b) {
  if (a.shape == b.shape && element_count(a.shape) == 0)
    return true;  // without keys the tensors need no memory
  if (!a || !b) return !a && !b;
  if (a.dtype != b.dtype || a.shape != b.shape) return false;
  for (Index x = 0; x < a.shape[0]; ++x)
    for (Index y = 0; y < a.shape[1]; ++y)
      for (Index i = 0; i < a.shape[2]; ++i)
        for (Index d = 0; d < a.shape[3]; ++d)
          if (!same_number(load(a, a.at(x, y, i, d)), load(b, b.at(x, y, i, d)))) return false;
  return true;
}

bool same_matrix(const LowBitView& a, const LowBitView& b) {
  if (!a || !b) return !a && !b;
  if (a.format != b.format || a.group != b.group || a.tensor_scale != b.tensor_scale) return false;
  return std::ranges::equal(decode_weights(a), decode_weights(b), same_number);
}

std::string product_difference(const Case& c, const Record& r) {
  const Product& q = r.product;
  if (c.product.m != q.m || c.product.n != q.n || c.product.k != q.k) return "an extent";
  if (c.out_dtype() != r.c.dtype) return "the dtype of c";
  const ProductInputs in(c);
  const Product& p = in.problem;
  if (!same_matrix(p.w, q.w)) return "w";
  return same_elements(p.a, q.a) && same_matrix(p.a_low, q.a_low) ? "" : "a";
}

std::string attention_difference(const Case& c, const Record& r) {
  if (!(c.shape == r.problem.shape)) return "an extent";
  if (c.dtype != r.problem.q.dtype) return "the dtype of q";
  if (c.out_dtype() != r.out.o.dtype) return "the dtype of o";
  const Inputs in(c);
  const Attention &p = in.problem, &q = r.problem;
  for (const TensorField& field : attention_tensors)
    if (!same_elements(p.*field.tensor, q.*field.tensor)) return std::string(field.name);
  if (!same_elements(in.d_o.view(), r.d_o)) return "do";
  if (!in.d_lse.view() != !r.d_lse || !same_elements(in.d_lse.view(), r.d_lse)) return "dlse";
  bool differs = !p.keep != !q.keep;
  for_each_list([&](const auto& field) {
    // A missing offset means 0, so the offsets are compared below.
    if (field.name != "offset") differs = differs || p.*field.list != q.*field.list;
  });
  for_each_number([&](const auto& field) {
    if (field.name == "dropout_seed" && p.dropout == 0) return;  // nothing is drawn
    differs = differs || p.*field.number != q.*field.number;
  });
  for (const FlagField& field : attention_flags)
    differs = differs || p.*field.flag != q.*field.flag;
  if (differs) return "a mask or a scale";
  for (Index b = 0; b < p.shape.batch; ++b)
    if (p.offset_of(b) != q.offset_of(b)) return "offset";
  const AttentionShape& s = p.shape;
  for (Index b = 0; p.keep && b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h)
      for (Index i = 0; i < s.rows; ++i)
        for (Index j = 0; j < s.keys; ++j)
          if (p.keep.at(b, h, i, j) != q.keep.at(b, h, i, j)) return "keep";
  return {};
}

struct RecordedOperation {
  Operation operation;
  void (*read)(Reader&, RecordLine&, Record&);
  // Returns the name of the first tensor that differs from what the case generates ("q"), or an
  // empty text. Extents and dtypes are compared first, because a case may need more memory than
  // there is.
  std::string (*difference)(const Case&, const Record&);
};
constexpr RecordedOperation operations[] = {
    {Operation::attention, read_attention, attention_difference},
    {Operation::backward, read_backward, attention_difference},
    {Operation::product, read_product, product_difference},
};

std::string differs_from_case(const RecordedOperation& of, const Record& r) {
  const Case c = parse_case(r.case_line);
  if (c.cache) return "the operation (a record has no cache)";
  if (c.operation != of.operation) return "the operation";
  return of.difference(c, r);
}

}  // namespace

RecordFile::RecordFile(std::string path)
    : RecordFile(std::move(path), std::span<const std::byte>{}) {}

RecordFile::RecordFile(std::string path, std::span<const std::byte> bytes)
    : path_(std::move(path)) {
  if (!bytes.data()) {
    file_ = std::make_unique<MappedFile>(path_);
    bytes = file_->bytes();
  }
  try {
    contents_ = parse_safetensors(bytes);
  } catch (const FileError& e) {
    throw FileError(fmt::format("{}: {}", path_, e.what()));
  }
  find_records();
}

RecordFile::RecordFile(std::string path, Safetensors contents)
    : path_(std::move(path)), contents_(std::move(contents)) {
  find_records();
}

void RecordFile::find_records() {
  const auto version = contents_.metadata.find("assay");
  if (version == contents_.metadata.end())
    throw FileError(fmt::format(
        "{}: the metadata have no key assay: it holds no records (docs/records.md)", path_));
  if (version->second != "1")
    throw FileError(fmt::format("{}: records of version {}; version 1 is known", path_,
                                shown(version->second)));
  // The keys are sorted, and so are the names.
  for (const auto& [key, value] : contents_.metadata) {
    if (key == record_key) names_.insert(names_.begin(), "");
    else if (key.starts_with(fmt::format("{}.", record_key)))
      names_.push_back(key.substr(std::strlen(record_key) + 1));
    else if (key != "assay" && key != "case" && !key.starts_with("case.") &&
             key != "format")  // "format" is a key that the writers of frameworks add
      throw FileError(fmt::format(
          "{}: metadata key {} is not one of assay, record, record.NAME, case, case.NAME", path_,
          shown(key)));
  }
  for (const auto& [key, value] : contents_.metadata)
    if (key == "case" || key.starts_with("case."))
      if (const std::string name = key == "case" ? "" : key.substr(5);
          !std::ranges::binary_search(names_, name))
        throw FileError(
            fmt::format("{}: metadata key {} is the case of no record", path_, shown(key)));
  if (names_.empty())
    throw FileError(fmt::format("{}: the metadata have no key record or record.NAME", path_));
  if (names_.size() > 1 && names_.front().empty())
    throw FileError(fmt::format("{}: a record without a name and records with names", path_));
  for (const std::string& name : names_)
    if (!name.empty() && (name.size() > 200 || !std::ranges::all_of(name, [](unsigned char c) {
                            return std::isalnum(c) || c == '-' || c == '_';
                          })))
      throw FileError(fmt::format("{}: a record's name is letters, digits, - and _, not {}", path_,
                                  shown(name)));
  // A record's name has no dot. The text before the first dot of a tensor's name is the record that
  // it belongs to.
  if (!names_.front().empty())
    for (const auto& [tensor, stored] : contents_.tensors)
      if (!std::ranges::binary_search(names_, tensor.substr(0, tensor.find('.'))))
        throw FileError(fmt::format("{}: tensor {} belongs to no record", path_, shown(tensor)));
}

std::string RecordFile::line(const std::string& name) const {
  const auto asked =
      contents_.metadata.find(name.empty() ? record_key : fmt::format("{}.{}", record_key, name));
  if (asked == contents_.metadata.end())
    throw FileError(
        fmt::format("{}: no record {}; there are {}", path_, shown(name), fmt::join(names_, ", ")));
  return shown(asked->second);
}

Record RecordFile::read(const std::string& name) const {
  Record r;
  r.name = name;
  r.line = line(name);
  const auto entry = [&](const char* key) {
    return contents_.metadata.find(name.empty() ? key : fmt::format("{}.{}", key, name));
  };
  if (const auto from = entry("case"); from != contents_.metadata.end()) r.case_line = from->second;
  Reader reader(path_, contents_, r);
  r.owned.reserve(32);  // there are views into it, so it must not move
  RecordLine line(reader, entry(record_key)->second);
  if (const auto kernel = line.text("kernel")) r.kernel = shown(*kernel);
  const auto of = std::ranges::find(operations, line.operation,
                                    [](const auto& row) { return name_of(row.operation); });
  if (of == std::end(operations))
    reader.fail(fmt::format(
        "its line begins with '{}', which is neither attention nor backward nor product",
        line.operation));
  r.operation = of->operation;
  of->read(reader, line, r);
  line.check_all_used();
  reader.check_all_used();
  if (r.case_line.empty()) return r;
  try {
    if (const std::string what = differs_from_case(*of, r); !what.empty())
      reader.fail(fmt::format("{} is not that of its case '{}'", what, r.case_line));
  } catch (const CaseError& e) {
    reader.fail(fmt::format("its case '{}': {}", r.case_line, e.what()));
  }
  return r;
}

std::string verify_command(const std::string& path, const std::string& name) {
  // A name that begins with a dash would be read as an option.
  const std::string file = path.starts_with('-') ? "./" + path : path;
  return fmt::format("assay verify {}{}", shell_quoted(file),
                     name.empty() ? "" : " --record " + shell_word(name));
}

}  // namespace assay
