#include "oracle/backward_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double unit64 = 0x1p-53;
// How often the bound holds the oracle's own errors of LSE and D. Where they are all that is left (sums that cancel to
// nothing), verdicts stay sharp at the price of a bound that much above the oracle's error.
constexpr double margin = 0x1p10;

// A rounding to a narrow dtype: of a value of at most `magnitude`.
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
  double error(double magnitude) const {
    const double rounded = std::min(magnitude, std::max(roundoff * magnitude, floor));
    if (magnitude <= largest) return rounded;
    return saturates ? std::max(rounded, magnitude - largest) : inf;
  }
};

}  // namespace

GradientRow derive_gradient_row(const Contract& c, const BackwardContext& x, const GradientTruth& t, const GradientWeights& out) {
  const double u = c.roundoff, softcap = x.forward.softcap;
  const Cast cast(c.weight_dtype);
  const double gamma_keys = gamma_factor(dot_roundings(c, x.keys_length), c.dot_roundoff);
  const double gamma_rows = gamma_factor(dot_roundings(c, x.rows_length), c.dot_roundoff);
  const double gamma_bias = x.bias_length > 1 ? gamma_factor(x.bias_length, u) : 0;
  const double gamma_values = gamma_factor(dot_roundings(c, static_cast<double>(x.value_dim)), c.dot_roundoff);
  const double gamma_keep = x.forward.dropout ? gamma_factor(3, u) : 0;
  const double gamma_dp = gamma_values + gamma_keep * (1 + gamma_values);
  const double product_floor = c.product_floor, dp_floor = (static_cast<double>(x.value_dim) + 2) * product_floor;
  const double ratio = exponent_ratio(c, x.forward.dim);
  const double gamma64_keys = gamma_factor(x.keys_length + 4, unit64), gamma64_rows = gamma_factor(x.rows_length + 4, unit64);
  const double gamma64_values = gamma_factor(static_cast<double>(x.value_dim) + 6, unit64);

  GradientRow row;
  double undetermined = 0, largest_exponent64 = 0;
  for (Index j = 0; j < t.count; ++j) {
    out.kept_weight[j] = out.ds[j] = out.dot_gradient[j] = out.to_dq[j] = out.to_dk[j] = out.to_dv[j] = out.to_bias[j] = 0;
    if (!(t.gap[j] < inf)) continue;
    const double p = t.weight[j], s = t.max - t.gap[j], argument = std::fabs(s - t.lse);
    const double score = t.score_error[j] + t.lse_error + margin * t.lse_radius, reach = argument + score;
    double h = score + c.argument_roundings * u * (1 + 4 * u) * reach + 2 * u * (c.exp_ulp + c.exp_ulp_per_unit * reach);
    if (c.fused_argument) h += 2.01 * u * (std::fabs(t.lse) + t.lse_error) + c.scale_error * x.forward.scale * std::fabs(t.dot[j]);
    h *= 1 + 1e-6;
    const double h64 = (t.weights_from_balls ? 0 : ratio * t.score_error[j] + 0x1p-51 * argument) + t.lse_radius + 0x1p-45;
    largest_exponent64 = std::max(largest_exponent64, h64);
    const double weight_error = p * expm1_above(h) + c.exp_floor, weight_error64 = p * expm1_above(h64) + 0x1p-1070;
    undetermined = std::max(undetermined, h);

    // dV
    const double keep = t.kept && !t.kept[j] ? 0 : x.keep_scale;
    const double kept = out.kept_weight[j] = p * keep;
    const double kept_error = keep * weight_error * (1 + gamma_keep) + gamma_keep * kept;
    const double cast_p = cast.error(kept + kept_error);
    out.to_dv[j] = kept_error + cast_p + gamma_rows * (kept + kept_error + cast_p);
    double own = keep * weight_error64 + (gamma64_rows + 4 * unit64) * (kept + keep * weight_error64);
    if (own > 0) row.ratio = std::max(row.ratio, own / out.to_dv[j]);

    // dS = P (R dP - D)
    const double difference = t.dp[j] - t.delta, magnitude = std::fabs(difference), ds = p * magnitude;
    const double difference_error =
        (gamma_dp * t.dp_absolute[j] + dp_floor * std::max(1.0, keep) + t.delta_error + margin * t.delta_radius) * (1 + u) + u * magnitude;
    const double difference_error64 = gamma64_values * t.dp_absolute[j] + t.delta_radius + 2 * unit64 * magnitude;
    double error = (weight_error * (magnitude + difference_error) + p * difference_error) * (1 + u) + u * ds + product_floor;
    double error64 = weight_error64 * (magnitude + difference_error64) + p * difference_error64 + 4 * unit64 * ds;
    out.ds[j] = p * difference;
    out.to_bias[j] = error + gamma_bias * (ds + error);
    double gradient = ds;
    out.dot_gradient[j] = out.ds[j];
    row.may_overflow = row.may_overflow || !((t.dp_absolute[j] * (1 + gamma_dp) + std::fabs(t.delta) + t.delta_error) * (1 + 1e-6) < c.largest);
    if (softcap > 0) {
      // The factor 1 - tanh^2, from a capped score that errs by capped_error.
      const double tau = std::fabs(std::tanh(x.forward.scale * t.dot[j] / softcap)), factor = 1 - tau * tau;
      const double e = t.capped_error[j] / softcap + 2.01 * u, e64 = ratio * t.capped_error[j] / softcap + 0x1p-45;
      const double factor_error = ((2 * tau + e) * e) * (1 + 2 * u) + u * ((tau + e) * (tau + e) + factor) * (1 + 2 * u);
      const double factor_error64 = (2 * tau + e64) * e64 + 2 * unit64;
      error = (error * (factor + factor_error) + ds * factor_error) * (1 + u) + u * ds * factor + product_floor;
      error64 = error64 * (factor + factor_error64) + ds * factor_error64 + 2 * unit64 * ds;
      gradient *= factor;
      out.dot_gradient[j] *= factor;
    }
    const double cast_s = cast.error(gradient + error);
    if (cast_s == inf || cast_p == inf) row.may_overflow = true;
    const double all = gradient + error + cast_s;
    out.to_dq[j] = error + cast_s + gamma_keys * all;
    out.to_dk[j] = error + cast_s + gamma_rows * all;
    own = error64 + (gamma64_keys + 4 * unit64) * (gradient + error64);
    if (own > 0) row.ratio = std::max(row.ratio, own / out.to_dq[j]);
    own = error64 + (gamma64_rows + 4 * unit64) * (gradient + error64);
    if (own > 0) row.ratio = std::max(row.ratio, own / out.to_dk[j]);
  }
  row.slack = 4 * (largest_exponent64 + row.ratio) + 0x1p-40;
  row.vacuous = !(undetermined < 80);  // e^H leaves the range of fp32
  return row;
}

double gradient_bound(const Contract& c, double length, double scale, double value, double sum) {
  const double underflow = (length + 2) * c.product_floor * std::max(1.0, scale);
  return (scale * sum * (1 + c.roundoff) + (scale == 1 ? 0 : c.roundoff * std::fabs(value)) + underflow) * (1 + 1e-9);
}

}  // namespace assay
