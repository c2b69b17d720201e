#include "oracle/bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/lanes.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

double sech_squared(double x) {
  const double e = std::exp(-2 * std::min(x, 300.0));
  return 4 * e / ((1 + e) * (1 + e));
}

// Arrays of one row, kept by each thread from row to row.
struct Scratch {
  std::vector<double> error, exponent, rescales;
  std::vector<double> tile_moves, split_high, split_low, split_moves;
  void resize(Index n) {
    for (auto* v : {&error, &exponent, &rescales}) v->resize(static_cast<std::size_t>(n));
  }
};
Scratch& scratch_of_thread(Index n) {
  thread_local Scratch scratch;
  scratch.resize(n);
  return scratch;
}

// A tile of a row: keys [first, last) relative to key0. Tiles and splits count from those of key0.
struct Tile {
  Index index, split, first, last;
};
template <class Body>
void for_each_tile(const Contract& c, const RowTruth& t, const Body& body) {
  for (Index j = 0; j < t.count;) {
    const Index key = t.key0 + j, tile = key / c.tile, end = std::min(t.count, (tile + 1) * c.tile - t.key0);
    body(Tile{tile - t.key0 / c.tile, c.split_keys > 0 ? key / c.split_keys - t.key0 / c.split_keys : 0, j, end});
    j = end;
  }
}

Index tiles_of_a_split(const Contract& c, Index tiles) { return c.split_keys > 0 ? std::min(tiles, c.split_keys / c.tile) : tiles; }

// How many corrections after each key's tile can differ from 1. A tile can move the maximum of its split only if its
// largest possible score reaches that maximum's least possible value, and a split that of all splits before it; a split
// is corrected itself only if those before it can exceed it. Returns the largest such number.
double count_rescales(const Contract& c, const RowTruth& t, const double* error, Index tiles, Index merges, Scratch& s) {
  double* after = s.rescales.data();
  const double sink = t.has_sink ? 1 : 0;  // merged at the end: one more possible correction for every key
  if (!c.ordered || c.splits > 1) {
    const double all =
        std::max(0.0, static_cast<double>(std::min(tiles_of_a_split(c, tiles), t.live) - 1)) + static_cast<double>(merges) + (c.splits > 1 ? 2 : 0) + sink;
    std::fill_n(after, t.count, all);
    return all;
  }
  auto& moves = s.tile_moves;
  moves.assign(static_cast<std::size_t>(tiles), 0);
  s.split_high.assign(static_cast<std::size_t>(merges) + 1, -inf);
  s.split_low.assign(static_cast<std::size_t>(merges) + 1, -inf);
  for_each_tile(c, t, [&](const Tile& tile) {
    LaneMax high(-inf), low(-inf);
    for_lanes(tile.first, tile.last, [&]<class L>(Index j, L) {
      const L e = load_as<L>(error + j), gap = load_as<L>(t.gap + j);
      high.add(e - gap);
      low.add(-e - gap);
    });
    const double highest = high.total(), lowest = low.total();
    double &split_high = s.split_high[static_cast<std::size_t>(tile.split)], &split_low = s.split_low[static_cast<std::size_t>(tile.split)];
    moves[static_cast<std::size_t>(tile.index)] = split_low > -inf && highest >= split_low ? 1 : 0;
    split_high = std::max(split_high, highest);
    split_low = std::max(split_low, lowest);
  });
  // split_moves: the own correction, if any, and those by later splits.
  auto& split_moves = s.split_moves;
  split_moves.assign(s.split_high.size(), 0);
  double high = -inf, low = -inf;
  for (std::size_t k = 0; k < split_moves.size(); ++k) {
    if (low > -inf && s.split_high[k] >= low)
      for (std::size_t before = 0; before < k; ++before) split_moves[before] += 1;
    split_moves[k] = high > -inf && high >= s.split_low[k] ? 1 : 0;
    high = std::max(high, s.split_high[k]);
    low = std::max(low, s.split_low[k]);
  }
  // From the last tile to the first: how many follow in the split.
  const Index first_tile = t.key0 / c.tile;
  double all = 0, later = 0;
  for (Index k = tiles; k-- > 0;) {
    const Index key0 = (first_tile + k) * c.tile;
    const auto split = static_cast<std::size_t>(c.split_keys > 0 ? key0 / c.split_keys - t.key0 / c.split_keys : 0);
    if (c.split_keys > 0 && (key0 + c.tile) % c.split_keys == 0) later = 0;
    const double mine = later + split_moves[split] + sink;
    later += moves[static_cast<std::size_t>(k)];
    all = std::max(all, mine);
    std::fill(after + std::max<Index>(0, key0 - t.key0), after + std::min(t.count, key0 + c.tile - t.key0), mine);
  }
  return all;
}

