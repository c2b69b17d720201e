#include "oracle/bound_weights.h"

#include <cmath>
#include <limits>
#include <vector>

#include "oracle/lanes.h"
#include "oracle/safety_factors.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// bounds.md, 2: Delta, how far the computed maximum can lie from the exact one
WeightErrors errors_of_scores(const RowTruth& t, const double* error) {
  LaneMax above(0), largest_error(0);
  for_lanes(0, t.count, [&]<class L>(Index j, L zero) {
    const L e = load_as<L>(error + j), gap = load_as<L>(t.gap + j);
    above.add(e - gap);
    largest_error.add(gap < inf ? e : zero);
  });
  WeightErrors errors;
  errors.delta = above.total() * (1 + safety::few_operations);
  errors.largest_score = largest_error.total();
  return errors;
}

// Numbers for each tile and each split of a row. Each thread keeps them from row to row.
struct Maxima {
  std::vector<double> tile_moves;             // 1 where a tile can move the maximum of its split
  std::vector<double> split_high, split_low;  // what the maximum of a split can be
  std::vector<double> split_moves;  // its own correction, if any, and those by later splits
};

// bounds.md, 2: which tiles can move the maximum of their split
void find_tile_moves(const Contract& c, const RowTruth& t, const RowBound& row, const double* error,
                     Maxima& m) {
  m.tile_moves.assign(usize(row.tiles), 0);
  m.split_high.assign(usize(row.merges) + 1, -inf);
  m.split_low.assign(usize(row.merges) + 1, -inf);
  for_each_tile(c, t, [&](const Tile& tile) {
    LaneMax high(-inf), low(-inf);
    for_lanes(tile.first, tile.last, [&]<class L>(Index j, L) {
      const L e = load_as<L>(error + j), gap = load_as<L>(t.gap + j);
      high.add(e - gap);
      low.add(-e - gap);
    });
    const double highest = high.total(), lowest = low.total();
    double& split_high = m.split_high[usize(tile.split)];
    double& split_low = m.split_low[usize(tile.split)];
    const bool moves = split_low > -inf && highest >= split_low;
    m.tile_moves[usize(tile.index)] = moves ? 1 : 0;
    split_high = std::max(split_high, highest);
    split_low = std::max(split_low, lowest);
  });
}

// bounds.md, 2, Key splits: how many merges can correct each split
void find_split_moves(Maxima& m) {
  m.split_moves.assign(m.split_high.size(), 0);
  double high = -inf, low = -inf;
  for (std::size_t k = 0; k < m.split_moves.size(); ++k) {
    if (low > -inf && m.split_high[k] >= low)
      for (std::size_t before = 0; before < k; ++before) m.split_moves[before] += 1;
    m.split_moves[k] = high > -inf && high >= m.split_low[k] ? 1 : 0;
    high = std::max(high, m.split_high[k]);
    low = std::max(low, m.split_low[k]);
  }
}

// bounds.md, 2: R_j where no order is declared
double count_rescales_in_any_order(const Contract& c, const RowTruth& t, const RowBound& row) {
  const Index tiles = std::min(tiles_of_a_split(c, row.tiles), t.live);
  const double sink = t.has_sink ? 1 : 0;
  return std::max(0.0, static_cast<double>(tiles - 1)) + static_cast<double>(row.merges) +
         (c.splits > 1 ? 2 : 0) + sink;
}

// bounds.md, 2: R_j; returns the largest
double count_rescales(const Contract& c, const RowTruth& t, const RowBound& row,
                      const double* error, double* rescales) {
  if (!c.ordered || c.splits > 1) {
    const double all = count_rescales_in_any_order(c, t, row);
    std::fill_n(rescales, t.count, all);
    return all;
  }
  thread_local Maxima m;
  find_tile_moves(c, t, row, error, m);
  find_split_moves(m);
  // A sink is merged at the end, which may give one more correction for every key.
  const double sink = t.has_sink ? 1 : 0;
  // This goes from the last tile to the first, and counts how many follow in the split.
  const Index first_tile = t.key0 / c.tile;
  double all = 0, later = 0;
  for (Index k = row.tiles; k-- > 0;) {
    const Index key0 = (first_tile + k) * c.tile;
    const Index split = c.split_keys > 0 ? key0 / c.split_keys - t.key0 / c.split_keys : 0;
    if (c.split_keys > 0 && (key0 + c.tile) % c.split_keys == 0) later = 0;
    const double mine = later + m.split_moves[usize(split)] + sink;
    later += m.tile_moves[usize(k)];
    all = std::max(all, mine);
    std::fill(rescales + std::max<Index>(0, key0 - t.key0),
              rescales + std::min(t.count, key0 + c.tile - t.key0), mine);
  }
  return all;
}

