#include "oracle/bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/bound_weights.h"
#include "oracle/lanes.h"
#include "oracle/safety_factors.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// The arrays of one row. Each thread keeps them from row to row.
struct Scratch {
  std::vector<double> error, exponent, rescales;  // E_j, H_j and then e^H_j - 1, R_j
  void resize(Index n) {
    for (auto* v : {&error, &exponent, &rescales}) v->resize(usize(n));
  }
};

void count_tiles(const Contract& c, const RowTruth& t, RowBound& out) {
  const Index end = t.key0 + t.count - 1;
  out.keys = t.count;
  out.tiles = t.count == 0 ? 1 : end / c.tile - t.key0 / c.tile + 1;
  out.merges = t.count == 0 || c.split_keys == 0 ? 0 : end / c.split_keys - t.key0 / c.split_keys;
  out.has_sink = t.has_sink;
}

// bounds.md, 3: gamma_N and gamma_L
void count_roundings(const Contract& c, const BoundContext& x, const RowTruth& t,
                     double most_rescales, RowBound& out) {
  const double live = static_cast<double>(t.live + (t.has_sink ? 1 : 0));
  const double splits = c.splits > 1 ? c.splits : 0, merges = static_cast<double>(out.merges);
  const double rescales = x.terms[BoundTerm::corrections_in_sums] * most_rescales;
  // The longest chain of additions is that of a split and of the merges. A block FMA includes
  // masked keys too.
  const Index split_keys = c.split_keys > 0 ? c.split_keys : t.count;
  const Index passed = c.dot_block > 0 && x.terms[BoundTerm::masked_in_blocks] > 0
                           ? t.count + t.key0 % c.dot_block
                           : t.live;
  const double chain = static_cast<double>(std::min(passed, split_keys));
  const double projected = x.terms[BoundTerm::projected_values] * static_cast<double>(x.projection);
  const double n_values = dot_roundings(c, chain + projected, x.terms[BoundTerm::value_blocks]);
  out.gamma_n = x.terms[BoundTerm::values_any_order] *
                gamma_factor(n_values + rescales + 1 + splits + merges, c.dot_roundoff);
  const double in_split =
      static_cast<double>(c.ordered ? c.tile + tiles_of_a_split(c, out.tiles) : split_keys);
  const double n_sum = std::min(live, in_split + merges);
  out.gamma_l =
      x.terms[BoundTerm::row_sum] * gamma_factor(n_sum + rescales + 1 + splits, c.roundoff);
}

// What all weights of a row have in common.
struct Perturbations {
  double cast_roundoff = 0, cast_floor = 0;  // rho_j
  double exp_floor = 0;                      // omega_j, per exponential
  double dropout = 0;
  double product = 0;  // of p_j v_j before it is added, where the sums have an order
  double in_sum = 0;   // 1: the row sum adds the rounded weights
  bool second_order_tail = false;
  // Whether e^H - 1 <= H (1 + H) for all H_j. Then the H_j are given, and otherwise e^H_j - 1.
  bool small = false;
};

// The absolute error of a weight that is too small for its dtype, or that is read as 0.
double least_weight(const Contract& c) {
  return std::max(c.weight_dtype ? half_min_subnormal(*c.weight_dtype) : 0, c.operand_floor);
}

// bounds.md, 3, Weights divided first: the division rounds every weight, and what underflows does
// so below the divided weights, which are at most 1
void divide_first(const Contract& c, const BoundTerms& terms, Perturbations& k) {
  const double division =
      terms[BoundTerm::divided_weights] * safety::one_rounding * c.division_roundings * c.roundoff;
  k.cast_roundoff = division + k.cast_roundoff * (1 + division);
  k.cast_floor = terms[BoundTerm::divided_underflow] * c.product_floor;
  k.cast_floor += terms[BoundTerm::weight_cast_underflow] * least_weight(c);
}

