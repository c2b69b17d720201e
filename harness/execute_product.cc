// A low-bit product: run, judged, related.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "harness/execute.h"
#include "harness/relations.h"
#include "harness/run.h"

namespace assay {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }

std::string verdict_of(const std::string& wrong, const std::string& difference) {
  if (!wrong.empty()) return "violated: " + wrong;
  return difference.empty() ? "held" : "violated: " + difference;
}

// Rows [first, first + count) of the product.
Product rows_of(const Product& p, Index first, Index count) {
  Product part = p;
  part.m = count;
  if (p.a) {
    part.a.origin = p.a.at(0, 0, first, 0);
    part.a.shape[2] = count;
  } else {
    const LowBitSizes row = sizes_of(p.a_low.format, p.k, 1, p.a_low.group);  // rows of A are columns of its bytes
    part.a_low.n = count;
    part.a_low.codes += first * row.codes;
    if (part.a_low.scales) part.a_low.scales += first * row.scales;
  }
  return part;
}

// Row 0 again and again: the kernels for many rows must make the sums of those for few.
Product repeated(const Product& p, Index times) {
  Product many = rows_of(p, 0, 1);
  many.m = times;
  many.a.stride[2] = 0;
  many.a.shape[2] = times;
  return many;
}

std::map<std::string, std::string> check_product_relations(const Case& c, const ProductInputs& in, Candidate& candidate, const ProductOutput& base) {
  std::map<std::string, std::string> found;
  const kernels::Execution how = execution_of(c);
  auto run = [&](const ProductInputs& inputs, const Product& p, const Tensor& to, const kernels::Execution& with) {
    return call_product_guarded(candidate, inputs, p, to, Poison::nan, with);
  };
  {
    const ProductOutput out(c, in.around);
    const std::string wrong = run(in, in.problem, out.c, on_other_threads(c));
    found["threads"] = verdict_of(wrong, first_difference(base.c, out.c));
  }
  found["single-rows"] = found["many-rows"] = other_order;
  if (candidate.bits_are_promised()) {
    // Each row for itself.
    const ProductOutput out(c, in.around);
    std::string wrong;
    for (Index m = 0; m < c.product.m && wrong.empty(); ++m) {
      TensorView row = out.c.view();
      row.origin = row.at(0, 0, m, 0);
      row.shape[2] = 1;
      wrong = run_product_plainly(candidate, rows_of(in.problem, m, 1), row, how);
    }
    found["single-rows"] = c.product.m < 2 ? "not applicable: there is one row" : verdict_of(wrong, first_difference(base.c, out.c));
  }
  if (candidate.bits_are_promised() && in.problem.a && c.product.m > 0) {
    const Index times = 97;
    const Tensor out(c.out_dtype(), {1, 1, times, c.product.n}, {{0, 0, c.product.n, 1}, 0, times * c.product.n}, in.around);
    const std::string wrong = run(in, repeated(in.problem, times), out, how);
    std::string difference;
    for (Index m = 0; m < times && difference.empty(); ++m) difference = first_difference_of_rows("C", base.c.view(), 0, out.view(), m);
    found["many-rows"] = verdict_of(wrong, difference);
  } else if (candidate.bits_are_promised()) {
    found["many-rows"] = "not applicable: A is low-bit, or empty";
  }
  const auto with_activations = [&](const char* name, const auto& change) {
    if (!in.problem.a) {
      found[name] = "not applicable: A is low-bit";
      return;
    }
    const ProductInputs changed(c, in.around);
    const ProductOutput out(c, in.around);
    const Index rows = change(changed.problem.a);
    if (rows == 0) {
      found[name] = "not applicable: no such rows";
      return;
    }
    const std::string wrong = run(changed, changed.problem, out.c, how);
    if (std::string_view(name) == "negated-activations")
      for (Index m = 0; m < c.product.m; ++m)
        for (Index n = 0; n < c.product.n; ++n) {
          const Index at = out.c.view().at(0, 0, m, n);
          store(out.c.view(), at, -load(out.c.view(), at));
        }
    found[name] = verdict_of(wrong, first_difference(base.c, out.c, rows));
  };
  with_activations("negated-activations", [&](const TensorView& a) {
    for (Index m = 0; m < c.product.m; ++m)
      for (Index k = 0; k < c.product.k; ++k) store(a, a.at(0, 0, m, k), -load(a, a.at(0, 0, m, k)));
    return c.product.m;
  });
  with_activations("rows-apart", [&](const TensorView& a) {
    const Index rows = c.product.m / 2;
    for (Index m = rows; m < c.product.m; ++m)
      for (Index k = 0; k < c.product.k; ++k) store(a, a.at(0, 0, m, k), std::numeric_limits<double>::quiet_NaN());
    return rows;
  });
  return found;
}

