// Writes cases as records.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "harness/candidates/named_call.h"
#include "harness/judging/step.h"
#include "harness/records/record.h"

namespace assay {
namespace {

std::string stored_name(Dtype d) {
  switch (d) {
    case Dtype::f64: return "F64";
    case Dtype::f32: return "F32";
    case Dtype::f16: return "F16";
    default: return "BF16";
  }
}

// Writes the tensors and the line of one record from generated inputs.
class RecordWriter {
 public:
  RecordWriter(std::string prefix, std::vector<TensorToStore>& to)
      : prefix_(std::move(prefix)), to_(to) {}

  // Stores a tensor contiguously in the order of the view. Axes of stride 0 are stored once.
  void add(const char* name, const TensorView& t, std::vector<Index> shape = {}) {
    if (!t) return;
    Extents e = t.shape;
    if (shape.empty()) shape.assign(e.begin(), e.end());
    to_.push_back({prefix_ + name, stored_name(t.dtype), std::move(shape),
                   usize(element_count(e) * format(t.dtype).bits / 8), [t, e](const auto& put) {
                     const auto bytes = usize(format(t.dtype).bits / 8);
                     std::vector<std::byte> row(usize(e[3]) * bytes);
                     for (Index b = 0; b < e[0]; ++b)
                       for (Index h = 0; h < e[1]; ++h)
                         for (Index i = 0; i < e[2]; ++i) {
                           for (Index d = 0; d < e[3]; ++d)
                             std::memcpy(row.data() + usize(d) * bytes,
                                         static_cast<const std::byte*>(t.data) +
                                             t.at(b, h, i, d) * static_cast<Index>(bytes),
                                         bytes);
                           put(row.data(), row.size());
                         }
                   }});
  }
  void add_broadcast(const char* name, TensorView t) {
    for (std::size_t axis = 0; axis < 4; ++axis)
      if (t.stride[axis] == 0) t.shape[axis] = 1;
    add(name, t);
  }
  void add_bytes(const std::string& name, const char* dtype, std::vector<Index> shape,
                 const void* data, std::size_t bytes) {
    to_.push_back({prefix_ + name, dtype, std::move(shape), bytes,
                   [data, bytes](const auto& put) { put(data, bytes); }});
  }
  template <class T>
  void add_list(std::string_view name, const std::vector<T>& list) {
    constexpr const char* dtype = std::is_same_v<T, float> ? "F32" : sizeof(T) == 8 ? "I64" : "I32";
    if (!list.empty())
      add_bytes(std::string(name), dtype, {std::ssize(list)}, list.data(), list.size() * sizeof(T));
  }
  void add_low_bit(const std::string& name, const LowBitMatrix& m) {
    for (const auto& [part, t] :
         {std::pair{".codes", &m.codes()}, {".scales", &m.scales()}, {".extra", &m.extra()}})
      if (t->size_in_bytes() > 0)
        add_bytes(name + part, "U8", {static_cast<Index>(t->size_in_bytes())}, t->bytes(),
                  t->size_in_bytes());
  }

