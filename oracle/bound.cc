#include "oracle/bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

double sech_squared(double x) {
  const double e = std::exp(-2 * std::min(x, 300.0));
  return 4 * e / ((1 + e) * (1 + e));
}

// E_j: |computed score - s_j|.
void score_errors(const Contract& c, const BoundContext& x, const RowTruth& t, std::vector<double>& error) {
  const double u = c.roundoff, dim = static_cast<double>(x.dim);
  const double n = dot_roundings(c, dim);
  const double relative = (1 + c.query_prescale) * (1 + gamma_factor(n, c.dot_roundoff)) - 1;
  const bool ordered = c.ordered && t.prefix && c.query_prescale == 0;
  const double per_prefix = c.dot_roundoff * (1 + 2 * n * c.dot_roundoff);
  const double per_absolute = c.dot_roundoff * c.dot_roundoff * n * n + (c.products_rounded ? 1.01 * u : 0);
  const double tau = c.fused_argument && t.additions == 0 && x.softcap == 0 ? 0 : u;
  const double prescale = c.query_prescale > 0 ? 2 * u : 0;
  const double score_u = c.score_dtype ? unit_roundoff(*c.score_dtype) : 0;
  const double score_floor = c.score_dtype ? half_min_subnormal(*c.score_dtype) * std::max(1.0, x.scale) : 0;
  const double floor = (2 * dim + 2) * c.product_floor * std::max(1.0, x.scale);
  error.resize(static_cast<std::size_t>(t.count));
  for (Index j = 0; j < t.count; ++j) {
    const double magnitude = std::fabs(t.score[j]);
    double e = t.absolute[j] * relative;
    if (ordered) e = std::min(e, per_prefix * t.prefix[j] + per_absolute * t.absolute[j]);
    e = e * (1 + tau) + magnitude * (tau + prescale);
    error[static_cast<std::size_t>(j)] = e + floor;
  }
  if (x.softcap > 0) {
    // c tanh(t / c): the argument is rounded twice (1/c and the product); the slope between t and t-hat is
    // at most sech^2 at the nearer end; then the error of tanh and the product with c.
    for (Index j = 0; j < t.count; ++j) {
      double& e = error[static_cast<std::size_t>(j)];
      const double magnitude = std::fabs(t.score[j]);
      const double argument = e + 2.01 * u * (magnitude + e) + c.scale_error * magnitude;
      const double slope = sech_squared(std::max(0.0, magnitude - argument) / x.softcap);
      const double capped = std::min(x.softcap, magnitude);
      e = slope * argument + (capped + slope * argument) * (2 * u * c.tanh_ulp + 1.01 * u) + c.product_floor * (1 + x.softcap);
    }
  }
  if (t.additions > 0) {
    for (Index j = 0; j < t.count; ++j) {
      if (t.magnitude[j] == 0) continue;  // adding zero is exact
      double& e = error[static_cast<std::size_t>(j)];
      const double s = std::fabs(t.max - t.gap[j]);
      const double partial = std::fabs(t.score[j]) + t.magnitude[j];
      e = e * (1 + 2 * u * t.additions) + 2 * u * s + 1.01 * u * t.product[j] + 2 * u * (t.additions - 1) * partial;
    }
  }
  if (score_u > 0)
    for (Index j = 0; j < t.count; ++j) {
      double& e = error[static_cast<std::size_t>(j)];
      e += std::max(score_u * (std::fabs(t.max - t.gap[j]) + e), score_floor);
    }
}

struct Rescales {
  std::vector<double> after;  // per key: maximum updates that can follow its tile
  double all = 0;
  Index tiles = 1;
};

// How often the running maximum can move after a key's tile: a tile can move it only if its largest possible
// score reaches the running maximum of the smallest possible ones; the correction is exactly 1 otherwise.
void count_rescales(const Contract& c, const RowTruth& t, const std::vector<double>& error, Rescales& r) {
  const Index first = t.key0 / c.tile;
  const Index tiles = t.count == 0 ? 1 : (t.key0 + t.count - 1) / c.tile - first + 1;
  r.tiles = tiles;
  r.after.assign(static_cast<std::size_t>(t.count), 0);
  if (!c.ordered || c.splits > 1) {
    r.all = std::max(0.0, static_cast<double>(std::min(tiles, t.live) - 1)) + (c.splits > 1 ? 2 : 0);
    std::fill(r.after.begin(), r.after.end(), r.all);
  } else {
    const auto n = static_cast<std::size_t>(tiles);
    std::vector<double> high(n, -inf), low(n, -inf);
    for (Index j = 0; j < t.count; ++j) {
      if (t.gap[j] == inf) continue;
      const auto tile = static_cast<std::size_t>((t.key0 + j) / c.tile - first);
      high[tile] = std::max(high[tile], error[static_cast<std::size_t>(j)] - t.gap[j]);
      low[tile] = std::max(low[tile], -error[static_cast<std::size_t>(j)] - t.gap[j]);
    }
    std::vector<double> moves(n + 1, 0);
    double running = -inf;
    for (std::size_t k = 0; k < n; ++k) {
      moves[k] = running > -inf && high[k] >= running ? 1 : 0;
      running = std::max(running, low[k]);
    }
    for (std::size_t k = n; k-- > 0;) moves[k] += moves[k + 1];
    r.all = moves[0];
    for (Index j = 0; j < t.count; ++j) r.after[static_cast<std::size_t>(j)] = moves[static_cast<std::size_t>((t.key0 + j) / c.tile - first) + 1];
  }
  if (t.has_sink) {  // merged at the end: one more possible correction for every key
    for (double& a : r.after) a += 1;
    r.all += 1;
  }
}

