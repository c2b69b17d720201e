#include "oracle/backward_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "oracle/lanes.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double unit64 = 0x1p-53;
// How often the bound holds the oracle's own errors of LSE and D. Where they are all that is left (sums that cancel to
// nothing), verdicts stay sharp at the price of a bound that much above the oracle's error.
constexpr double margin = 0x1p10;

// A rounding to a narrow dtype: of values of at most a magnitude. No dtype rounds nothing.
struct Cast {
  double roundoff = 0, floor = 0, largest = inf;
  bool saturates = false;

  explicit Cast(const std::optional<Dtype>& dtype) {
    if (!dtype) return;
    roundoff = unit_roundoff(*dtype);
    floor = half_min_subnormal(*dtype);
    largest = format(*dtype).max_finite;
    saturates = format(*dtype).saturates;
  }
  // Of what is later multiplied by the scale, where it is scaled before it is rounded, or may be.
  Cast scaled(double scale) const {
    Cast c = *this;
    if (scale > 0 && scale < 1) c.floor /= scale;
    if (scale > 1) c.largest /= scale;
    return c;
  }
  template <class L>
  L error(L magnitude) const {
    const L zero{}, rounded = smaller(magnitude, larger(roundoff * magnitude, zero + floor));
    const L beyond = saturates ? larger(rounded, magnitude - largest) : zero + inf;
    return magnitude <= largest ? rounded : beyond;
  }
};

// Arrays of one row, kept by each thread from row to row.
struct Scratch {
  std::vector<double> growth, growth64, keep, tau;
  void resize(Index n) {
    for (auto* v : {&growth, &growth64, &keep, &tau}) v->resize(static_cast<std::size_t>(n));
  }
};

}  // namespace

