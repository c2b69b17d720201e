#include "oracle/special_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "oracle/safety_factors.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// Whether all weights are 0 or 1: every gap is 0 or so large that exp gives 0.
bool weights_are_exact(const RowTruth& t) {
  for (Index j = 0; j < t.count; ++j)
    if (t.gap[j] != 0 && !(t.gap[j] > safety::gap_of_zero_weight)) return false;
  return true;
}

// Whether every partial sum of q.k is a multiple of one quantum, and small enough to be exact in
// fp32. Neither quanta nor sums may be so small that they are read as 0.
bool scores_are_exact(const Contract& c, const Attention& p, const KeyValues& kv, const double* q,
                      const RowTruth& t) {
  double largest_absolute_dot = 0;
  for (Index j = 0; j < t.count; ++j) {
    double sum = 0;
    for (Index d = 0; d < p.shape.dim; ++d)
      sum += std::fabs(q[d] * kv.keys_transposed(d, t.key0 + j));
    largest_absolute_dot = std::max(largest_absolute_dot, sum);
  }
  double q_quantum = inf;
  for (Index d = 0; d < p.shape.dim; ++d) q_quantum = std::min(q_quantum, quantum_of(q[d]));
  const bool all_zero = q_quantum == inf || kv.key_quantum() == inf;
  if (all_zero) return true;
  const double quantum = q_quantum * kv.key_quantum();
  // Q and K may be multiplied by the root of the scale before.
  const double scale = std::fabs(static_cast<double>(p.scale));
  const double shrunk = std::min(q_quantum, kv.key_quantum()) * std::sqrt(std::min(scale, 1.0));
  return std::min(shrunk, quantum) >= c.operand_floor &&
         largest_absolute_dot / quantum < safety::exact_quanta;
}

// Whether the same holds for the sums of one column over the values that count.
bool column_is_exact(const KeyValues& kv, const RowTruth& t, Index c) {
  double sum = 0, quantum = inf;
  for (Index j = 0; j < t.count; ++j)
    if (t.gap[j] == 0) {
      sum += kv.values_absolute(t.key0 + j, c);
      quantum = std::min(quantum, quantum_of(kv.values(t.key0 + j, c)));
    }
  return sum < safety::exact_quanta * quantum;
}

}  // namespace

// bounds.md, 8, NaN and infinities: of a score
void classify_scores(const Attention& p, const KeyValues& kv, Block& block, Index r,
                     const RowVisibility& seen, double* score) {
  const AttentionShape& s = p.shape;
  const Index i = block.row(r).index;
  bool q_finite = true;
  for (Index d = 0; d < s.dim; ++d)
    q_finite = q_finite && std::isfinite(load(p.q, p.q.at(block.b, block.h, i, d)));
  for (Index j = seen.begin; j < seen.end; ++j) {
    const double bias = seen.bias[usize(j)];
    if (bias == -inf) continue;
    const bool suspicious = !q_finite || kv.key_not_finite[usize(j)];
    const double t = suspicious ? extended_score(p, block.b, block.h, i, j) : 0;
    if (std::isfinite(t) && std::isfinite(bias)) {
      // A softcap turns an infinite score into a finite one.
      if (suspicious) score[j - block.key0] = t + bias;
      continue;
    }
    if (t + bias == -inf) {
      score[j - block.key0] = -inf;
    } else {
      block.row(r).lse.kind = Kind::nan;
      for (BlockElement& e : block.elements(r)) e.kind = Kind::nan;
      return;
    }
  }
}

