#include "oracle/stored_forward.h"

#include <algorithm>
#include <cmath>

#include "oracle/safety_factors.h"

namespace assay {
namespace {

using safety::unit64;
using Term = BackwardTerm;

// bounds_backward.md, 1, No stored LSE: E_L of a kernel that keeps its weights.
double lse_error_of_kept_weights(const Contract& c, const BackwardTerms& terms, const Attention& p,
                                 const Block& block, Index row) {
  const double u = c.roundoff, n = static_cast<double>(block.count);
  const Index tile = std::min(c.tile, c.split_keys > 0 ? c.split_keys : c.tile);
  const double tiles = std::ceil(n / static_cast<double>(tile));
  double largest = std::fabs(block.row(row).max);
  for (Index j = 0; j < block.count; ++j) {
    const std::size_t pair = block.pair(row, j);
    if (!block.visible[pair]) continue;
    largest = std::max(largest, std::fabs(static_cast<double>(p.scale) * block.dot[pair]));
  }
  const double corrections =
      terms[Term::kept_corrections] * safety::two_roundings_of_exp * u * (tiles + 1) * c.exp_ulp;
  const double division =
      terms[Term::kept_division] * safety::one_rounding * u * c.division_roundings;
  const double constant = terms[Term::kept_scale] * c.scale_error +
                          (c.fused_argument ? terms[Term::kept_fused] * u : 0);
  const Certified& lse = block.row(row).lse;
  return terms[Term::kept_lse] * lse.bound + lse.radius + corrections + division +
         constant * largest;
}

}  // namespace

GradientTruth truth_of_row(const Attention& p, const Block& block, Index row) {
  const std::size_t at = block.pair(row, 0);
  GradientTruth t;
  t.count = block.count;
  t.gap = block.gap.data() + at;
  t.weight = block.weight.data() + at;
  t.dot = block.dot.data() + at;
  t.score_error = block.score_error.data() + at;
  t.capped_error = p.softcap > 0 ? block.capped_error.data() + at : nullptr;
  t.kept = p.dropout > 0 ? block.kept.data() + at : nullptr;
  t.max = block.row(row).max;
  t.lse = block.row(row).lse.value;
  t.lse_radius = block.row(row).lse.radius;
  return t;
}

double lse_gradient_of_row(const AttentionBackwardInput& input, Index b, Index h, Index i) {
  return input.d_lse ? load(input.d_lse, input.d_lse.at(b, h, i, 0)) : 0;
}

// bounds_backward.md, 1: D and E_D
Delta delta_of_row(const Contract& c, const BackwardTerms& terms,
                   const AttentionBackwardInput& input, const Block& block, Index row,
                   const double* d_o) {
  Delta d;
  double absolute = 0, defect = 0, lost = 0;
  const auto is_lost = [&](double x) { return std::fabs(x) < c.operand_floor; };
  const Index columns = input.o.shape[3], i = block.row(row).index;
  for (Index col = 0; col < columns; ++col) {
    const BlockElement& e = block.element(row, col);
    const double o = load(input.o, input.o.at(block.b, block.h, i, col)), x = d_o[col];
    if (e.kind != Kind::finite || !std::isfinite(o)) continue;
    d.value += x * e.value;
    defect += x * ((o - e.value) - e.low);
    d.stored += std::fabs(x * o);
    if (is_lost(x) || is_lost(o)) lost += std::fabs(x * o);
    absolute += std::fabs(x * e.value);
    d.radius += std::fabs(x) * e.radius;
  }
  const double given = lse_gradient_of_row(input, block.b, block.h, i);
  const double d_lse = std::isfinite(given) ? given : 0, size = std::fabs(d_lse);
  if (is_lost(d_lse)) lost += size;
  const double length = static_cast<double>(columns) + 1;
  const double gamma64 = gamma_factor(length + safety::own_roundings_of_delta, unit64);
  const double sum = gamma_factor(length, c.roundoff) * d.stored;
  d.value -= d_lse;
  d.radius = d.radius * (1 + safety::evaluation) + gamma64 * (absolute + size);
  d.error = terms[Term::stored_output] * std::fabs(defect) + terms[Term::delta_sum] * sum +
            gamma64 * (d.stored + absolute + size) + d.radius +
            terms[Term::delta_underflow] * (length * c.product_floor) +
            terms[Term::delta_operands] * lost * (1 + safety::evaluation);
  // bounds_backward.md, 1, dLSE: it is one more term of the sum
  if (d_lse != 0)
    d.error += terms[Term::lse_gradient] *
               (gamma_factor(length + 1, c.roundoff) * (d.stored + size) - sum);
  d.stored += size;
  return d;
}

// bounds_backward.md, 1: E_L
double lse_error_of_row(const Contract& c, const BackwardTerms& terms, const Attention& p,
                        const AttentionBackwardInput& input, const Block& block, Index row) {
  if (!input.lse) return lse_error_of_kept_weights(c, terms, p, block, row);
  const Certified& lse = block.row(row).lse;
  const double stored = load(input.lse, input.lse.at(block.b, block.h, block.row(row).index, 0));
  const double off = std::fabs((stored - lse.value) - lse.low);
  return terms[Term::stored_lse] * off + lse.radius;
}

}  // namespace assay