// H_j; 0 for masked keys.
void exponent_errors(const Contract& c, const BoundContext& x, const RowTruth& t, const double* error, const double* rescales, double delta, double* exponent) {
  const double u = c.roundoff;
  const double per_argument = c.argument_roundings * u * (1 + 4 * u) + c.exp_ulp_per_unit * 2 * u, per_exp = c.exp_ulp * 2 * u;
  for (Index j = 0; j < t.count; ++j) {
    const double h = (error[j] + per_argument * (t.gap[j] + error[j] + delta) + (1 + rescales[j]) * per_exp) * (1 + 1e-6);
    exponent[j] = t.gap[j] < inf ? h : 0;
  }
  if (c.scale_error > 0 && x.softcap == 0) {
    // A relative error of the folded constant is common to a row but for score differences.
    Index best = -1;
    for (Index j = 0; j < t.count; ++j)
      if (t.gap[j] < inf && (best < 0 || t.gap[j] < t.gap[best])) best = j;
    for (Index j = 0; j < t.count; ++j)
      if (t.gap[j] < inf) exponent[j] += 1.001 * c.scale_error * x.scale * std::fabs(t.dot[j] - t.dot[best]);
  }
  if (c.fused_argument)
    for (Index j = 0; j < t.count; ++j)
      if (t.gap[j] < inf) exponent[j] += 1.002 * u * (std::max(std::fabs(t.max - t.gap[j]), std::fabs(t.max)) + delta);
}

// Whether a score could leave the range.
void find_overflow(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out) {
  if (!t.absolute) return;  // the caller has excluded it
  const double g = gamma_factor(dot_roundings(c, static_cast<double>(x.dim)), c.dot_roundoff);
  const double score_limit = c.score_dtype ? std::min(c.largest, format(*c.score_dtype).max_finite) : c.largest;
  // Before the scale in the accumulator, after it (and with every bias) where scores are kept.
  const double per_unscaled = (1 + g) / c.largest, per_scaled = (1 + g) * x.scale / score_limit, per_magnitude = 1 / score_limit;
  const double per_dot = std::max(1 / c.largest, x.scale / score_limit);
  LaneMax possible(0), certain(0);
  for_lanes(0, t.count, [&]<class L>(Index j, L zero) {
    const L absolute = load_as<L>(t.absolute + j), dot = load_as<L>(t.dot + j), unscaled = absolute * per_unscaled;
    const L scaled = absolute * per_scaled + (t.magnitude ? load_as<L>(t.magnitude + j) : zero) * per_magnitude;
    const auto live = load_as<L>(t.gap + j) < inf;
    possible.add(live ? larger(unscaled, scaled) : zero);
    certain.add(live ? larger(dot, -dot) * per_dot : zero);
  });
  out.may_overflow = !(possible.total() * (1 + 1e-6) < 1);
  out.must_overflow = certain.total() > (1 + g) * (1 + 1e-6) && x.softcap == 0 && !t.magnitude;
}

}  // namespace