// Delta: how far the computed maximum can lie from the exact one.
double max_error(const RowTruth& t, const std::vector<double>& error) {
  double delta = 0;
  for (Index j = 0; j < t.count; ++j) delta = std::max(delta, error[static_cast<std::size_t>(j)] - t.gap[j]);
  return delta * (1 + 1e-12);
}

void exponent_errors(const Contract& c, const BoundContext& x, const RowTruth& t, const std::vector<double>& error, const Rescales& r,
                     double delta, std::vector<double>& exponent) {
  const double u = c.roundoff;
  double best = 0;  // score of the maximum; only a folded constant needs it
  if (c.scale_error > 0 && x.softcap == 0)
    for (Index j = 0, at = -1; j < t.count; ++j)
      if (t.gap[j] < inf && (at < 0 || t.gap[j] < t.gap[at])) best = t.score[at = j];
  exponent.resize(static_cast<std::size_t>(t.count));
  for (Index j = 0; j < t.count; ++j) {
    const double e = error[static_cast<std::size_t>(j)], argument = t.gap[j] + e + delta;
    double h = e + c.argument_roundings * u * argument * (1 + 4 * u) + (1 + r.after[static_cast<std::size_t>(j)]) * c.exp_ulp * 2 * u +
               c.exp_ulp_per_unit * 2 * u * argument;
    if (c.scale_error > 0 && x.softcap == 0) h += c.scale_error * std::fabs(t.score[j] - best);
    if (c.fused_argument) h += 1.001 * u * (std::max(std::fabs(t.max - t.gap[j]), std::fabs(t.max)) + delta);
    exponent[static_cast<std::size_t>(j)] = t.gap[j] == inf ? 0 : h * (1 + 1e-6);
  }
}

// Above e^h - 1, without a library call where h is small.
double expm1_above(double h) { return h <= 1 ? h * (1 + h) : std::expm1(std::min(h, 700.0)) * (1 + 1e-12); }

}  // namespace

double exponent_ratio(const Contract& c, const BoundContext& x, const RowTruth& t, const RowBound& reference, double& largest) {
  std::vector<double> error, exponent;
  Rescales rescales;
  score_errors(c, x, t, error);
  count_rescales(c, t, error, rescales);
  exponent_errors(c, x, t, error, rescales, max_error(t, error), exponent);
  double ratio = 0;
  largest = 0;
  for (Index j = 0; j < t.count; ++j) {
    const auto at = static_cast<std::size_t>(j);
    // Keys whose weight is no longer a double need no ratio: the floor of exp covers them.
    if (t.weight[j] == 0) continue;
    largest = std::max(largest, exponent[at]);
    ratio = std::max(ratio, exponent[at] / reference.exponent[at]);
  }
  return ratio;
}