// bounds.md, 3: what rounds the weights of a row
Perturbations perturbations(const Contract& c, const BoundContext& x, const RowTruth& t,
                            const WeightErrors& e) {
  const BoundTerms& terms = x.terms;
  // An upper bound of 1 / l-hat.
  const double unit =
      std::exp(std::min(0.0, t.max - t.lse) + std::min(e.delta, safety::largest_expm1_argument));
  Perturbations k;
  if (c.weight_dtype)
    k.cast_roundoff = terms[BoundTerm::weight_cast] * unit_roundoff(*c.weight_dtype);
  k.cast_floor = terms[BoundTerm::weight_cast_underflow] * least_weight(c) * unit;
  if (c.divides_first) divide_first(c, terms, k);
  k.exp_floor = terms[BoundTerm::exp_underflow] * c.exp_floor * unit;
  if (x.dropout)
    k.dropout =
        terms[BoundTerm::dropout_scale] * gamma_factor(safety::roundings_of_keep, c.roundoff);
  if (c.products_rounded)
    k.product = terms[BoundTerm::value_products] * safety::one_rounding * c.roundoff;
  k.product += terms[BoundTerm::projected_values] * projection_error(c, x);
  k.in_sum = c.sum_from_rounded ? 1 : 0;
  k.second_order_tail = tail_is_second_order(c, x);
  k.small = e.largest <= safety::small_exponent;
  return k;
}

// Counts what a tile meets to the end of its split: live keys, with its own, and later tiles.
class Following {
 public:
  Following(const Contract& c, const RowTruth& t) : c_(c), t_(t) {}

  void enter(const Tile& tile) {
    if (tile.split != split_) {
      split_ = tile.split;
      const Index end = end_of_split(tile);
      keys_ = live_in(tile.first, end);
      tiles_ = (t_.key0 + end - 1) / c_.tile - (t_.key0 + tile.first) / c_.tile + 1;
    }
    --tiles_;
  }
  void leave(const Tile& tile) { keys_ -= live_in(tile.first, tile.last); }

  // bounds.md, 3: X_k, how often a perturbation of one of the tile's keys enters it
  double entries(const RowBound& row) const {
    const double u = c_.roundoff;
    const double merge_u = safety::one_rounding * std::max(u, c_.dot_roundoff);
    const double own_merges = static_cast<double>(std::min(row.merges, row.merges + 1 - split_));
    return c_.dot_roundoff * static_cast<double>(keys_) +
           safety::one_rounding * u * static_cast<double>(tiles_ + (t_.has_sink ? 1 : 0)) +
           2 * merge_u * own_merges;
  }

 private:
  Index end_of_split(const Tile& tile) const {
    if (c_.split_keys == 0) return t_.count;
    const Index next = (t_.key0 + tile.first) / c_.split_keys + 1;
    return std::min(t_.count, next * c_.split_keys - t_.key0);
  }
  Index live_in(Index first, Index last) const {
    if (t_.live == t_.count) return last - first;
    return std::count_if(t_.gap + first, t_.gap + last, [](double gap) { return gap < inf; });
  }

  const Contract& c_;
  const RowTruth& t_;
  Index keys_ = 0, tiles_ = 0, split_ = -1;
};

struct Totals {
  LaneSum centred, sum, defect;
};