// bounds.md, 2, Weights from LSE: how far the arguments reach beyond the maximum
double above_maximum(const Contract& c, const BoundContext& x, const RowTruth& t) {
  return c.weights_from_lse ? x.terms[BoundTerm::lse_argument] * std::fabs(t.lse - t.max) : 0;
}

// bounds.md, 2: H_j but for what depends on the form of the argument
void exponent_errors(const Contract& c, const BoundContext& x, const RowTruth& t,
                     const double* error, const double* rescales, double delta, double* exponent) {
  const BoundTerms& terms = x.terms;
  const double u = c.roundoff, second_order = 1 + safety::second_order_units * u;
  const double per_argument = terms[BoundTerm::argument] * c.argument_roundings * u * second_order +
                              terms[BoundTerm::exp_per_unit] * c.exp_ulp_per_unit * 2 * u;
  const double per_exp = c.exp_ulp * 2 * u;
  const double own = terms[BoundTerm::exp], correction = terms[BoundTerm::corrections];
  const double to_lse = above_maximum(c, x, t);
  for (Index j = 0; j < t.count; ++j) {
    const double reach = t.gap[j] + error[j] + delta + to_lse;  // X_j
    const double h =
        (error[j] + per_argument * reach + (own + correction * rescales[j]) * per_exp) *
        (1 + safety::second_order);
    exponent[j] = t.gap[j] < inf ? h : 0;
  }
}

// bounds.md, 2: scale_error |t_j - t_*| of H_j
void add_folded_constant(const Contract& c, const BoundContext& x, const RowTruth& t,
                         double* exponent) {
  const double per_score =
      x.terms[BoundTerm::folded_constant] * safety::folded_constant * c.scale_error * x.scale;
  Index best = -1;
  for (Index j = 0; j < t.count; ++j)
    if (t.gap[j] < inf && (best < 0 || t.gap[j] < t.gap[best])) best = j;
  for (Index j = 0; j < t.count; ++j)
    if (t.gap[j] < inf) exponent[j] += per_score * std::fabs(t.dot[j] - t.dot[best]);
}

// bounds.md, 2: u (max(|s_j|, |M|) + Delta) of H_j
void add_fused_argument(const Contract& c, const BoundContext& x, const RowTruth& t, double delta,
                        double* exponent) {
  const double per_score = x.terms[BoundTerm::fused_argument] * safety::fused_argument * c.roundoff;
  const double to_lse = above_maximum(c, x, t);
  for (Index j = 0; j < t.count; ++j)
    if (t.gap[j] < inf)
      exponent[j] +=
          per_score * (std::max(std::fabs(t.max - t.gap[j]), std::fabs(t.max)) + delta + to_lse);
}

}  // namespace

WeightErrors weight_errors(const Contract& c, const BoundContext& x, const RowTruth& t,
                           const RowBound& row, const double* error, double* rescales,
                           double* exponent) {
  WeightErrors e = errors_of_scores(t, error);
  e.most_rescales = count_rescales(c, t, row, error, rescales);
  exponent_errors(c, x, t, error, rescales, e.delta, exponent);
  if (c.scale_error > 0 && x.softcap == 0) add_folded_constant(c, x, t, exponent);
  if (c.fused_argument) add_fused_argument(c, x, t, e.delta, exponent);
  LaneMax largest(0);
  for_lanes(0, t.count, [&]<class L>(Index j, L) { largest.add(load_as<L>(exponent + j)); });
  e.largest = largest.total();
  return e;
}

// bounds.md, 2, Sink: H of a key with an exact logit
double sink_exponent(const Contract& c, const BoundContext& x, const RowTruth& t,
                     const WeightErrors& e) {
  const BoundTerms& terms = x.terms;
  const double u = c.roundoff, reach = t.sink_gap + e.delta, max = std::fabs(t.max);
  const double per_argument = terms[BoundTerm::argument] * c.argument_roundings * u;
  const double exps = terms[BoundTerm::exp] + terms[BoundTerm::corrections] * e.most_rescales;
  const double per_unit = terms[BoundTerm::exp_per_unit] * c.exp_ulp_per_unit;
  const double fused =
      terms[BoundTerm::fused_argument] * safety::fused_argument * u * (max + t.sink_gap + e.delta) +
      terms[BoundTerm::folded_constant] * safety::folded_constant * c.scale_error *
          (max + t.sink_gap);
  return (per_argument * reach * (1 + safety::second_order_units * u) + exps * c.exp_ulp * 2 * u +
          per_unit * 2 * u * reach + (c.fused_argument ? fused : 0)) *
         (1 + safety::second_order);
}

// bounds.md, 2: e^h - 1 from above
double expm1_above(double h) {
  if (h <= safety::small_exponent) return h * (1 + h);
  return std::expm1(std::min(h, safety::largest_expm1_argument)) * (1 + safety::few_operations);
}

}  // namespace assay