void score_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error) {
  const double u = c.roundoff, dim = static_cast<double>(x.dim + x.projection);
  const double n = dot_roundings(c, dim);
  const double relative = (1 + c.query_prescale) * (1 + gamma_factor(n, c.dot_roundoff)) - 1;
  const bool ordered = c.ordered && t.prefix && c.query_prescale == 0;
  const double per_prefix = c.dot_roundoff * (1 + 2 * n * c.dot_roundoff);
  const double per_absolute = c.dot_roundoff * c.dot_roundoff * n * n + (c.products_rounded ? 1.01 * u : 0);
  const double tau = c.fused_argument && t.additions == 0 && x.softcap == 0 ? 0 : u;
  const double per_score = tau + (c.query_prescale > 0 ? 2 * u : 0);
  const double floor = (2 * dim + 2) * c.product_floor * std::max(1.0, x.scale);
  const double per_dot = per_score * x.scale, scale = x.scale * (1 + tau);
  const double limit = t.absolute_limit;
  const double* absolute = t.absolute;
  const double* prefix = t.prefix;
  const double* dot = t.dot;
  if (!ordered) {
    for (Index j = 0; j < t.count; ++j) error[j] = absolute[j] * scale * relative + std::fabs(dot[j]) * per_dot + floor;
  } else if (absolute) {
    for (Index j = 0; j < t.count; ++j)
      error[j] = std::min(absolute[j] * relative, per_prefix * prefix[j] + per_absolute * absolute[j]) * scale + std::fabs(dot[j]) * per_dot + floor;
  } else {
    // Each product is a difference of partial sums.
    for (Index j = 0; j < t.count; ++j)
      error[j] = (per_prefix * prefix[j] + per_absolute * std::min(limit, 2 * prefix[j])) * scale + std::fabs(dot[j]) * per_dot + floor;
  }
  if (x.softcap > 0) {
    // c tanh(t / c): the argument is rounded twice (1/c and the product); the slope between t and t-hat is
    // at most sech^2 at the nearer end; then the error of tanh and the product with c.
    for (Index j = 0; j < t.count; ++j) {
      const double magnitude = x.scale * std::fabs(t.dot[j]);
      const double argument = error[j] + 2.01 * u * (magnitude + error[j]) + c.scale_error * magnitude;
      const double slope = sech_squared(std::max(0.0, magnitude - argument) / x.softcap);
      const double capped = std::min(x.softcap, magnitude);
      error[j] = slope * argument + (capped + slope * argument) * (2 * u * c.tanh_ulp + 1.01 * u) + c.product_floor * (1 + x.softcap);
      error[j] = std::min(error[j], 2.01 * x.softcap + c.product_floor);  // both lie in [-c, c]
    }
  }
  if (t.additions > 0) {
    for (Index j = 0; j < t.count; ++j) {
      if (t.magnitude[j] == 0 || t.gap[j] == inf) continue;  // adding zero is exact
      const double s = std::fabs(t.max - t.gap[j]);
      const double partial = x.scale * std::fabs(t.dot[j]) + t.magnitude[j];
      // ALiBi's product rounds, and beyond 2^24 its distance too.
      error[j] = error[j] * (1 + 2 * u * t.additions) + 2 * u * s + 2.01 * u * t.product[j] + 2 * u * (t.additions - 1) * partial;
    }
  }
  if (c.score_dtype) {
    const double score_u = unit_roundoff(*c.score_dtype), score_floor = half_min_subnormal(*c.score_dtype) * std::max(1.0, x.scale);
    for (Index j = 0; j < t.count; ++j)
      if (t.gap[j] < inf) error[j] += std::max(score_u * (std::fabs(t.max - t.gap[j]) + error[j]), score_floor);
  }
}

double expm1_above(double h) { return h <= 1 ? h * (1 + h) : std::expm1(std::min(h, 700.0)) * (1 + 1e-12); }

bool uses_order(const Contract& c) { return c.ordered && c.splits == 1; }