// bounds.md, 3: the weights of the numerator's sums and of the denominator, for the keys of a tile
void weigh_tile(const Tile& tile, const RowTruth& t, const Perturbations& row, double gamma_n,
                double gamma_l, double per_error, const Scratch& s, const SumWeights& weights,
                Totals& totals) {
  const Perturbations k = row;
  const double* exponent = s.exponent.data();
  const double* rescales = s.rescales.data();
  for_lanes(tile.first, tile.last, [&]<class L>(Index j, L zero) {
    const L one = zero + 1, gap = load_as<L>(t.gap + j), h = load_as<L>(exponent + j);
    const L is_live = gap < inf ? one : zero;
    const L p = load_as<L>(t.weight + j), g = k.small ? h * (one + h) : h, e = one + g;
    const L omega = (1 + load_as<L>(rescales + j)) * k.exp_floor;
    if (k.second_order_tail) {
      const L centred = is_live * (p * g + omega), sum = p * e;
      if (weights.centred) store_lanes(weights.centred + j, centred);
      if (weights.absolute) store_lanes(weights.absolute + j, gamma_n * sum);
      totals.centred.add(centred);
      totals.sum.add(sum);
      totals.defect.add(centred + sum * gamma_l);
      return;
    }
    const L cast_least = k.cast_roundoff * p + zero;
    const L at_least = cast_least > k.cast_floor ? cast_least : zero + k.cast_floor;
    const L rho = p < at_least ? p : at_least;
    const L cast = (1 - k.in_sum) * rho + k.dropout * (p + rho);
    const L centred = is_live * (p * g + omega + k.in_sum * e * rho);
    if (weights.centred) store_lanes(weights.centred + j, centred);
    if (weights.absolute)
      store_lanes(weights.absolute + j, is_live * (e * (cast + gamma_n * (p + rho))));
    if (weights.tail)
      store_lanes(weights.tail + j, is_live * (e * (cast + k.product * (p + rho)) +
                                               (p * g + omega + e * rho) * per_error));
    totals.centred.add(centred);
    totals.sum.add(p * e);
    totals.defect.add(centred + p * e * gamma_l);
  });
}

// bounds.md, 3, Dropout: dropped keys count against |O|
void drop_keys(const RowTruth& t, const BoundTerms& terms, const SumWeights& weights,
               RowBound& out) {
  for (Index j = 0; j < t.count; ++j) {
    if (t.kept[j] != 0) continue;
    out.zero_centred += terms[BoundTerm::dropped_keys] * weights.centred[j];
    for (double* w : {weights.centred, weights.absolute, weights.tail})
      if (w) w[j] = 0;
  }
}

// bounds.md, 2, Sink: its part in the numerator and in the denominator, whose defect is returned
double add_sink(const Contract& c, const BoundContext& x, const RowTruth& t, const WeightErrors& e,
                double exp_floor, RowBound& out) {
  const double h = sink_exponent(c, x, t, e);
  const double growth = expm1_above(h), omega = (1 + e.most_rescales) * exp_floor;
  out.zero_centred += x.terms[BoundTerm::sink] * (t.sink_weight * growth + omega);
  out.sum_weight += t.sink_weight * (1 + growth);
  out.largest_exponent = std::max(out.largest_exponent, h);
  return t.sink_weight * (growth + (1 + growth) * out.gamma_l) + omega;
}

// bounds.md, 3: the sums of a row; returns the defect of the denominator
double weigh_row(const Contract& c, const BoundContext& x, const RowTruth& t, const WeightErrors& e,
                 Scratch& s, RowBound& out, const SumWeights& weights) {
  const Perturbations k = perturbations(c, x, t, e);
  const double tail = x.terms[BoundTerm::perturbed_sums];
  Following following(c, t);
  Totals totals;
  for_each_tile(c, t, [&](const Tile& tile) {
    following.enter(tile);
    const double per_error = tail * following.entries(out);
    out.tail_per_centred = std::max(out.tail_per_centred, per_error);
    if (!k.small)
      for (Index j = tile.first; j < tile.last; ++j)
        s.exponent[usize(j)] = expm1_above(s.exponent[usize(j)]);
    weigh_tile(tile, t, k, out.gamma_n, out.gamma_l, per_error, s, weights, totals);
    following.leave(tile);
  });
  if (!k.second_order_tail) out.tail_per_centred = 0;
  out.centred_total = totals.centred.total();
  out.sum_weight = totals.sum.total();
  double defect = totals.defect.total();
  if (t.kept) drop_keys(t, x.terms, weights, out);
  if (t.has_sink) defect += add_sink(c, x, t, e, k.exp_floor, out);
  return defect;
}