void derive_row_bound(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out) {
  const double u = c.roundoff;
  score_errors(c, x, t, out.error);
  Rescales rescales;
  count_rescales(c, t, out.error, rescales);
  out.tiles = rescales.tiles;
  const double delta = out.delta = max_error(t, out.error);
  exponent_errors(c, x, t, out.error, rescales, delta, out.exponent);

  const double live = static_cast<double>(t.live + (t.has_sink ? 1 : 0));
  const double n_dot = dot_roundings(c, static_cast<double>(t.live)) + rescales.all + 1 + (c.splits > 1 ? c.splits : 0);
  const double n_sum = c.ordered ? std::min(live, static_cast<double>(c.tile + rescales.tiles)) : live;
  out.gamma_dot = gamma_factor(n_dot, c.dot_roundoff);
  out.gamma_sum = gamma_factor(n_sum + rescales.all + 1 + (c.splits > 1 ? c.splits : 0), u);

  const double weight_u = c.weight_dtype ? unit_roundoff(*c.weight_dtype) : 0;
  const double weight_floor = c.weight_dtype ? half_min_subnormal(*c.weight_dtype) : 0;
  const double unit = std::exp(std::min(0.0, t.max - t.lse) + std::min(delta, 700.0));  // at least 1 / l-hat
  const double dropout = x.dropout ? gamma_factor(3, u) : 0;  // 1 - p, its inverse, and the product with it
  const double rounded_product = c.products_rounded ? 1.01 * u : 0;

  const auto n = static_cast<std::size_t>(t.count);
  out.centred.resize(n);
  out.absolute.resize(n);
  out.tail.resize(n);
  out.zero_centred = out.sum_weight = out.centred_total = out.largest_exponent = 0;
  double defect = 0, remaining = static_cast<double>(t.live);
  const Index last_tile = t.count == 0 ? 0 : (t.key0 + t.count - 1) / c.tile;
  for (std::size_t j = 0; j < n; ++j) {
    if (t.gap[j] == inf) {
      out.centred[j] = out.absolute[j] = out.tail[j] = 0;
      continue;
    }
    const double p = t.weight[j], h = out.exponent[j];
    const double growth = expm1_above(h), e = 1 + growth;
    const double rho = std::min(p, std::max(weight_u * p, weight_floor * unit));
    const double omega = (1 + rescales.after[j]) * c.exp_floor * unit;
    const double in_sum = c.sum_from_rounded ? e * rho : 0;
    const double centred = p * growth + omega + in_sum;
    const double cast = (c.sum_from_rounded ? 0 : rho) + dropout * (p + rho);
    const bool kept = !t.kept || t.kept[j] != 0;
    out.centred[j] = kept ? centred : 0;
    if (!kept) out.zero_centred += centred;
    out.absolute[j] = kept ? e * (cast + out.gamma_dot * (p + rho)) : 0;
    const double tile_ends = static_cast<double>(last_tile - (t.key0 + static_cast<Index>(j)) / c.tile);
    out.tail[j] = kept ? e * (cast + rounded_product * (p + rho)) +
                             (p * growth + omega + e * rho) * (c.dot_roundoff * remaining + 1.01 * u * tile_ends)
                       : 0;
    remaining -= 1;
    out.centred_total += centred;
    out.largest_exponent = std::max(out.largest_exponent, h);
    out.sum_weight += p * e;
    defect += p * (growth + e * out.gamma_sum) + omega + in_sum;
  }
  if (t.has_sink) {
    const double argument = t.sink_gap + delta;
    const double h = (c.argument_roundings * u * argument * (1 + 4 * u) + (1 + rescales.all) * c.exp_ulp * 2 * u +
                      c.exp_ulp_per_unit * 2 * u * argument) * (1 + 1e-6);
    const double growth = expm1_above(h), omega = (1 + rescales.all) * c.exp_floor * unit;
    out.zero_centred += t.sink_weight * growth + omega;
    out.sum_weight += t.sink_weight * (1 + growth);
    defect += t.sink_weight * (growth + (1 + growth) * out.gamma_sum) + omega;
    out.largest_exponent = std::max(out.largest_exponent, h);
  }
  out.denominator = 1 - defect;
  out.vacuous = !(out.denominator > 0.1);

  const double reach = std::fabs(t.lse - t.max) + delta + std::min(defect, 1.0);
  out.lse = out.vacuous ? inf
                        : -std::log1p(-defect) + c.log_ulp * 2 * u * (reach + (reach < 0.7 ? 0.5 : 0)) +
                              1.01 * u * (std::fabs(t.max) + std::fabs(t.lse) + 2 * delta) + c.product_floor;

  out.may_overflow = out.must_overflow = false;
  const double g = gamma_factor(dot_roundings(c, static_cast<double>(x.dim)), c.dot_roundoff);
  for (std::size_t j = 0; j < n; ++j) {
    if (t.gap[j] == inf) continue;
    const double unscaled = x.scale > 0 ? 1 / x.scale : 1;
    const double largest = t.absolute[j] * std::max(1.0, unscaled) * (1 + g) + (t.magnitude ? t.magnitude[j] : 0);
    if (!(largest * (1 + 1e-6) < c.largest)) out.may_overflow = true;
    if (std::fabs(t.score[j]) * unscaled > c.largest * (1 + g) * (1 + 1e-6)) out.must_overflow = true;
  }
}

double element_bound(const Contract& c, const RowBound& b, double o, const ColumnSums& sums, double hull, double largest_value) {
  const double u = c.roundoff, magnitude = std::fabs(o);
  const double common = sums.centred + magnitude * (b.zero_centred + b.sum_weight * b.gamma_sum);
  double numerator = sums.absolute + common;
  if (c.ordered && c.splits == 1) numerator = std::min(numerator, (sums.prefix + sums.tail) * (1 + 2 * b.gamma_dot) + common);
  const double weight_u = c.weight_dtype ? unit_roundoff(*c.weight_dtype) : 0;
  const double weight_floor = c.weight_dtype ? half_min_subnormal(*c.weight_dtype) * static_cast<double>(b.exponent.size()) : 0;
  const double slack = 1.1 * (weight_u + weight_floor + b.gamma_dot + b.gamma_sum + 4 * u) * largest_value;
  double bound = b.vacuous ? hull + slack : std::min(hull + slack, numerator / b.denominator);
  bound += (static_cast<double>(b.exponent.size()) + static_cast<double>(b.tiles) + 2) * c.product_floor;
  return (bound * (1 + 1.01 * c.division_roundings * u) + 1.01 * c.division_roundings * u * magnitude) * (1 + 1e-9);
}

}  // namespace assay