 private:
  const std::string prefix_;
  std::vector<TensorToStore>& to_;
};

// Keeps the tensors of a case until the file is written.
struct Recorded {
  Recorded(const Case& c, const Abilities& can) {
    if (c.cache)
      throw CaseError(0, "cache: a record holds keys and values, not a cache; leave the field out");
    if (c.dtype == Dtype::f64 || c.out_dtype() == Dtype::f64)
      throw CaseError(0, "dtype=f64: records are judged in f32, f16 and bf16");
    if (c.operation == Operation::product) {
      product = std::make_unique<ProductInputs>(c);
      product_output = std::make_unique<ProductOutput>(c);
      return;
    }
    inputs = std::make_unique<Inputs>(c);
    const bool backward = c.operation == Operation::backward;
    with_lse = can.lse || (backward && can.gradients_alone);
    outputs = std::make_unique<Outputs>(c, with_lse);
    if (backward) gradients = std::make_unique<GradientOutputs>(c, *inputs, can.d_sink);
  }
  bool with_lse = true;
  std::unique_ptr<Inputs> inputs;
  std::unique_ptr<Outputs> outputs;
  std::unique_ptr<GradientOutputs> gradients;
  std::unique_ptr<ProductInputs> product;
  std::unique_ptr<ProductOutput> product_output;
};

// Throws FileError if the candidate does not support the step or fails.
template <class Step>
void run_step(const Step& step, Candidate& candidate, const typename Step::Out& out) {
  const auto refuse = [&](const char* how, const std::string& why) {
    if (!why.empty())
      throw FileError(
          fmt::format("{} {} '{}': {}", candidate.name(), how, print_case(step.c), why));
  };
  refuse("does not support", why_unsupported(candidate, step.call(out)));
  refuse("failed on", run_guarded(step, candidate, out, Poison::nan, execution_of(step.c)));
}

void run(const Case& c, Candidate& candidate, const Recorded& r) {
  if (r.product) return run_step(ProductStep{c, *r.product}, candidate, *r.product_output);
  const std::unique_ptr<Candidate> host = r.gradients ? forward_by_host(candidate, c) : nullptr;
  run_step(ForwardStep{c, *r.inputs, r.with_lse}, host ? *host : candidate, *r.outputs);
  if (r.gradients) run_step(BackwardStep{c, *r.inputs, *r.outputs}, candidate, *r.gradients);
}

std::string describe(const Recorded& r, bool with_outputs, const std::string& kernel,
                     RecordWriter& to) {
  std::string line;
  if (r.product) {
    const Product& p = r.product->problem;
    line = record_line(p);
    to.add_low_bit("w", r.product->w);
    if (p.a) {
      to.add("a", p.a, {p.m, p.k});
    } else {
      to.add_low_bit("a", r.product->a_low);
    }
    if (with_outputs) to.add("c", r.product_output->c.view(), {p.m, p.n});
  } else {
    const Attention& p = r.inputs->problem;
    const AttentionShape& s = p.shape;
    line = record_line(p, r.gradients ? Operation::backward : Operation::attention);
    to.add("q", p.q);
    to.add("k", p.k);
    to.add("v", p.v);
    to.add_broadcast("bias", p.bias);
    if (p.keep) {
      TensorView keep{const_cast<std::uint8_t*>(p.keep.data), Dtype::f8e5m2, s.pair_extents(),
                      p.keep.stride, 0};
      for (std::size_t axis = 0; axis < 4; ++axis)
        if (keep.stride[axis] == 0) keep.shape[axis] = 1;
      to.add_bytes("keep", "BOOL", {keep.shape.begin(), keep.shape.end()}, keep.data,
                   usize(element_count(keep.shape)));
    }
    for_each_list([&](const auto& field) { to.add_list(field.recorded, p.*field.list); });
    if (r.gradients) to.add("do", r.inputs->d_o.view());
    if (r.inputs->d_lse.view())
      to.add("dlse", r.inputs->d_lse.view(), {s.batch, s.query_heads, s.rows});
    if (with_outputs) {
      to.add("o", r.outputs->o.view());
      if (r.with_lse) to.add("lse", r.outputs->lse.view(), {s.batch, s.query_heads, s.rows});
    }
    if (with_outputs && r.gradients) {
      to.add("dq", r.gradients->dq.view());
      to.add("dk", r.gradients->dk.view());
      to.add("dv", r.gradients->dv.view());
      if (r.gradients->d_bias.view()) to.add_broadcast("d_bias", r.gradients->d_bias.view());
      if (r.gradients->d_sink.view()) to.add("d_sink", r.gradients->d_sink.view(), {s.query_heads});
    }
  }
  if (with_outputs) line += " kernel=" + kernel;
  return line;
}

}  // namespace

void write_records(const std::string& path, const std::vector<Case>& cases, Candidate* candidate,
                   const Watch& watch) {
  std::vector<Recorded> recorded;
  std::vector<TensorToStore> tensors;
  std::map<std::string, std::string> metadata = {{"assay", "1"}};
  std::string kernel = candidate ? candidate->name() : "";
  std::ranges::replace_if(kernel, [](unsigned char c) { return std::isspace(c); }, '_');
  for (std::size_t k = 0; k < cases.size(); ++k) {
    try {
      recorded.emplace_back(cases[k], candidate ? candidate->abilities() : Abilities());
    } catch (const CaseError& e) {
      throw CaseError(0, fmt::format("{}\n  {}", e.what(), print_case(cases[k])));
    }
    Recorded& r = recorded.back();
    if (candidate) watch(cases[k], [&] { run(cases[k], *candidate, r); });
    // Every number is as wide as the last one, so that names sort as numbers do.
    const std::string name =
        cases.size() > 1 ? fmt::format("{:0{}}", k, fmt::to_string(cases.size() - 1).size()) : "";
    RecordWriter to(name.empty() ? "" : name + ".", tensors);
    const auto key = [&](const char* what) {
      return name.empty() ? std::string(what) : fmt::format("{}.{}", what, name);
    };
    std::string line = describe(r, candidate != nullptr, kernel, to);
    const std::vector<std::string> conventions = cases[k].conventions.names();
    if (!conventions.empty()) line += fmt::format(" convention={}", fmt::join(conventions, ","));
    metadata[key("record")] = line;
    metadata[key("case")] = print_case(cases[k]);
  }
  write_safetensors(path, std::move(tensors), metadata);
}

}  // namespace assay
