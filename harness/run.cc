#include "harness/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <initializer_list>

namespace assay {
namespace {

std::uint64_t poison_code(Dtype dtype, Poison with) {
  if (with == Poison::large) return encode(dtype, format(dtype).bits == 16 && dtype != Dtype::bf16 ? 60000.0 : 1e30);
  switch (dtype) {
    case Dtype::f16: return 0x7E5A;
    case Dtype::bf16: return 0x7FDA;
    case Dtype::f32: return 0x7FC0A55A;
    default: return 0x7FF8A55AA55AA55A;
  }
}

std::uint64_t code_at(const TensorView& t, Index position) {
  std::uint64_t code = 0;
  const int bytes = format(t.dtype).bits / 8;
  std::memcpy(&code, static_cast<const std::byte*>(t.data) + position * bytes, static_cast<std::size_t>(bytes));
  return code;
}

// A broadcast axis has one position, even where its extent is 0: the empty sum is stored there.
template <class Body>
void for_each_position(const TensorView& t, const Body& body) {
  Extents e = t.shape;
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (t.stride[axis] == 0) e[axis] = 1;
  for (Index b = 0; b < e[0]; ++b)
    for (Index h = 0; h < e[1]; ++h)
      for (Index i = 0; i < e[2]; ++i)
        for (Index d = 0; d < e[3]; ++d) body(t.at(b, h, i, d));
}

// Whether a byte between the elements of an output has changed.
bool gaps_intact(const Tensor& t, Poison with) {
  const TensorView& v = t.view();
  const auto bytes = static_cast<std::size_t>(format(v.dtype).bits / 8);
  if (static_cast<Index>(t.size_in_bytes() / bytes) == element_count(v.shape)) return true;
  std::vector<Index> positions;
  for_each_position(v, [&](Index position) { positions.push_back(position); });
  std::ranges::sort(positions);
  auto next = positions.begin();
  for (const auto& [begin, end] : t.regions())
    for (auto e = static_cast<Index>(begin / bytes); e < static_cast<Index>(end / bytes); ++e) {
      while (next != positions.end() && *next < e) ++next;
      if (next != positions.end() && *next == e) continue;
      if (code_at(v, e) != poison_code(v.dtype, with)) return false;
    }
  return true;
}

using Named = std::pair<const char*, const Tensor*>;

// One call between a poisoning of the outputs and a look at everything around them.
std::string failure_of(const kernels::Status& status) {
  if (status.ok()) return {};
  return fmt::format("status {} ({}): {}", static_cast<int>(status.code), kernels::message_of(status.code), status.detail);
}

template <class Call>
std::string guarded(std::initializer_list<Named> inputs, const std::vector<std::uint8_t>& keep, std::initializer_list<Named> outputs, Poison with,
                    const Call& call) {
  auto bytes_of_inputs = [&] {
    std::vector<std::byte> all;
    for (const auto& [name, t] : inputs)
      for (const auto& [begin, end] : t->regions())
        if (begin < end) all.insert(all.end(), t->bytes() + begin, t->bytes() + end);
    const auto* mask = reinterpret_cast<const std::byte*>(keep.data());
    all.insert(all.end(), mask, mask + keep.size());
    return all;
  };
  for (const auto& [name, t] : outputs) poison(*t, with);
  const std::vector<std::byte> before = bytes_of_inputs();
  kernels::Status status;
  try {
    status = call();
  } catch (const CandidateError& e) {
    return e.what();
  } catch (const std::exception& e) {
    return fmt::format("the candidate threw: {}", e.what());
  } catch (...) {
    return "the candidate threw something that is no std::exception";
  }
  if (std::string failure = failure_of(status); !failure.empty()) return failure;
  for (const auto& list : {inputs, outputs})
    for (const auto& [name, t] : list)
      if (!t->guards_intact()) return fmt::format("{}: a guard band was overwritten", name);
  for (const auto& [name, t] : outputs)
    if (!gaps_intact(*t, with)) return fmt::format("{}: bytes between its elements were overwritten", name);
  if (bytes_of_inputs() != before) return "an input was changed";
  return {};
}

// "1 and 2", or empty.
std::string difference_at(const TensorView& x, Index at, const TensorView& y, Index other) {
  if (code_at(x, at) == code_at(y, other)) return {};
  const double p = load(x, at), q = load(y, other);
  if ((p != p && q != q) || p == q) return {};  // any two NaN; +0 and -0
  return fmt::format("{:.9g} and {:.9g}", p, q);
}

// Of the first `rows` rows of each head (negative: all).
std::string first_difference_of(const char* name, const TensorView& x, const TensorView& y, Index rows) {
  for (Index b = 0; b < x.shape[0]; ++b)
    for (Index h = 0; h < x.shape[1]; ++h)
      for (Index i = 0; i < (rows < 0 ? x.shape[2] : rows); ++i)
        for (Index d = 0; d < x.shape[3]; ++d) {
          const Index at = x.at(b, h, i, d);
          if (const std::string found = difference_at(x, at, y, at); !found.empty())
            return fmt::format("{}[b={}, h={}, row={}, column={}]: {}", name, b, h, i, d, found);
        }
  return {};
}

}  // namespace

Outputs::Outputs(const Case& c, bool with_lse, Surroundings around) {
  const AttentionShape& s = c.shape;
  const Extents o_shape{s.batch, s.query_heads, s.rows, s.value_dim}, lse_shape{s.batch, s.query_heads, s.rows, 1};
  o = Tensor(c.out_dtype(), o_shape, make_layout(c.o_layout, o_shape, s.query_heads + 2 * s.kv_heads), around);
  if (with_lse) lse = Tensor(Dtype::f32, lse_shape, make_layout(c.o_layout == LayoutKind::packed ? LayoutKind::bhsd : c.o_layout, lse_shape, 1), around);
}

GradientOutputs::GradientOutputs(const Case& c, const Inputs& inputs) {
  const AttentionShape& s = c.shape;
  auto make = [&](LayoutKind kind, const Extents& shape) {
    if (kind == LayoutKind::shared_head || kind == LayoutKind::shared_batch) kind = LayoutKind::bhsd;
    return Tensor(c.out_dtype(), shape, make_layout(kind, shape, s.query_heads + 2 * s.kv_heads), inputs.around);
  };
  dq = make(c.q_layout, {s.batch, s.query_heads, s.rows, s.dim});
  dk = make(c.k_layout, {s.batch, s.kv_heads, s.keys, s.dim});
  dv = make(c.v_layout, {s.batch, s.kv_heads, s.keys, s.value_dim});
  const TensorView& bias = inputs.problem.bias;
  if (bias) d_bias = Tensor(Dtype::f32, bias.shape, {bias.stride, 0, static_cast<Index>(inputs.bias.size_in_bytes()) * 8 / format(bias.dtype).bits}, inputs.around);
  if (c.sink) d_sink = Tensor(Dtype::f32, {1, s.query_heads, 1, 1}, {{0, 1, 0, 0}, 0, s.query_heads}, inputs.around);
}

ProductOutput::ProductOutput(const Case& k, Surroundings around) {
  const Extents shape{1, 1, k.product.m, k.product.n};
  c = Tensor(k.out_dtype(), shape, make_layout(k.o_layout, shape, 1), around);
}

kernels::Execution execution_of(const Case& c) {
  const std::optional<kernels::Target> target = kernels::Target::named(c.target);
  if (!target)
    throw CaseError(0, fmt::format("target={} is not one that this machine runs: {}", c.target, fmt::join(kernels::runnable_targets(), ", ")));
  return {static_cast<int>(c.threads), *target};
}

kernels::Execution on_other_threads(const Case& c) { return {c.threads == 1 ? 2 : 1, execution_of(c).target}; }

void poison(const Tensor& t, Poison with) {
  const TensorView& v = t.view();
  const auto bytes = static_cast<std::size_t>(format(v.dtype).bits / 8);
  const std::uint64_t code = poison_code(v.dtype, with);
  for (const auto& [begin, end] : t.regions())
    for (std::size_t at = begin; at + bytes <= end; at += bytes) std::memcpy(t.bytes() + at, &code, bytes);
}

bool holds_poison(const TensorView& t, Index position, Poison with) { return code_at(t, position) == poison_code(t.dtype, with); }

std::string call_guarded(Candidate& candidate, const Case& c, const Inputs& in, const Outputs& out, Poison with, const kernels::Execution& how) {
  return guarded({{"q", &in.q},
                  {"k", &in.k},
                  {"v", &in.v},
                  {"bias", &in.bias},
                  {"token_k", &in.token_k},
                  {"token_v", &in.token_v},
                  {"up_k", &in.up_k},
                  {"up_v", &in.up_v}},
                 in.keep, {{"o", &out.o}, {"lse", &out.lse}}, with,
                 [&] { return c.cache ? candidate.run_cached(c, in, out.view(), how) : candidate.run(in.problem, out.view(), how); });
}

std::string call_backward_guarded(Candidate& candidate, const Inputs& in, const Outputs& forward, const GradientOutputs& out, Poison with, const kernels::Execution& how) {
  return guarded({{"q", &in.q}, {"k", &in.k}, {"v", &in.v}, {"bias", &in.bias}, {"o", &forward.o}, {"lse", &forward.lse}, {"d_o", &in.d_o}}, in.keep,
                 {{"dq", &out.dq}, {"dk", &out.dk}, {"dv", &out.dv}, {"d_bias", &out.d_bias}, {"d_sink", &out.d_sink}}, with, [&] {
                   return candidate.run_backward(in.problem, {forward.o.view(), forward.lse.view(), in.d_o.view()}, out.view(), how);
                 });
}

std::string call_product_guarded(Candidate& candidate, const ProductInputs& in, const Product& problem, const Tensor& c, Poison with, const kernels::Execution& how) {
  return guarded({{"a", &in.a},
                  {"a.codes", &in.a_low.codes()},
                  {"a.scales", &in.a_low.scales()},
                  {"w.codes", &in.w.codes()},
                  {"w.scales", &in.w.scales()},
                  {"w.extra", &in.w.extra()}},
                 {}, {{"c", &c}}, with, [&] { return candidate.run_product(problem, c.view(), how); });
}

std::string run_product_plainly(Candidate& candidate, const Product& problem, const TensorView& c, const kernels::Execution& how) {
  return failure_of(candidate.run_product(problem, c, how));
}

std::string first_difference(const Tensor& a, const Tensor& b, Index rows) { return first_difference_of("C", a.view(), b.view(), rows); }

std::string first_difference_of_rows(const char* name, const TensorView& x, Index i, const TensorView& y, Index j) {
  TensorView a = x, b = y;
  a.origin = x.at(0, 0, i, 0);
  b.origin = y.at(0, 0, j, 0);
  a.shape[2] = b.shape[2] = 1;
  for (Index d = 0; d < a.shape[3]; ++d)
    if (const std::string found = difference_at(a, a.at(0, 0, 0, d), b, b.at(0, 0, 0, d)); !found.empty())
      return fmt::format("{}: row {} against row {}, column {}: {}", name, i, j, d, found);
  return {};
}

std::string first_difference(const Outputs& a, const Outputs& b, Index rows) {
  std::string found = first_difference_of("LSE", a.lse.view(), b.lse.view(), rows);
  return found.empty() ? first_difference_of("O", a.o.view(), b.o.view(), rows) : found;
}

std::string first_difference(const GradientOutputs& a, const GradientOutputs& b) {
  for (auto [name, member] : {std::pair{"dQ", &GradientOutputs::dq},
                              {"dK", &GradientOutputs::dk},
                              {"dV", &GradientOutputs::dv},
                              {"dBias", &GradientOutputs::d_bias},
                              {"dSink", &GradientOutputs::d_sink}})
    if (std::string found = first_difference_of(name, (a.*member).view(), (b.*member).view(), -1); !found.empty()) return found;
  return {};
}

}  // namespace assay