// bounds.md, 5: a weight above 1 that leaves the range, for the fused argument of the maximum is
// not exactly 0
bool weights_may_overflow(const Contract& c, double largest_exponent) {
  if (!c.fused_argument) return false;
  const double largest =
      c.weight_dtype ? std::min(c.largest, format(*c.weight_dtype).max_finite) : c.largest;
  return largest_exponent > std::log(largest) - 1;
}

// bounds.md, 4: B_L
double lse_bound(const Contract& c, const BoundContext& x, const RowTruth& t, double delta,
                 double defect) {
  const BoundTerms& terms = x.terms;
  const double u = c.roundoff;
  const double reach = std::fabs(t.lse - t.max) + delta + std::min(defect, 1.0);
  const double near_one = terms[BoundTerm::log_near_one] * safety::log_unit_near_one;
  const double per_log = terms[BoundTerm::log] * c.log_ulp * 2 * u;
  const double per_sum = terms[BoundTerm::lse_sum] * safety::one_rounding * u;
  return -std::log1p(-terms[BoundTerm::lse_weights] * defect) +
         per_log * (reach + (reach < safety::log_near_one ? near_one : 0)) +
         per_sum * (std::fabs(t.max) + std::fabs(t.lse) + 2 * delta) +
         terms[BoundTerm::lse_underflow] * c.product_floor;
}

}  // namespace

// bounds.md, 1: whether a running-error analysis holds
bool adds_in_order(const Contract& c) { return c.ordered && c.dot_block == 0; }

// bounds.md, 1: N
double dot_roundings(const Contract& c, double length, double blocks) {
  const double roundings = dot_roundings(c, length);
  return c.dot_block > 0 ? length + blocks * (roundings - length) : roundings;
}

// bounds.md, 3: whether sums are charged by their partial sums
bool uses_order(const Contract& c) { return adds_in_order(c) && c.splits == 1; }

// bounds.md, 8, Projected keys and values: the error of one element
double projection_error(const Contract& c, const BoundContext& x) {
  if (x.projection == 0) return 0;
  return gamma_factor(dot_roundings(c, static_cast<double>(x.projection)), c.dot_roundoff);
}

// bounds.md, 9: whether all X_k are products of two roundoffs
bool tail_is_second_order(const Contract& c, const BoundContext& x) {
  return !c.weight_dtype && c.operand_floor == 0 && !c.divides_first && !c.products_rounded &&
         !x.dropout && x.projection == 0;
}

// bounds.md, 6: kappa
double exponent_ratio(const Contract& c, Index dim) {
  const double smaller = safety::unit64 / std::min(c.roundoff, c.dot_roundoff);
  return smaller * std::max({safety::dot_ratio * (static_cast<double>(dim) + 2),
                             safety::library_ulp_and_one / std::min(c.exp_ulp, c.tanh_ulp),
                             safety::other_ratio});
}

void derive_row_bound(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out,
                      const SumWeights& weights) {
  thread_local Scratch s;
  s.resize(t.count);
  out = {};
  count_tiles(c, t, out);
  score_errors(c, x, t, s.error.data());
  const WeightErrors e =
      weight_errors(c, x, t, out, s.error.data(), s.rescales.data(), s.exponent.data());
  out.gap_error = e.largest_score + e.delta;
  out.largest_exponent = e.largest;
  count_roundings(c, x, t, e.most_rescales, out);
  const double defect = weigh_row(c, x, t, e, s, out, weights);
  find_overflow(c, x, t, out);
  if (weights_may_overflow(c, out.largest_exponent)) out.may_overflow = true;
  out.denominator = 1 - x.terms[BoundTerm::denominator] * defect;
  out.vacuous = !(out.denominator > safety::least_denominator) || !std::isfinite(out.gamma_n) ||
                out.may_overflow;
  out.lse = out.vacuous ? inf : lse_bound(c, x, t, e.delta, defect);
}

