#include "harness/identify/fit.h"

#include <algorithm>

#include "oracle/backward_verdict.h"
#include "oracle/product.h"

namespace assay {
namespace {

ArithmeticFit fit_of(const std::string& arithmetic, const Verdict& v) {
  ArithmeticFit fit;
  fit.arithmetic = arithmetic;
  fit.refuted = v.outcome == Outcome::fail && !v.by_evidence;
  fit.typical = !fit.refuted && !v.evidence.arithmetic.empty() && v.evidence.fits;
  for (const auto& [output, row] : v.evidence.rows)
    fit.of_limit = std::max(fit.of_limit, row.s / row.limit);
  if (fit.typical) return fit;
  fit.why = v.evidence.arithmetic.empty() && !fit.refuted ? v.evidence.not_asked : v.reason;
  return fit;
}

// Judges under one arithmetic after the other.
template <class Ladder, class Judge>
std::vector<ArithmeticFit> fit_each(const Ladder& ladder, const Judge& judge) {
  std::vector<ArithmeticFit> fits;
  for (const auto& contract : ladder) fits.push_back(fit_of(contract.name, judge(contract)));
  return fits;
}

}  // namespace

std::vector<ArithmeticFit> fit_arithmetics(const Record& r, int threads) {
  JudgeOptions options;
  options.threads = threads;
  options.power = false;
  options.evidence = EvidenceRule::fail;
  options.without_lse = !r.out.lse;
  const Dtype dtype = r.problem.q.dtype;
  constexpr Index tile = 64;
  switch (r.operation) {
    case Operation::product:
      return fit_each(product_ladder(r.product), [&](const ProductContract& c) {
        return judge_product(r.product, r.c, c, options);
      });
    case Operation::backward:
      return fit_each(backward_ladder(dtype, tile, r.problem.shape.group()),
                      [&](const Contract& c) {
                        const AttentionBackwardInput input{r.out.o, r.out.lse, r.d_o, r.d_lse};
                        return judge_backward(r.problem, input, r.gradients, c, options);
                      });
    default:
      return fit_each(contract_ladder(dtype, tile),
                      [&](const Contract& c) { return judge(r.problem, r.out, c, options); });
  }
}

}  // namespace assay
