#include "testing/matchers.h"

#include <fmt/format.h>

namespace assay {
namespace {

std::string_view verb_of(Outcome outcome) {
  switch (outcome) {
    case Outcome::pass: return "passes";
    case Outcome::fail: return "fails";
    case Outcome::suspect: return "is suspect";
    case Outcome::inconclusive: return "is inconclusive";
    case Outcome::unsupported: return "is not supported";
    case Outcome::convention: return "differs by convention";
    case Outcome::error: break;
  }
  return "ends in an error";
}

std::string shape_of(const TensorView& t) {
  const Extents& s = t.shape;
  return fmt::format("{} [{}, {}, {}, {}]", format(t.dtype).name, s[0], s[1], s[2], s[3]);
}

// Returns, for example, "O f32 [1, 2, 9, 8]" or "no O".
std::string named(const char* name, const TensorView& t) {
  return t ? fmt::format("{} {}", name, shape_of(t)) : fmt::format("no {}", name);
}

}  // namespace

std::string explain(Outcome outcome, const std::string& reason, const Verdict& verdict) {
  std::string text = fmt::format("which {}: {}", verb_of(outcome), reason);
  if (!verdict.contract.empty()) text += "\n  contract: " + verdict.contract;
  for (const auto& [output, part] : verdict.outputs) {
    text += fmt::format("\n  {}: {} of {} elements inside their bounds", name_of(output),
                        part.inside, part.elements);
    const Element* worst = verdict.worst(output);
    if (!worst) continue;
    Element e = *worst;
    e.why = fmt::format("the largest error/bound is {:.4g}", e.ratio);
    text += "; " + describe(e);
  }
  for (const auto& [why, n] : verdict.failures)
    text += fmt::format("\n  {} {}: {}", n, n == 1 ? "element" : "elements", why);
  return text;
}

void PrintTo(const TensorView& t, std::ostream* to) { *to << named("tensor", t); }
void PrintTo(const AttentionOutput& out, std::ostream* to) {
  *to << named("O", out.o) << ", " << named("LSE", out.lse);
}
void PrintTo(const AttentionGradients& g, std::ostream* to) {
  *to << named("dQ", g.dq) << ", " << named("dK", g.dk) << ", " << named("dV", g.dv) << ", "
      << named("dBias", g.d_bias) << ", " << named("dSink", g.d_sink);
}
void PrintTo(const Verdict&, std::ostream* to) { *to << "a verdict"; }

void EndsAs::DescribeTo(std::ostream* to) const {
  *to << verb_of(outcome_);
  if (!words_.empty()) *to << " with \"" << words_ << "\" in the reason";
}
void EndsAs::DescribeNegationTo(std::ostream* to) const {
  *to << "ends otherwise than one that ";
  DescribeTo(to);
}

IsWithinBound<AttentionOutput> IsWithinBoundOf(Attention problem, Contract contract,
                                               JudgeOptions options) {
  return {contract.name,
          [=](const AttentionOutput& out) { return judge(problem, out, contract, options); }};
}

IsWithinBound<AttentionGradients> IsWithinBoundOf(Attention problem, AttentionBackwardInput input,
                                                  Contract contract, JudgeOptions options) {
  return {contract.name, [=](const AttentionGradients& gradients) {
            return judge_backward(problem, input, gradients, contract, options);
          }};
}

IsWithinBound<AttentionOutput> IsWithinBoundOf(MergeProblem problem, Contract contract) {
  return {contract.name,
          [=](const AttentionOutput& out) { return judge_merge(problem, out, contract); }};
}

IsWithinBound<TensorView> IsWithinBoundOf(Product problem, ProductContract contract,
                                          JudgeOptions options) {
  return {contract.name,
          [=](const TensorView& c) { return judge_product(problem, c, contract, options); }};
}

}  // namespace assay