namespace {

// bounds.md, 3, Weights from LSE: by how much the weights of a row, of which nothing is divided,
// may add up to more or less than 1
double excess_of_weights(const Contract& c, const BoundContext& x, const RowBound& b) {
  if (!c.weights_from_lse) return 0;
  constexpr double unbounded = 0x1p100;
  if (b.vacuous) return unbounded;
  const double common = expm1_above(b.lse * (1 + safety::second_order));
  return x.terms[BoundTerm::weights_from_lse] *
         (common + (1 + common) * (b.centred_total + b.zero_centred));
}

// bounds.md, 3: the numerator
double numerator(const Contract& c, const BoundContext& x, const RowBound& b, double magnitude,
                 const ColumnSums& sums) {
  // Where the weights come from LSE, the row sum has its part in that alone.
  const double of_sum = c.weights_from_lse ? 0 : b.sum_weight * b.gamma_l;
  const double common = sums.centred + magnitude * (b.zero_centred + of_sum);
  if (!uses_order(c)) return sums.absolute + common;
  // The correction that the sink makes at the end.
  const double sink_merge =
      x.terms[BoundTerm::sink_merge] * safety::one_rounding * c.roundoff * magnitude;
  const double tail = b.tail_per_centred > 0
                          ? b.tail_per_centred * (sums.centred + magnitude * b.centred_total)
                          : sums.tail;
  const double in_order = x.terms[BoundTerm::values_in_order] * sums.prefix;
  return (in_order + tail + (b.has_sink ? sink_merge : 0)) * (1 + 2 * b.gamma_n) + common;
}

// bounds.md, 3: how far O can lie outside the hull of V
double outside_hull(const Contract& c, const BoundContext& x, const RowBound& b,
                    double largest_value) {
  const double divided_u =
      c.divides_first ? x.terms[BoundTerm::divided_weights] * c.division_roundings * c.roundoff : 0;
  const double cast_u = divided_u + (c.weight_dtype ? unit_roundoff(*c.weight_dtype) : 0);
  const double cast_floor =
      (least_weight(c) + (c.divides_first ? c.product_floor : 0)) * static_cast<double>(b.keys);
  return x.terms[BoundTerm::hull] * safety::hull *
         (cast_u + cast_floor + b.gamma_n + b.gamma_l +
          safety::roundings_of_quotient * c.roundoff) *
         largest_value;
}

// bounds.md, 3: the division and what underflows before it
double divided(const Contract& c, const BoundContext& x, const RowBound& b, double bound,
               double magnitude) {
  const double roundings = static_cast<double>(b.keys) + static_cast<double>(b.tiles) +
                           3 * static_cast<double>(b.merges) + 2;
  bound += x.terms[BoundTerm::value_underflow] * roundings * c.product_floor;
  // What every element of V may lose. The weights add up to 1, but for what they err.
  const double lost =
      x.terms[BoundTerm::value_operands] * c.operand_floor +
      x.terms[BoundTerm::value_underflow] * static_cast<double>(x.projection) * c.product_floor;
  bound += safety::sum_of_weights * lost * x.keep_scale;
  const double division =
      x.terms[BoundTerm::division] * safety::one_rounding * c.division_roundings * c.roundoff;
  return (bound * (1 + division) + division * magnitude) * (1 + safety::evaluation);
}

}  // namespace

double element_bound(const Contract& c, const BoundContext& x, const RowBound& b, double o,
                     const ColumnSums& sums, double hull, double largest_value) {
  const double magnitude = std::fabs(o), excess = excess_of_weights(c, x, b);
  const double of_hull = hull + outside_hull(c, x, b, largest_value) + excess * largest_value;
  const double denominator = c.weights_from_lse ? 1 : b.denominator;
  const double of_weights =
      b.vacuous
          ? inf
          : numerator(c, x, b, magnitude, sums) / denominator * (1 + excess) + excess * magnitude;
  const double bound = std::min(of_hull, of_weights);
  return divided(c, x, b, bound, magnitude);
}

}  // namespace assay