GradientRow derive_gradient_row(const Contract& c, const BackwardContext& x, const GradientTruth& t, const GradientWeights& out) {
  const double u = c.roundoff, softcap = x.forward.softcap;
  const bool late = c.score_gradients_late && c.weight_dtype;
  const Cast cast(c.weight_dtype), cast_of_ds = late ? cast.scaled(x.forward.scale) : cast;
  const double gamma_keys = gamma_factor(dot_roundings(c, x.keys_length), c.dot_roundoff);
  const double gamma_rows = gamma_factor(dot_roundings(c, x.rows_length), c.dot_roundoff);
  const double gamma_bias = x.bias_length > 1 ? gamma_factor(x.bias_length, u) : 0;
  const double gamma_values = gamma_factor(dot_roundings(c, static_cast<double>(x.value_dim)), c.dot_roundoff);
  const double gamma_keep = x.forward.dropout ? gamma_factor(3, u) : 0;
  const double gamma_dp = gamma_values + gamma_keep * (1 + gamma_values);
  const double product_floor = c.product_floor, dp_floor = (static_cast<double>(x.value_dim) + 2) * product_floor * x.keep_scale;
  const double own_keys = gamma_factor(x.keys_length + 4, unit64) + 4 * unit64, own_rows = gamma_factor(x.rows_length + 4, unit64) + 4 * unit64;
  const double own_bias = gamma_factor(x.bias_length, unit64), keep_floor = x.forward.dropout ? product_floor : 0;
  // Balls refine weights and LSE; q.k, of which the softcap's factor is taken, stays that of fp64.
  const double dot_ratio = exponent_ratio(c, x.forward.dim), ratio = t.weights_from_balls ? 0 : dot_ratio;
  const double own_values = gamma_factor(static_cast<double>(x.value_dim) + 6, unit64);
  thread_local Scratch s;
  s.resize(t.count);
  const double* kept = nullptr;
  if (t.kept) {
    for (Index j = 0; j < t.count; ++j) s.keep[static_cast<std::size_t>(j)] = t.kept[j] ? x.keep_scale : 0;
    kept = s.keep.data();
  }
  if (softcap > 0)
    for (Index j = 0; j < t.count; ++j) s.tau[static_cast<std::size_t>(j)] = std::fabs(std::tanh(x.forward.scale * t.dot[j] / softcap));

  // H, and the oracle's own.
  LaneMax largest_exponent(0), largest_exponent64(0);
  const double per_reach = c.argument_roundings * u * (1 + 4 * u) + 2 * u * c.exp_ulp_per_unit;
  const double per_row = t.lse_error + margin * t.lse_radius, fused = c.fused_argument ? 2.01 * u * (std::fabs(t.lse) + t.lse_error) : 0;
  const double per_dot = c.fused_argument ? c.scale_error * x.forward.scale : 0;
  for_lanes(0, t.count, [&]<class L>(Index j, L zero) {
    const L gap = load_as<L>(t.gap + j), score_error = load_as<L>(t.score_error + j);
    const L argument = absolute((t.max - t.lse) - gap), score = score_error + per_row;
    const L h = (score + per_reach * (argument + score) + (2 * u * c.exp_ulp + fused) + per_dot * absolute(load_as<L>(t.dot + j))) * (1 + 1e-6);
    const L h64 = ratio * score_error + (t.lse_radius + 0x1p-45) + (ratio > 0 ? 0x1p-51 : 0) * argument;
    const L live = gap < inf ? h : zero, live64 = gap < inf ? h64 : zero;
    largest_exponent.add(live);
    largest_exponent64.add(live64);
    store_lanes(s.growth.data() + j, live);
    store_lanes(s.growth64.data() + j, live64);
  });
  const bool small = larger(largest_exponent.total(), largest_exponent64.total()) <= 1;
  if (!small)
    for (auto* growth : {&s.growth, &s.growth64})
      for (double& h : *growth) h = expm1_above(h);

  LaneMax largest_ratio(0), largest_difference(0), largest_cast(0);
  for_lanes(0, t.count, [&]<class L>(Index j, L zero) {
    const L one = zero + 1, is_live = load_as<L>(t.gap + j) < inf ? one : zero;
    const L p = load_as<L>(t.weight + j) * is_live, h = load_as<L>(s.growth.data() + j), h64 = load_as<L>(s.growth64.data() + j);
    // Not a product: what a masked key holds may be too large for one.
    auto where_live = [&](L value) { return is_live > zero ? value : zero; };
    const L weight_error = p * (small ? h * (one + h) : h) + c.exp_floor, weight_error64 = p * (small ? h64 * (one + h64) : h64) + 0x1p-1000;

    // dV
    const L keep = kept ? load_as<L>(kept + j) : zero + x.keep_scale;
    const L kept_weight = p * keep, kept_error = keep * (weight_error * (1 + gamma_keep) + keep_floor) + gamma_keep * kept_weight;
    const L cast_p = cast.error(kept_weight + kept_error), to_dv = kept_error + cast_p + gamma_rows * (kept_weight + kept_error + cast_p);
    store_lanes(out.kept_weight + j, kept_weight);
    store_lanes(out.to_dv + j, where_live(to_dv));
    auto compare = [&](L own, L bound) {
      const L quotient = own / bound;
      largest_ratio.add(where_live(own) > zero ? quotient : zero);
    };
    compare(keep * weight_error64 + own_rows * (kept_weight + keep * weight_error64), to_dv);

    // dS = P (R dP - D)
    const L dp_absolute = load_as<L>(t.dp_absolute + j), difference = load_as<L>(t.dp + j) - t.delta, magnitude = absolute(difference), ds = p * magnitude;
    const L difference_error = (gamma_dp * dp_absolute + (dp_floor + t.delta_error + margin * t.delta_radius)) * (1 + u) + u * magnitude;
    const L difference_error64 = own_values * dp_absolute + t.delta_radius + 2 * unit64 * magnitude;
    const L ds_weight_error = late ? weight_error + cast.error(p + weight_error) : weight_error;
    L error = (ds_weight_error * (magnitude + difference_error) + p * difference_error) * (1 + u) + u * ds + product_floor;
    L error64 = weight_error64 * (magnitude + difference_error64) + p * difference_error64 + 4 * unit64 * ds;
    L gradient = ds, signed_gradient = p * difference;
    store_lanes(out.ds + j, signed_gradient);
    const L to_bias = error + gamma_bias * (ds + error);
    store_lanes(out.to_bias + j, where_live(to_bias));
    compare(error64 + own_bias * (ds + error64), to_bias);
    largest_difference.add(where_live(dp_absolute * (1 + gamma_dp) + (std::fabs(t.delta) + t.delta_error)));
    if (softcap > 0) {
      // The factor 1 - tanh^2, from a capped score that errs by capped_error.
      const L tau = load_as<L>(s.tau.data() + j), factor = one - tau * tau, capped_error = load_as<L>(t.capped_error + j) / softcap;
      const L e = capped_error + 2.01 * u, e64 = dot_ratio * capped_error + 0x1p-45;
      const L factor_error = ((2 * tau + e) * e) * (1 + 2 * u) + u * ((tau + e) * (tau + e) + factor) * (1 + 2 * u);
      const L factor_error64 = (2 * tau + e64) * e64 + 2 * unit64;
      error = (error * (factor + factor_error) + ds * factor_error) * (1 + u) + u * ds * factor + product_floor;
      error64 = error64 * (factor + factor_error64) + ds * factor_error64 + 2 * unit64 * ds;
      gradient *= factor;
      signed_gradient *= factor;
    }
    const L cast_s = cast_of_ds.error(gradient + error), all = gradient + error + cast_s;
    const L to_dq = error + cast_s + gamma_keys * all, to_dk = error + cast_s + gamma_rows * all;
    store_lanes(out.dot_gradient + j, signed_gradient);
    store_lanes(out.to_dq + j, where_live(to_dq));
    store_lanes(out.to_dk + j, where_live(to_dk));
    largest_cast.add(where_live(larger(cast_p, cast_s)));
    compare(error64 + own_keys * (gradient + error64), to_dq);
    compare(error64 + own_rows * (gradient + error64), to_dk);
  });
  GradientRow row;
  row.ratio = largest_ratio.total();
  row.may_overflow = !(largest_difference.total() * (1 + 1e-6) < c.largest) || largest_cast.total() == inf;
  row.slack = 4 * (largest_exponent64.total() + row.ratio) + 0x1p-40;
  row.vacuous = !(largest_exponent.total() < 80);  // e^H leaves the range of fp32
  return row;
}

double gradient_bound(const Contract& c, double terms, double scale, double value, double sum) {
  const double underflow = (terms + 2) * c.product_floor * std::max(1.0, scale);
  return (scale * sum * (1 + c.roundoff) + (scale == 1 ? 0 : c.roundoff * std::fabs(value)) + underflow) * (1 + 1e-9);
}

}  // namespace assay
