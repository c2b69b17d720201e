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

// Reductions in eight lanes: the loops below stay free of them, so that compilers vectorize both.
double sum_of(const double* x, Index n) {
  Lanes8 total{};
  Index j = 0;
  for (; j + lane_count <= n; j += lane_count) total += load_lanes(x + j);
  double sum = 0;
  for (int l = 0; l < lane_count; ++l) sum += total[l];
  for (; j < n; ++j) sum += x[j];
  return sum;
}
double max_of(const double* x, Index n, double least) {
  Lanes8 most = least - Lanes8{};
  Index j = 0;
  for (; j + lane_count <= n; j += lane_count) most = larger(most, load_lanes(x + j));
  for (int l = 0; l < lane_count; ++l) least = std::max(least, most[l]);
  for (; j < n; ++j) least = std::max(least, x[j]);
  return least;
}

// Arrays of one row, kept by each thread from row to row.
struct Scratch {
  std::vector<double> error, exponent, rescales, defect, weight;
  std::vector<double> tile_moves, split_high, split_low, split_moves;
  void resize(Index n) {
    for (auto* v : {&error, &exponent, &rescales, &defect, &weight}) v->resize(static_cast<std::size_t>(n));
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
    double high[lane_count], low[lane_count];
    std::fill_n(high, lane_count, -inf);
    std::fill_n(low, lane_count, -inf);
    for (Index j = tile.first; j < tile.last; ++j) {
      double &h = high[j % lane_count], &l = low[j % lane_count];
      h = std::max(h, error[j] - t.gap[j]);
      l = std::max(l, -error[j] - t.gap[j]);
    }
    const double highest = *std::max_element(high, high + lane_count), lowest = *std::max_element(low, low + lane_count);
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

}  // namespace

void score_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error) {
  const double u = c.roundoff, dim = static_cast<double>(x.dim);
  const double n = dot_roundings(c, dim);
  const double relative = (1 + c.query_prescale) * (1 + gamma_factor(n, c.dot_roundoff)) - 1;
  const bool ordered = c.ordered && t.prefix && c.query_prescale == 0;
  const double per_prefix = c.dot_roundoff * (1 + 2 * n * c.dot_roundoff);
  const double per_absolute = c.dot_roundoff * c.dot_roundoff * n * n + (c.products_rounded ? 1.01 * u : 0);
  const double tau = c.fused_argument && t.additions == 0 && x.softcap == 0 ? 0 : u;
  const double per_score = tau + (c.query_prescale > 0 ? 2 * u : 0);
  const double floor = (2 * dim + 2) * c.product_floor * std::max(1.0, x.scale);
  const double per_dot = per_score * x.scale;
  if (ordered) {
    for (Index j = 0; j < t.count; ++j) {
      const double e = std::min(t.absolute[j] * relative, per_prefix * t.prefix[j] + per_absolute * t.absolute[j]);
      error[j] = e * x.scale * (1 + tau) + std::fabs(t.dot[j]) * per_dot + floor;
    }
  } else {
    for (Index j = 0; j < t.count; ++j) error[j] = t.absolute[j] * x.scale * relative * (1 + tau) + std::fabs(t.dot[j]) * per_dot + floor;
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
  double* defect_of = s.defect.data();
  const double* error_of = s.error.data();
  for (Index j = 0; j < n; ++j) defect_of[j] = error_of[j] - t.gap[j];
  const double delta = max_of(s.defect.data(), n, 0) * (1 + 1e-12);
  for (Index j = 0; j < n; ++j) defect_of[j] = t.gap[j] < inf ? error_of[j] : 0;
  out.gap_error = max_of(s.defect.data(), n, 0) + delta;
  out.has_sink = t.has_sink;
  const double all_rescales = count_rescales(c, t, s.error.data(), out.tiles, out.merges, s);
  exponent_errors(c, x, t, s.error.data(), s.rescales.data(), delta, s.exponent.data());
  out.largest_exponent = max_of(s.exponent.data(), n, 0);

  const double live = static_cast<double>(t.live + (t.has_sink ? 1 : 0)), splits = c.splits > 1 ? c.splits : 0;
  // The longest chain of sums is that of a split and of the merges. A block FMA passes over masked keys too.
  const double merges = static_cast<double>(out.merges);
  const Index split_keys = c.split_keys > 0 ? c.split_keys : n;
  const double chain = static_cast<double>(std::min(c.dot_block > 0 ? n : t.live, split_keys));
  out.gamma_dot = gamma_factor(dot_roundings(c, chain) + all_rescales + 1 + splits + merges, c.dot_roundoff);
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

  // e^H - 1, from above.
  double* growth = s.error.data();
  const double* exponent_of = s.exponent.data();
  for (Index j = 0; j < n; ++j) growth[j] = exponent_of[j] * (1 + exponent_of[j]);
  if (out.largest_exponent > 1)
    for (Index j = 0; j < n; ++j) growth[j] = expm1_above(exponent_of[j]);

  Index remaining = 0, following = 0, split = -1;  // live keys and tiles of the split from here on
  const double merge_u = 1.01 * std::max(u, c.dot_roundoff);
  for_each_tile(c, t, [&](const Tile& tile) {
    if (tile.split != split) {
      split = tile.split;
      const Index end = c.split_keys > 0 ? std::min(n, ((t.key0 + tile.first) / c.split_keys + 1) * c.split_keys - t.key0) : n;
      remaining = 0;
      for (Index j = tile.first; j < end; ++j) remaining += t.gap[j] < inf;
      following = (t.key0 + end - 1) / c.tile - (t.key0 + tile.first) / c.tile + 1;
    }
    --following;
    // What a perturbation of this tile's keys meets: an addition at each key of the split that follows in the order of the
    // sum, those of this tile included (at least as many as really do), a correction at each tile end, two roundings a merge.
    const double own_merges = static_cast<double>(std::min(out.merges, out.merges + 1 - split));
    const double per_error =
        c.dot_roundoff * static_cast<double>(remaining) + 1.01 * u * static_cast<double>(following + (t.has_sink ? 1 : 0)) + 2 * merge_u * own_merges;
    const double gamma_dot = out.gamma_dot, gamma_sum = out.gamma_sum;
    // No two of these arrays overlap; saying so lets the loop vectorize.
    const double* __restrict__ gap = t.gap;
    const double* __restrict__ weight = t.weight;
    const double* __restrict__ rescales = s.rescales.data();
    const double* __restrict__ grown = growth;
    double* __restrict__ centred = weights.centred;
    double* __restrict__ absolute = weights.absolute;
    double* __restrict__ tail = weights.tail;
    double* __restrict__ defects = s.defect.data();
    double* __restrict__ sums = s.weight.data();
    for (Index j = tile.first; j < tile.last; ++j) {
      const double p = weight[j], g = grown[j], e = 1 + g;
      const double is_live = gap[j] < inf ? 1 : 0;
      const double rho = std::min(p, std::max(weight_u * p, weight_floor));
      const double omega = (1 + rescales[j]) * exp_floor;
      const double cast = (1 - in_sum) * rho + dropout * (p + rho);
      centred[j] = is_live * (p * g + omega + in_sum * e * rho);
      absolute[j] = is_live * (e * (cast + gamma_dot * (p + rho)));
      tail[j] = is_live * (e * (cast + rounded_product * (p + rho)) + (p * g + omega + e * rho) * per_error);
      defects[j] = is_live * (p * (g + e * gamma_sum) + omega + in_sum * e * rho);
      sums[j] = p * e;
    }
    for (Index j = tile.first; j < tile.last; ++j) remaining -= gap[j] < inf;
  });
  out.centred_total = sum_of(weights.centred, n);
  out.sum_weight = sum_of(s.weight.data(), n);
  double defect = sum_of(s.defect.data(), n);
  if (t.kept)
    for (Index j = 0; j < n; ++j) {
      if (t.kept[j] != 0) continue;
      out.zero_centred += weights.centred[j];
      weights.centred[j] = weights.absolute[j] = weights.tail[j] = 0;
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
  const double g = gamma_factor(dot_roundings(c, static_cast<double>(x.dim)), c.dot_roundoff);
  double* reached = s.weight.data();
  const double score_limit = c.score_dtype ? std::min(c.largest, format(*c.score_dtype).max_finite) : c.largest;
  const double* magnitude = t.magnitude;
  for (Index j = 0; j < n; ++j) {
    // Before the scale in the accumulator, after it (and with every bias) where scores are kept.
    const double unscaled = t.absolute[j] * (1 + g), scaled = unscaled * x.scale + (magnitude ? magnitude[j] : 0);
    defect_of[j] = t.gap[j] < inf ? std::max(unscaled / c.largest, scaled / score_limit) : 0;
    reached[j] = t.gap[j] < inf ? std::fabs(t.dot[j]) * std::max(1 / c.largest, x.scale / score_limit) : 0;
  }
  out.may_overflow = !(max_of(s.defect.data(), n, 0) * (1 + 1e-6) < 1);
  out.must_overflow = max_of(s.weight.data(), n, 0) > (1 + g) * (1 + 1e-6) && x.softcap == 0 && !t.magnitude;
  // The fused argument of the maximum is not exactly 0: its weight can exceed 1, up to e^H.
  if (c.fused_argument && out.largest_exponent > std::log(c.weight_dtype ? std::min(c.largest, format(*c.weight_dtype).max_finite) : c.largest) - 1)
    out.may_overflow = true;

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
  if (c.ordered && c.splits == 1) {
    const double merge = b.has_sink ? 1.01 * u * magnitude : 0;  // the correction at the end
    numerator = std::min(numerator, (sums.prefix + sums.tail + merge) * (1 + 2 * b.gamma_dot) + common);
  }
  const double weight_u = c.weight_dtype ? unit_roundoff(*c.weight_dtype) : 0;
  const double weight_floor = c.weight_dtype ? half_min_subnormal(*c.weight_dtype) * static_cast<double>(b.keys) : 0;
  const double slack = 1.1 * (weight_u + weight_floor + b.gamma_dot + b.gamma_sum + 4 * u) * largest_value;
  double bound = b.vacuous ? hull + slack : std::min(hull + slack, numerator / b.denominator);
  bound += (static_cast<double>(b.keys) + static_cast<double>(b.tiles) + 3 * static_cast<double>(b.merges) + 2) * c.product_floor;
  return (bound * (1 + 1.01 * c.division_roundings * u) + 1.01 * c.division_roundings * u * magnitude) * (1 + 1e-9);
}

}  // namespace assay