bool tail_is_second_order(const Contract& c, const BoundContext& x) { return !c.weight_dtype && !c.products_rounded && !x.dropout; }

bool excludes_overflow(const Contract& c, const BoundContext& x, double absolute, double magnitude) {
  const double above = absolute * (1 + gamma_factor(dot_roundings(c, static_cast<double>(x.dim)), c.dot_roundoff)) * (1 + 1e-6);
  const double score_limit = c.score_dtype ? std::min(c.largest, format(*c.score_dtype).max_finite) : c.largest;
  return above < c.largest && above * x.scale + magnitude * (1 + 1e-6) < score_limit;
}

bool needs_absolute(const Contract& c, const BoundContext& x) {
  const double n = dot_roundings(c, static_cast<double>(x.dim));
  return !c.ordered || c.query_prescale > 0 || c.products_rounded || !(c.dot_roundoff * n * n < 0x1p-7);
}

double exponent_ratio(const Contract& c, Index dim) {
  const double smaller = 0x1p-53 / std::min(c.roundoff, c.dot_roundoff);
  return smaller * std::max({2.1 * (static_cast<double>(dim) + 2), 65 / std::min(c.exp_ulp, c.tanh_ulp), 15.0});
}

void derive_row_bound(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out, const SumWeights& weights) {
  const double u = c.roundoff;
  const Index n = t.count;
  Scratch& s = scratch_of_thread(n);
  out = {};
  out.keys = n;
  out.tiles = n == 0 ? 1 : (t.key0 + n - 1) / c.tile - t.key0 / c.tile + 1;
  out.merges = n == 0 || c.split_keys == 0 ? 0 : (t.key0 + n - 1) / c.split_keys - t.key0 / c.split_keys;
  score_errors(c, x, t, s.error.data());
  // Delta: how far the computed maximum can lie from the exact one.
  LaneMax above(0), largest_error(0);
  for_lanes(0, n, [&]<class L>(Index j, L zero) {
    const L e = load_as<L>(s.error.data() + j), gap = load_as<L>(t.gap + j);
    above.add(e - gap);
    largest_error.add(gap < inf ? e : zero);
  });
  const double delta = above.total() * (1 + 1e-12);
  out.gap_error = largest_error.total() + delta;
  out.has_sink = t.has_sink;
  const double all_rescales = count_rescales(c, t, s.error.data(), out.tiles, out.merges, s);
  exponent_errors(c, x, t, s.error.data(), s.rescales.data(), delta, s.exponent.data());
  LaneMax largest_exponent(0);
  for_lanes(0, n, [&]<class L>(Index j, L) { largest_exponent.add(load_as<L>(s.exponent.data() + j)); });
  out.largest_exponent = largest_exponent.total();

  const double live = static_cast<double>(t.live + (t.has_sink ? 1 : 0)), splits = c.splits > 1 ? c.splits : 0;
  // The longest chain of sums is that of a split and of the merges. A block FMA passes over masked keys too.
  const double merges = static_cast<double>(out.merges);
  const Index split_keys = c.split_keys > 0 ? c.split_keys : n;
  const double chain = static_cast<double>(std::min(c.dot_block > 0 ? n + t.key0 % c.dot_block : t.live, split_keys));
  out.gamma_dot = gamma_factor(dot_roundings(c, chain + static_cast<double>(x.projection)) + all_rescales + 1 + splits + merges, c.dot_roundoff);
  const double in_split = static_cast<double>(c.ordered ? c.tile + tiles_of_a_split(c, out.tiles) : split_keys);
  const double n_sum = std::min(live, in_split + merges);
  out.gamma_sum = gamma_factor(n_sum + all_rescales + 1 + splits, u);

  const double weight_u = c.weight_dtype ? unit_roundoff(*c.weight_dtype) : 0;
  const double unit = std::exp(std::min(0.0, t.max - t.lse) + std::min(delta, 700.0));  // at least 1 / l-hat
  const double weight_floor = c.weight_dtype ? half_min_subnormal(*c.weight_dtype) * unit : 0;
  const double exp_floor = c.exp_floor * unit;
  const double dropout = x.dropout ? gamma_factor(3, u) : 0;  // 1 - p, its inverse, and the product with it
  const double rounded_product = c.products_rounded ? 1.01 * u : 0;
  const double in_sum = c.sum_from_rounded ? 1 : 0;

  const bool second_order_tail = tail_is_second_order(c, x);
  const bool small = out.largest_exponent <= 1;
  Index remaining = 0, following = 0, split = -1;  // live keys and tiles of the split from here on
  const double merge_u = 1.01 * std::max(u, c.dot_roundoff);
  LaneSum centred_total, sum_weight, defects;
  for_each_tile(c, t, [&](const Tile& tile) {
    if (tile.split != split) {
      split = tile.split;
      const Index end = c.split_keys > 0 ? std::min(n, ((t.key0 + tile.first) / c.split_keys + 1) * c.split_keys - t.key0) : n;
      remaining = end - tile.first;
      if (t.live < n) remaining = std::count_if(t.gap + tile.first, t.gap + end, [](double gap) { return gap < inf; });
      following = (t.key0 + end - 1) / c.tile - (t.key0 + tile.first) / c.tile + 1;
    }
    --following;
    // What a perturbation of this tile's keys meets: an addition at each key of the split that follows in the order of the
    // sum, those of this tile included (at least as many as really do), a correction at each tile end, two roundings a merge.
    const double own_merges = static_cast<double>(std::min(out.merges, out.merges + 1 - split));
    const double per_error =
        c.dot_roundoff * static_cast<double>(remaining) + 1.01 * u * static_cast<double>(following + (t.has_sink ? 1 : 0)) + 2 * merge_u * own_merges;
    out.tail_per_centred = std::max(out.tail_per_centred, per_error);
    const double gamma_dot = out.gamma_dot, gamma_sum = out.gamma_sum;
    double* exponent = s.exponent.data();
    if (!small)
      for (Index j = tile.first; j < tile.last; ++j) exponent[j] = expm1_above(exponent[j]);
    for_lanes(tile.first, tile.last, [&]<class L>(Index j, L zero) {
      const L one = zero + 1, gap = load_as<L>(t.gap + j), h = load_as<L>(exponent + j);
      const L is_live = gap < inf ? one : zero;
      const L p = load_as<L>(t.weight + j), g = small ? h * (one + h) : h, e = one + g;
      const L omega = (1 + load_as<L>(s.rescales.data() + j)) * exp_floor;
      if (second_order_tail) {
        const L centred = is_live * (p * g + omega), sum = p * e;
        if (weights.centred) store_lanes(weights.centred + j, centred);
        if (weights.absolute) store_lanes(weights.absolute + j, gamma_dot * sum);
        centred_total.add(centred);
        sum_weight.add(sum);
        defects.add(centred + sum * gamma_sum);
        return;
      }
      const L cast_least = weight_u * p + zero, at_least = cast_least > weight_floor ? cast_least : zero + weight_floor;
      const L rho = p < at_least ? p : at_least;
      const L cast = (1 - in_sum) * rho + dropout * (p + rho);
      const L centred = is_live * (p * g + omega + in_sum * e * rho);
      if (weights.centred) store_lanes(weights.centred + j, centred);
      if (weights.absolute) store_lanes(weights.absolute + j, is_live * (e * (cast + gamma_dot * (p + rho))));
      if (weights.tail) store_lanes(weights.tail + j, is_live * (e * (cast + rounded_product * (p + rho)) + (p * g + omega + e * rho) * per_error));
      centred_total.add(centred);
      sum_weight.add(p * e);
      defects.add(centred + p * e * gamma_sum);
    });
    if (t.live == n) remaining -= tile.last - tile.first;
    else remaining -= std::count_if(t.gap + tile.first, t.gap + tile.last, [](double gap) { return gap < inf; });
  });
  out.centred_total = centred_total.total();
  out.sum_weight = sum_weight.total();
  double defect = defects.total();
  if (t.kept)
    for (Index j = 0; j < n; ++j) {
      if (t.kept[j] != 0) continue;
      out.zero_centred += weights.centred[j];
      for (double* w : {weights.centred, weights.absolute, weights.tail})
        if (w) w[j] = 0;
    }
  if (t.has_sink) {
    const double argument = t.sink_gap + delta;
    const double h = (c.argument_roundings * u * argument * (1 + 4 * u) + (1 + all_rescales) * c.exp_ulp * 2 * u + c.exp_ulp_per_unit * 2 * u * argument +
                      (c.fused_argument ? 1.001 * u * (std::fabs(t.max) + t.sink_gap + delta) + c.scale_error * (std::fabs(t.max) + t.sink_gap) : 0)) *
                     (1 + 1e-6);
    const double sink_growth = expm1_above(h), omega = (1 + all_rescales) * exp_floor;
    out.zero_centred += t.sink_weight * sink_growth + omega;
    out.sum_weight += t.sink_weight * (1 + sink_growth);
    defect += t.sink_weight * (sink_growth + (1 + sink_growth) * out.gamma_sum) + omega;
    out.largest_exponent = std::max(out.largest_exponent, h);
  }
  find_overflow(c, x, t, out);
  // The fused argument of the maximum is not exactly 0: its weight can exceed 1, up to e^H.
  if (c.fused_argument && out.largest_exponent > std::log(c.weight_dtype ? std::min(c.largest, format(*c.weight_dtype).max_finite) : c.largest) - 1)
    out.may_overflow = true;

  if (!second_order_tail) out.tail_per_centred = 0;
  out.denominator = 1 - defect;
  out.vacuous = !(out.denominator > 0.1) || !std::isfinite(out.gamma_dot) || out.may_overflow;

  const double reach = std::fabs(t.lse - t.max) + delta + std::min(defect, 1.0);
  out.lse = out.vacuous ? inf
                        : -std::log1p(-defect) + c.log_ulp * 2 * u * (reach + (reach < 0.7 ? 0.5 : 0)) +
                              1.01 * u * (std::fabs(t.max) + std::fabs(t.lse) + 2 * delta) + c.product_floor;
}