// The candidate's own bytes for the weights of a quantized case against those of the reference encoder.
std::string compare_quantization(const Case& c, Candidate& candidate, const ProductInputs& in) {
  const ProductSpec& p = c.product;
  const Tensor w(Dtype::f32, {1, 1, p.k, p.n}, {{0, 0, p.n, 1}, 0, p.k * p.n}, in.around);
  for (Index k = 0; k < p.k; ++k)
    for (Index n = 0; n < p.n; ++n) store(w.view(), k * p.n + n, original_weight(c, k, n));
  kernels::LowBitBytes bytes;
  if (const kernels::Status status = candidate.quantize(w.view(), p.format, p.group_size(), bytes); !status.ok())
    return fmt::format("quantization: status {}: {}", static_cast<int>(status.code), status.detail);
  const LowBitSizes sizes = sizes_of(p.format, p.k, p.n, p.group_size());
  if (bytes.format != p.format || bytes.k != p.k || bytes.n != p.n || bytes.group != p.group_size() || std::ssize(bytes.codes) != sizes.codes ||
      std::ssize(bytes.scales) != sizes.scales || std::ssize(bytes.extra) != sizes.extra)
    return "quantization: the bytes are those of another matrix";
  if (bytes.tensor_scale != in.problem.w.tensor_scale)
    return fmt::format("quantization: tensor scale {}, by the rule {}", bytes.tensor_scale, in.problem.w.tensor_scale);
  // Decoded, so that what lies behind K is not compared.
  const std::vector<double> got = decode_weights(bytes.view()), wanted = decode_weights(in.problem.w);
  for (std::size_t e = 0; e < got.size(); ++e)
    if (!(got[e] == wanted[e]))
      return fmt::format("quantization: w[k={}, n={}] = {:.9g} is stored as {:.9g}, by the rule {:.9g}", e / static_cast<std::size_t>(p.n),
                         e % static_cast<std::size_t>(p.n), original_weight(c, static_cast<Index>(e) / p.n, static_cast<Index>(e) % p.n), got[e], wanted[e]);
  for (const auto& [name, mine, theirs] : {std::tuple{"scale", &bytes.scales, &in.w.scales()}, {"zero point", &bytes.extra, &in.w.extra()}}) {
    if (p.format == LowBit::fp4_sparse && mine == &bytes.extra) continue;  // metadata behind K are nobody's
    if (mine->size() != theirs->size_in_bytes() || (!mine->empty() && std::memcmp(mine->data(), theirs->bytes(), mine->size()) != 0))
      return fmt::format("quantization: a {} differs from that of the rule", name);
  }
  return {};
}

}  // namespace

CaseResult execute_product(const Case& c, Candidate& candidate, const ExecuteOptions& options, CaseResult result) {
  auto start = std::chrono::steady_clock::now();
  options.turn_of("inputs");
  const ProductInputs inputs(c, options.around);
  const ProductOutput first(c, options.around), second(c, options.around);
  result.generate_seconds = seconds_since(start);
  options.turn_of("candidate");
  if (c.product.format == LowBit::fp4_sparse) result.tail_step = 4;
  try {
    if (std::string why = candidate.unsupported_product(inputs.problem, c.out_dtype()); !why.empty()) {
      result.outcome = Outcome::unsupported;
      result.reason = std::move(why);
      return result;
    }
  } catch (const CandidateError& e) {
    result.outcome = Outcome::fail;
    result.reason = e.what();
    return result;
  }
  auto failed = [&](std::string reason) {
    result.outcome = Outcome::fail;
    result.reason = std::move(reason);
    return result;
  };
  const kernels::Execution how = execution_of(c);
  start = std::chrono::steady_clock::now();
  if (std::string wrong = call_product_guarded(candidate, inputs, inputs.problem, first.c, Poison::nan, how); !wrong.empty()) return failed(std::move(wrong));
  result.candidate_seconds = seconds_since(start);
  if (std::string wrong = call_product_guarded(candidate, inputs, inputs.problem, second.c, Poison::large, how); !wrong.empty()) return failed(std::move(wrong));
  const std::string differs = first_difference(first.c, second.c);

  start = std::chrono::steady_clock::now();
  options.turn_of("verdict");
  JudgeOptions judging;
  judging.threads = options.oracle_threads;
  judging.sample_rows = c.sample_rows;
  judging.seed = c.seed;
  judging.power = options.power;
  if (options.pictures) {
    result.pictures = std::make_shared<Pictures>(c.product.m, c.product.n);
    judging.judged = [pictures = result.pictures.get()](const Element& e) { pictures->add(e); };
  }
  judging.untouched = [](const TensorView& t, Index position) { return holds_poison(t, position, Poison::nan); };
  const std::optional<ProductContract> contract = candidate.product_contract(how.target);
  result.verdict =
      contract ? judge_product(inputs.problem, first.c.view(), *contract, judging) : judge_product_by_ladder(inputs.problem, first.c.view(), judging);
  if (c.product.weights == Weights::quantized)
    result.quantization = quantization_error(inputs.problem, [&](Index k, Index n) { return original_weight(c, k, n); });
  result.judge_seconds = seconds_since(start);
  result.outcome = result.verdict.outcome;
  result.reason = result.verdict.reason;
  if (result.outcome == Outcome::fail || result.outcome == Outcome::error) return result;
  if (!differs.empty()) return failed("poison: two runs whose outputs were poisoned differently disagree: " + differs);
  if (c.product.weights == Weights::quantized && candidate.has_quantizer())
    if (std::string wrong = compare_quantization(c, candidate, inputs); !wrong.empty()) return failed(std::move(wrong));
  if (options.relations) {
    options.turn_of("candidate");
    result.relations = check_product_relations(c, inputs, candidate, first);
    for (const auto& [name, found] : result.relations)
      if (found.starts_with("violated")) return failed("relation " + name + " " + found);
  }
  return result;
}

}  // namespace assay
