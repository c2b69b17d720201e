#include "harness/execute.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <exception>

#include "harness/relations.h"
#include "harness/run.h"
#include "kernels/targets.h"

namespace assay {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

void check_memory(const Case& c) {
  const Index available = static_cast<Index>(sysconf(_SC_PHYS_PAGES)) * static_cast<Index>(sysconf(_SC_PAGESIZE));
  // Inputs and their snapshot, two sets of outputs, and the oracle's doubles of one head.
  const Index needed = 4 * case_bytes(c) + 32 * c.shape.keys * (c.shape.dim + c.shape.value_dim);
  if (needed > available) throw CaseError(0, fmt::format("the case needs about {} MiB; this machine has {} MiB of memory", needed >> 20, available >> 20));
}

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

template <class Body>
void for_each_position(const TensorView& t, const Body& body) {
  for (Index b = 0; b < t.shape[0]; ++b)
    for (Index h = 0; h < t.shape[1]; ++h)
      for (Index i = 0; i < t.shape[2]; ++i)
        for (Index d = 0; d < t.shape[3]; ++d) body(t.at(b, h, i, d));
}

// Whether a byte between the elements of an output has changed.
bool gaps_intact(const Tensor& t, Poison with) {
  const TensorView& v = t.view();
  const auto bytes = static_cast<std::size_t>(format(v.dtype).bits / 8);
  const std::size_t elements = t.size_in_bytes() / bytes;
  if (static_cast<Index>(elements) == element_count(v.shape)) return true;
  std::vector<char> is_element(elements, 0);
  for_each_position(v, [&](Index position) { is_element[static_cast<std::size_t>(position)] = 1; });
  for (std::size_t e = 0; e < elements; ++e)
    if (!is_element[e] && code_at(v, static_cast<Index>(e)) != poison_code(v.dtype, with)) return false;
  return true;
}

std::vector<std::byte> snapshot(const Inputs& in) {
  std::vector<std::byte> bytes;
  for (const Tensor* t : {&in.q, &in.k, &in.v, &in.bias})
    bytes.insert(bytes.end(), t->size_in_bytes() ? t->bytes() : nullptr, t->size_in_bytes() ? t->bytes() + t->size_in_bytes() : nullptr);
  const auto* keep = reinterpret_cast<const std::byte*>(in.keep.data());
  bytes.insert(bytes.end(), keep, keep + in.keep.size());
  return bytes;
}

bool has_independent_zero_mean(const Case& c) {
  return c.values == Values::normal && (c.scores == Scores::normal || c.scores == Scores::flat || c.scores == Scores::huge) && c.pokes.empty() && !c.sink &&
         c.hidden == Hidden::generated;
}

}  // namespace

Outputs::Outputs(const Case& c) {
  const AttentionShape& s = c.shape;
  const Extents o_shape{s.batch, s.query_heads, s.rows, s.value_dim}, lse_shape{s.batch, s.query_heads, s.rows, 1};
  o = Tensor(c.out_dtype(), o_shape, make_layout(c.o_layout, o_shape, s.query_heads + 2 * s.kv_heads));
  lse = Tensor(Dtype::f32, lse_shape, make_layout(c.o_layout == LayoutKind::packed ? LayoutKind::bhsd : c.o_layout, lse_shape, 1));
}

GradientOutputs::GradientOutputs(const Case& c, const Inputs& inputs) {
  const AttentionShape& s = c.shape;
  auto make = [&](LayoutKind kind, const Extents& shape) {
    if (kind == LayoutKind::shared_head || kind == LayoutKind::shared_batch) kind = LayoutKind::bhsd;
    return Tensor(c.out_dtype(), shape, make_layout(kind, shape, s.query_heads + 2 * s.kv_heads));
  };
  dq = make(c.q_layout, {s.batch, s.query_heads, s.rows, s.dim});
  dk = make(c.k_layout, {s.batch, s.kv_heads, s.keys, s.dim});
  dv = make(c.v_layout, {s.batch, s.kv_heads, s.keys, s.value_dim});
  const TensorView& bias = inputs.problem.bias;
  if (bias) d_bias = Tensor(Dtype::f32, bias.shape, {bias.stride, 0, static_cast<Index>(inputs.bias.size_in_bytes()) * 8 / format(bias.dtype).bits});
  if (c.sink) d_sink = Tensor(Dtype::f32, {1, s.query_heads, 1, 1}, {{0, 1, 0, 0}, 0, s.query_heads});
}

void poison(const Tensor& t, Poison with) {
  const TensorView& v = t.view();
  const auto bytes = static_cast<std::size_t>(format(v.dtype).bits / 8);
  const std::uint64_t code = poison_code(v.dtype, with);
  for (std::size_t at = 0; at + bytes <= t.size_in_bytes(); at += bytes) std::memcpy(t.bytes() + at, &code, bytes);
}

bool holds_poison(const TensorView& t, Index position, Poison with) { return code_at(t, position) == poison_code(t.dtype, with); }