// bounds.md, 14: whether an infinity is multiplied by a number that is read as 0
bool reads_factor_as_zero(const Contract& c, const Attention& p, const KeyValues& kv,
                          const Block& block, Index row, const RowVisibility& seen) {
  if (c.operand_floor == 0) return false;
  const auto lost = [&](double x, double y) {
    return std::isinf(x) && y != 0 && std::fabs(y) < c.operand_floor;
  };
  std::vector<double> q(usize(p.shape.dim));
  std::vector<Index> infinite;  // the elements of the row that are
  for (Index d = 0; d < p.shape.dim; ++d) {
    q[usize(d)] = load(p.q, p.q.at(block.b, block.h, row, d));
    if (std::isinf(q[usize(d)])) infinite.push_back(d);
  }
  for (Index j = seen.begin; j < seen.end; ++j) {
    if (seen.bias[usize(j)] == -inf) continue;
    const auto k = [&](Index d) { return load(p.k, p.k.at(block.b, kv.g, j, d)); };
    for (const Index d : infinite)
      if (lost(q[usize(d)], k(d))) return true;
    if (!kv.key_not_finite[usize(j)]) continue;
    for (Index d = 0; d < p.shape.dim; ++d)
      if (lost(k(d), q[usize(d)])) return true;
  }
  return false;
}

// bounds.md, 8, NaN and infinities: of a value
void classify_values(const Attention& p, const KeyValues& kv, Block& block, Index r,
                     const RowVisibility& seen, const double* gap, double largest_gap) {
  const AttentionShape& s = p.shape;
  const BlockRow& row = block.row(r);
  if (row.lse.kind == Kind::nan) return;
  for (Index j = seen.begin; j < seen.end; ++j) {
    const auto key = usize(j);
    if (seen.bias[key] == -inf || !kv.value_not_finite[key]) continue;
    const bool zero_weight =
        gap[j - block.key0] == inf || !keeps_weight(p, block.b, block.h, row.index, j);
    for (Index c = 0; c < s.value_dim; ++c) {
      const double v = load(p.v, p.v.at(block.b, kv.g, j, c));
      if (std::isfinite(v)) continue;
      BlockElement& e = block.element(r, c);
      const Kind mine = std::isnan(v) || zero_weight ? Kind::nan
                        : v > 0                      ? Kind::plus_infinity
                                                     : Kind::minus_infinity;
      e.kind = e.kind == Kind::finite || e.kind == mine ? mine : Kind::nan;
      if (gap[j - block.key0] > largest_gap) e.underflow_excused = true;
    }
  }
}

// bounds.md, 8, Exact rows: which contracts leave them exact
bool allows_exact_rows(const Contract& c, const ProjectedAttention& p) {
  return c.dot_roundoff <= safety::coarsest_exact_roundoff && !c.query_dtype && !p.projection &&
         !c.divides_first;
}

// bounds.md, 8, Exact rows: which rows they are
bool is_exact_row(const Contract& c, const Attention& p, const KeyValues& kv, const double* q,
                  const RowTruth& t) {
  const bool plain = !t.has_sink && t.additions == 0 && p.dropout == 0 && p.softcap == 0;
  if (t.max != 0 || t.live == 0 || !plain) return false;
  if (!weights_are_exact(t) || !scores_are_exact(c, p, kv, q, t)) return false;
  if (std::count(t.gap, t.gap + t.count, 0.0) == 1) return true;
  for (Index column = 0; column < p.shape.value_dim; ++column)
    if (!column_is_exact(kv, t, column)) return false;
  return true;
}

// bounds.md, 8, Exact rows: the division by the count is all that is left
ExactElement exact_element(const Contract& c, double sum, double count, double n_live,
                           double largest_value) {
  const bool power_of_two = quantum_of(count) == count;
  const double o = sum / count;
  // The other keys add this to the exact value. fp32 cannot represent it, so it is the whole
  // tolerance.
  const double rest =
      safety::rest_of_both_sums * n_live * std::exp(-safety::gap_of_zero_weight) * largest_value;
  const double division = safety::one_rounding * c.division_roundings * c.roundoff * std::fabs(o);
  // A kernel that flushes may lose each product and each sum below the least normal number.
  const double lost = (c.product_floor > safety::least_subnormal
                           ? safety::losses_of_flushed_product * c.product_floor
                           : 0) +
                      c.operand_floor;
  return {o, rest + (power_of_two ? 0 : safety::unit64 * std::fabs(o)),
          safety::rest_of_kernel * rest + lost + c.division_roundings * c.product_floor +
              (power_of_two ? 0 : division)};
}

}  // namespace assay