double element_bound(const Contract& c, const RowBound& b, double o, const ColumnSums& sums, double hull, double largest_value) {
  const double u = c.roundoff, magnitude = std::fabs(o);
  const double common = sums.centred + magnitude * (b.zero_centred + b.sum_weight * b.gamma_sum);
  double numerator = sums.absolute + common;
  if (uses_order(c)) {
    const double merge = b.has_sink ? 1.01 * u * magnitude : 0;  // the correction at the end
    const double tail = b.tail_per_centred > 0 ? b.tail_per_centred * (sums.centred + magnitude * b.centred_total) : sums.tail;
    numerator = (sums.prefix + tail + merge) * (1 + 2 * b.gamma_dot) + common;
  }
  const double weight_u = c.weight_dtype ? unit_roundoff(*c.weight_dtype) : 0;
  const double weight_floor = c.weight_dtype ? half_min_subnormal(*c.weight_dtype) * static_cast<double>(b.keys) : 0;
  const double slack = 1.1 * (weight_u + weight_floor + b.gamma_dot + b.gamma_sum + 4 * u) * largest_value;
  double bound = b.vacuous ? hull + slack : std::min(hull + slack, numerator / b.denominator);
  bound += (static_cast<double>(b.keys) + static_cast<double>(b.tiles) + 3 * static_cast<double>(b.merges) + 2) * c.product_floor;
  return (bound * (1 + 1.01 * c.division_roundings * u) + 1.01 * c.division_roundings * u * magnitude) * (1 + 1e-9);
}

}  // namespace assay