std::string call_guarded(Candidate& candidate, const Case&, const Inputs& inputs, const Outputs& outputs, Poison with, int threads) {
  poison(outputs.o, with);
  poison(outputs.lse, with);
  const std::vector<std::byte> before = snapshot(inputs);
  kernels::Status status;
  try {
    status = candidate.run(inputs.problem, outputs.view(), threads);
  } catch (const std::exception& e) {
    return fmt::format("the candidate threw: {}", e.what());
  } catch (...) {
    return "the candidate threw something that is no std::exception";
  }
  if (!status.ok()) return fmt::format("status {} ({}): {}", static_cast<int>(status.code), kernels::message_of(status.code), status.detail);
  for (auto [name, tensor] : {std::pair{"q", &inputs.q}, {"k", &inputs.k}, {"v", &inputs.v}, {"bias", &inputs.bias}, {"o", &outputs.o}, {"lse", &outputs.lse}})
    if (!tensor->guards_intact()) return fmt::format("{}: a guard band was overwritten", name);
  for (auto [name, tensor] : {std::pair{"o", &outputs.o}, {"lse", &outputs.lse}})
    if (!gaps_intact(*tensor, with)) return fmt::format("{}: bytes between its elements were overwritten", name);
  if (snapshot(inputs) != before) return "an input was changed";
  return {};
}

std::string first_difference(const Outputs& a, const Outputs& b, Index rows) {
  std::string found;
  for (auto [name, x, y] : {std::tuple{"LSE", &a.lse, &b.lse}, {"O", &a.o, &b.o}}) {
    const TensorView& v = x->view();
    for (Index batch = 0; batch < v.shape[0]; ++batch)
      for (Index h = 0; h < v.shape[1]; ++h)
        for (Index i = 0; i < (rows < 0 ? v.shape[2] : rows); ++i)
          for (Index d = 0; d < v.shape[3]; ++d) {
            const Index at = v.at(batch, h, i, d);
            const std::uint64_t m = code_at(v, at), n = code_at(y->view(), at);
            if (m == n) continue;
            const double p = load(v, at), q = load(y->view(), at);
            if (p != p && q != q) continue;
            if (p == q) continue;  // +0 and -0
            return fmt::format("{}[b={}, h={}, row={}, column={}]: {:.9g} and {:.9g}", name, batch, h, i, d, p, q);
          }
  }
  return {};
}

CaseResult execute(const Case& c, Candidate& candidate, const ExecuteOptions& options) {
  CaseResult result;
  result.line = print_case(c);
  result.candidate = candidate.name();
  check_memory(c);
  if (!kernels::force_target(c.target))
    throw CaseError(0, fmt::format("target={} is not one that this machine runs: {}", c.target, fmt::join(kernels::runnable_targets(), ", ")));

  auto start = std::chrono::steady_clock::now();
  const Inputs inputs(c);
  const Outputs first(c), second(c);
  result.generate_seconds = seconds_since(start);
  if (const std::string why = candidate.unsupported(inputs.problem, c.out_dtype()); !why.empty()) {
    result.outcome = Outcome::unsupported;
    result.reason = why;
    return result;
  }

  auto failed = [&](std::string reason) {
    result.outcome = Outcome::fail;
    result.reason = std::move(reason);
    return result;
  };
  start = std::chrono::steady_clock::now();
  if (std::string wrong = call_guarded(candidate, c, inputs, first, Poison::nan, static_cast<int>(c.threads)); !wrong.empty()) return failed(std::move(wrong));
  result.candidate_seconds = seconds_since(start);
  if (std::string wrong = call_guarded(candidate, c, inputs, second, Poison::large, static_cast<int>(c.threads)); !wrong.empty())
    return failed(std::move(wrong));
  const std::string differs = first_difference(first, second);

  start = std::chrono::steady_clock::now();
  JudgeOptions judging;
  judging.threads = options.oracle_threads;
  judging.sample_rows = c.sample_rows;
  judging.seed = c.seed;
  judging.ball_rows = options.ball_rows;
  judging.power = options.power;
  judging.statistics = has_independent_zero_mean(c);
  judging.untouched = [](const TensorView& t, Index position) { return holds_poison(t, position, Poison::nan); };
  const std::optional<Contract> contract = candidate.contract(inputs.problem);
  result.verdict = contract ? judge(inputs.problem, first.view(), *contract, judging) : judge_by_ladder(inputs.problem, first.view(), 64, judging);
  result.judge_seconds = seconds_since(start);
  result.outcome = result.verdict.outcome;
  result.reason = result.verdict.reason;
  if (result.outcome == Outcome::fail || result.outcome == Outcome::error) return result;
  if (!differs.empty()) return failed("poison: two runs whose outputs were poisoned differently disagree: " + differs);
  if (options.relations) {
    result.relations = check_relations(c, inputs, candidate, first);
    for (const auto& [name, how] : result.relations)
      if (how.starts_with("violated")) return failed("relation " + name + " " + how);
  }
  return result;
}

}  // namespace assay
