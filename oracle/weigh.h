// Inside oracle/: asks the evidence of a case. docs/evidence.md, 1 to 3.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <span>
#include <vector>

#include "oracle/contract.h"
#include "oracle/shares.h"
#include "oracle/verdict.h"

namespace assay {

// The number of runs of the algorithm whose errors count as typical.
inline constexpr int replicate_count = 12;
// About as many products of numbers as one replicate may take.
inline constexpr double evidence_budget = 0x1p24;
// Beyond these, errors are not typical. docs/evidence.md, 3, says how they were measured.
inline constexpr double lse_limit = 32;
// Of z. With few rows, twelve replicates do not tell well what chance does.
inline double filter_limit_of(Dtype out, Index rows) {
  return (out == Dtype::f32 ? 16 : 8) * (1 + 2 / static_cast<double>(rows));
}
// Where outputs are rounded to 16 bits, their rounding hides most of what kernels do differently;
// in binary32 it does not. The fewer elements a row has, the more its s is left to chance.
inline double row_limit_of(Dtype out, double elements) {
  return (out == Dtype::f32 ? 6 : 3) * (1 + 2 / std::sqrt(elements));
}
inline double row_limit_of(Dtype out, Index elements) {
  return row_limit_of(out, static_cast<double>(elements));
}
// The median of s over the rows that are not exact, under an arithmetic after the first, of a
// kernel that computes in it.
inline constexpr double least_median = 0.02;
// Where scores are so large that their rounding alone decides, the errors of all arithmetics are
// alike, and all may be far larger than what a kernel happens to have in most rows. An arithmetic
// forgives more than the first one only if its typical errors are larger by this factor. And where
// kernels of one arithmetic differ by so much, as those do that divide weights before they are
// rounded from those that do it later, a kernel is like the ones with small errors.
inline constexpr double far_wider = 4;
// Filters need so many numbers at least.
inline constexpr Index least_elements = 64;
// The least spread of a share, as a part of that of independent errors. Without it, replicates that
// agree by luck, as on constant values, would make every rounding significant.
inline double least_spread_of(Dtype out) { return out == Dtype::f32 ? 0.25 : 0.01; }
// Gradients have cancellations that depend on the way of a kernel.
inline constexpr double gradient_leeway = 2;
// The least factor that is a fault: biases of sums, and what is hidden below the output's rounding,
// are none.
inline double least_factor(double roundoff, Dtype out) {
  constexpr double bias_of_long_sums = 0x1p-18;  // in binary32
  return std::max({8 * roundoff, bias_of_long_sums, unit_roundoff(out) / 16});
}

// The s of every row of one output, and the one that is largest in units of its limit.
class RowScores {
 public:
  void add(double s, double limit, Index b, Index h, Index row);
  // Adds the s that the same row has of replicate k in place of the kernel.
  void add_replicate(std::size_t k, double s) { replicates_[k].push_back(s); }
  bool empty() const { return all_.empty(); }
  Atypical finish();

 private:
  std::vector<double> all_;
  std::array<std::vector<double>, replicate_count> replicates_;
  Atypical worst_;
};

Evidence not_asked(const char* why);
// Adds the evidence on gradients to that on O and LSE.
void add(Evidence& forward, const Evidence& gradients);

// How far the answers are beyond their limits: above 1, something is atypical.
double excess(const Evidence& e);
// One sentence on the answer that is furthest beyond its limit.
std::string sentence_on(const Evidence& e);

// Whether evidence is to be asked about a verdict by bounds.
inline bool is_weighed(const Verdict& v, const JudgeOptions& options) {
  return options.evidence != EvidenceRule::off && v.outcome != Outcome::fail &&
         v.outcome != Outcome::error;
}
// Puts the evidence into the verdict, and fails it if no arithmetic fits.
void take_evidence(Verdict& v, Evidence e, EvidenceRule rule);

// Asks one arithmetic after the other, until one fits. `ask(contract, evidence)` fills in the rows
// and returns the answers of the filters.
template <class Arithmetic, class Ask>
Evidence best_fit(std::span<const Arithmetic> contracts, Dtype out, const JudgeOptions& options,
                  const Ask& ask) {
  Evidence best;
  std::map<Output, double> first_median;
  for (const Arithmetic& contract : contracts) {
    Evidence e;
    e.arithmetic = contract.name;
    e.replicates = replicate_count;
    e.seed = options.seed;
    FilterAnswers filters = ask(contract, e);
    if (e.rows_asked == 0) return not_asked("no row has finite outputs and replicates");
    e.z_limit = filter_limit_of(out, e.rows_asked);
    e.filters = std::move(filters.most_significant);
    e.questions = filters.questions;
    const bool first = &contract == &contracts.front();
    if (first)
      for (const auto& [output, rows] : e.rows) first_median[output] = rows.median_of_inexact;
    // A later arithmetic errs more. One whose errors are far larger than the kernel's, in every
    // output, is not its own, unless those of the first one, or of a replicate, are about as small.
    const bool too_wide = !first && std::ranges::all_of(e.rows, [&](const auto& of_output) {
      const Atypical& rows = of_output.second;
      return rows.median_of_inexact < least_median &&
             rows.median_of_inexact <=
                 std::min(first_median[of_output.first], rows.least_replicate) / far_wider;
    });
    e.fits = excess(e) <= 1 && !too_wide;
    if (first || e.fits || (!too_wide && excess(e) < excess(best))) best = std::move(e);
    if (best.fits) break;
  }
  if (!best.fits) best.reason = sentence_on(best);
  return best;
}

// Asks whether the errors of some rows of O and LSE are typical of one of the contracts, from the
// first on: rows that are spread over all heads, and the `suspects`. The bounds of `strict`, the
// strictest contract of the ladder, tell how errors are usually distributed over rows.
Evidence weigh(const ProjectedAttention& problem, const AttentionOutput& out,
               const Contract& strict, std::span<const Contract> contracts,
               const std::vector<SuspectRow>& suspects, const JudgeOptions& options);

// The same for all rows of dQ, dK and dV of some groups of heads, the one with the worst element of
// the verdict `bounds` among them.
Evidence weigh_backward(const Attention& problem, const AttentionBackwardInput& input,
                        const AttentionGradients& out, const Contract& strict,
                        std::span<const Contract> contracts, const Verdict& bounds,
                        const JudgeOptions& options);

}  // namespace assay
