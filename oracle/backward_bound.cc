#include "oracle/backward_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "oracle/key_values.h"
#include "oracle/lanes.h"
#include "oracle/safety_factors.h"

namespace assay {
namespace {

using safety::unit64;
using Term = BackwardTerm;

constexpr double inf = std::numeric_limits<double>::infinity();

// A number of one pair, or of eight pairs: its exact value, the error of what a kernel computes,
// and the error of what the oracle computes.
template <class L>
struct Erring {
  L value, error, own;
};

// bounds_backward.md, 2, Casts: rho. No dtype rounds nothing.
struct Cast {
  double roundoff = 0, floor = 0, largest = inf;
  double excess_counts = 1;  // 0 where a test leaves out this term
  bool saturates = false;

  Cast(const std::optional<Dtype>& dtype, const BackwardTerms& terms) {
    if (!dtype) return;
    roundoff = unit_roundoff(*dtype);
    floor = terms[Term::cast_underflow] * half_min_subnormal(*dtype);
    excess_counts = terms[Term::saturation];
    largest = format(*dtype).max_finite;
    saturates = format(*dtype).saturates;
  }
  // bounds_backward.md, 4, Rounded weights: the cast of what is, or may be, scaled before it is
  // rounded.
  Cast scaled(double scale, const BackwardTerms& terms) const {
    Cast c = *this;
    if (scale > 0 && scale < 1) c.floor = terms[Term::late_underflow] * c.floor / scale;
    if (scale > 1) c.largest /= scale;
    return c;
  }
  // bounds_backward.md, 4, Range guard: the error of casting values of at most a magnitude.
  template <class L>
  L error(L magnitude) const {
    const L zero{};
    const L rounded = smaller(magnitude, larger(roundoff * magnitude, zero + floor));
    const L excess = excess_counts * (magnitude - largest);
    const L beyond = saturates ? larger(rounded, excess) : zero + inf;
    return magnitude <= largest ? rounded : beyond;
  }
};

// The factors gamma of the sums that a pair is part of.
struct Chains {
  double keys = 0, rows = 0, bias = 0, values = 0;
};

// bounds_backward.md, 3: gamma(N) of a kernel.
Chains chains_of_kernel(const Contract& c, const BackwardContext& x) {
  const auto gamma = [&](double n) {
    return gamma_factor(dot_roundings(c, n, x.terms[Term::sum_blocks]), c.dot_roundoff);
  };
  Chains of;
  of.keys = x.terms[Term::keys_sum] * gamma(x.keys_length);
  of.rows = x.terms[Term::rows_sum] * gamma(x.rows_length);
  if (x.bias_length > 1)
    of.bias = x.terms[Term::bias_sum] * gamma_factor(x.bias_length, c.roundoff);
  of.values = x.terms[Term::values_sum] * gamma(static_cast<double>(x.value_dim));
  return of;
}

// bounds_backward.md, 8: gamma(N) of the oracle.
Chains chains_of_oracle(const BackwardContext& x) {
  const double more = safety::additions_of_blocks;
  Chains of;
  of.keys = gamma_factor(x.keys_length + more, unit64) + more * unit64;
  of.rows = gamma_factor(x.rows_length + more, unit64) + more * unit64;
  of.bias = gamma_factor(x.bias_length, unit64);
  of.values = gamma_factor(static_cast<double>(x.value_dim) + safety::roundings_of_values, unit64);
  return of;
}

// What all pairs of a row have in common.
struct RowNumbers {
  RowNumbers(const Contract& c, const BackwardContext& x, const GradientTruth& t)
      : late(c.score_gradients_late && c.weight_dtype),
        terms(x.terms),
        u(c.roundoff),
        cast_of_p(c.weight_dtype, terms),
        cast_of_ds(late ? cast_of_p.scaled(x.forward.scale, terms) : cast_of_p),
        cast_of_kept(cast_of_p),
        stores_dp(c.dp_dtype),
        cast_of_dp(c.dp_dtype, terms),
        kernel(chains_of_kernel(c, x)),
        oracle(chains_of_oracle(x)) {
    // Balls refine the weights and LSE. But q.k, from which the softcap's factor is computed,
    // remains that of fp64.
    dot_ratio = exponent_ratio(c, x.forward.dim);
    weight_ratio = t.weights_from_balls ? 0 : dot_ratio;
    exp_floor = terms[Term::exp_underflow] * c.exp_floor;
    // bounds_backward.md, 4: the coefficients of E_dP, and what underflows
    if (x.forward.dropout) {
      gamma_keep = terms[Term::keep_scale] * gamma_factor(safety::roundings_of_keep, u);
      keep_floor = terms[Term::keep_underflow] * c.product_floor;
    }
    gamma_dp = kernel.values + gamma_keep * (1 + kernel.values);
    const double dp_terms = static_cast<double>(x.value_dim) + 2;
    dp_floor = terms[Term::values_underflow] * (dp_terms * c.product_floor * x.keep_scale);
    delta_error = dp_floor + t.delta_error + safety::own_errors_held * t.delta_radius;
    // bounds_backward.md, 2, Dropout: a kernel that multiplies by R at the end loses R times as
    // much
    cast_of_kept.floor *= x.keep_scale;
    cast_of_ds.floor *= x.keep_scale;
    ds_floor = terms[Term::score_gradient_underflow] * c.product_floor * x.keep_scale;
    softcap_floor = terms[Term::softcap_underflow] * c.product_floor * x.keep_scale;
    // bounds_backward.md, 3, Operands that are read as 0: f of each
    const double f = c.operand_floor * x.keep_scale;
    weight_operand = terms[Term::weight_operands] * f;
    // bounds_backward.md, 4, Rounded weights: dS may be multiplied by the scale before it is used
    scaled_operand = weight_operand;
    if (x.forward.scale > 0 && x.forward.scale < 1)
      scaled_operand =
          (weight_operand + terms[Term::scaled_underflow] * c.product_floor * x.keep_scale) /
          x.forward.scale;
    ds_operand = terms[Term::score_gradient_operands] * f;
    softcap_operand = terms[Term::softcap_operands] * f;
  }

  bool late;  // dS is computed from rounded weights
  const BackwardTerms& terms;
  double u;
  Cast cast_of_p, cast_of_ds, cast_of_kept;  // of p, of dS, and of R p
  bool stores_dp;
  Cast cast_of_dp;
  Chains kernel, oracle;
  // The oracle's E divided by that of a kernel: for q.k, for p.
  double dot_ratio = 0, weight_ratio = 0;
  double exp_floor = 0, keep_floor = 0, ds_floor = 0, softcap_floor = 0;
  double dp_floor = 0;
  // f of a weight in a sum, of dS that may be scaled first, and of the operands of dS and dS'.
  double weight_operand = 0, scaled_operand = 0, ds_operand = 0, softcap_operand = 0;
  double gamma_keep = 0, gamma_dp = 0;
  double delta_error = 0;            // the absolute part of the error of R dP - D
  bool exponents_are_small = false;  // H has not been replaced by e^H - 1
};

// The largest values that occur along a row.
struct RowMaxima {
  LaneMax ratio{0}, difference{0}, cast{0};
};

// The arrays of one row. Each thread keeps them from row to row.
struct Scratch {
  std::vector<double> growth, growth64, keep, tau;
  void resize(Index n) {
    for (auto* v : {&growth, &growth64, &keep, &tau}) v->resize(usize(n));
  }
};

struct LargestExponents {
  double kernel = 0, oracle = 0;
};

// bounds_backward.md, 2: H_j of every key, and the oracle's own; e^H - 1 where one of them is
// large. Returns the largest of both.
LargestExponents exponent_errors(const Contract& c, const BackwardContext& x,
                                 const GradientTruth& t, RowNumbers& n, Scratch& s) {
  const double u = c.roundoff;
  const double per_reach =
      x.terms[Term::argument] * (c.argument_roundings * u * (1 + safety::second_order_units * u)) +
      x.terms[Term::exp_per_unit] * (2 * u * c.exp_ulp_per_unit);
  const double per_row = t.lse_error + safety::own_errors_held * t.lse_radius;
  const double of_exp = x.terms[Term::exp] * (2 * u * c.exp_ulp);
  double fused = 0, per_dot = 0;
  if (c.fused_argument) {
    fused = x.terms[Term::fused_argument] * safety::two_roundings * u *
            (std::fabs(t.lse) + t.lse_error);
    per_dot = x.terms[Term::folded_scale] * c.scale_error * x.forward.scale;
  }
  const double score_counts = x.terms[Term::score];
  const double ratio = n.weight_ratio;
  LaneMax largest(0), largest64(0);
  for_lanes(0, t.count, [&]<class L>(Index j, L zero) {
    const L gap = load_as<L>(t.gap + j), score_error = load_as<L>(t.score_error + j);
    const L argument = absolute((t.max - t.lse) - gap);
    const L score = score_counts * score_error + per_row;
    const L h = (score + per_reach * (argument + score) + (of_exp + fused) +
                 per_dot * absolute(load_as<L>(t.dot + j))) *
                (1 + safety::second_order);
    const L h64 = ratio * score_error + (t.lse_radius + safety::library_exp) +
                  (ratio > 0 ? safety::argument_in_fp64 : 0) * argument;
    const L live = gap < inf ? h : zero, live64 = gap < inf ? h64 : zero;
    largest.add(live);
    largest64.add(live64);
    store_lanes(s.growth.data() + j, live);
    store_lanes(s.growth64.data() + j, live64);
  });
  const LargestExponents both{largest.total(), largest64.total()};
  n.exponents_are_small = larger(both.kernel, both.oracle) <= safety::small_exponent;
  if (!n.exponents_are_small)
    for (auto* growth : {&s.growth, &s.growth64})
      for (double& h : *growth) h = expm1_above(h);
  return both;
}

// bounds_backward.md, 2: E_P.
template <class L>
Erring<L> weight(const RowNumbers& n, L p, L h, L h64) {
  const L one = L{} + 1;
  const bool small = n.exponents_are_small;
  return {p, p * (small ? h * (one + h) : h) + n.exp_floor,
          p * (small ? h64 * (one + h64) : h64) + safety::exp_underflow_of_gradients};
}

// bounds_backward.md, 2, Dropout: R p, of which dV is made.
template <class L>
Erring<L> kept_weight(const RowNumbers& n, const Erring<L>& p, L keep) {
  const L kept = p.value * keep;
  return {kept, keep * (p.error * (1 + n.gamma_keep) + n.keep_floor) + n.gamma_keep * kept,
          keep * p.own};
}

// bounds_backward.md, 3: the part of a pair in the bound of a sum, and in the oracle's own error.
template <class L>
L in_sum_of_kernel(const Erring<L>& x, L cast, double gamma) {
  return x.error + cast + gamma * (absolute(x.value) + x.error + cast);
}
template <class L>
L in_sum_of_oracle(const Erring<L>& x, double gamma) {
  return x.own + gamma * (absolute(x.value) + x.own);
}

// bounds_backward.md, 4: the part of E_dP that grows with the products, and what these lose
template <class L>
L error_of_dp(const RowNumbers& n, const GradientTruth& t, Index j) {
  const L error = n.gamma_dp * load_as<L>(t.dp_absolute + j);
  return t.dp_lost ? error + n.terms[Term::values_operands] * load_as<L>(t.dp_lost + j) : error;
}

// bounds_backward.md, 4, Stored dP: the cast of R dP; 0 where it is not stored.
template <class L>
L cast_of_dp(const RowNumbers& n, L dp, L dp_error) {
  if (!n.stores_dp) return L{};
  return n.terms[Term::stored_dp] * n.cast_of_dp.error(absolute(dp) + dp_error);
}

// bounds_backward.md, 4: t = R dP - D and E_t.
template <class L>
Erring<L> difference(const RowNumbers& n, const GradientTruth& t, Index j) {
  const L dp = load_as<L>(t.dp + j), dp_error = error_of_dp<L>(n, t, j);
  const L value = dp - t.delta, magnitude = absolute(value);
  const L rounding = n.terms[Term::subtraction] * n.u * magnitude;
  const L cast = cast_of_dp(n, dp, dp_error);
  return {value, (dp_error + cast + n.delta_error) * (1 + n.u) + rounding,
          n.oracle.values * load_as<L>(t.dp_absolute + j) + t.delta_radius +
              safety::own_rounding * unit64 * magnitude};
}

// bounds_backward.md, 3, Operands that are read as 0: what products with the others lose, which may
// be infinite
template <class L>
L read_as_0(double f, L others) {
  return f > 0 ? f * others : L{};
}

// bounds_backward.md, 4: dS = p t and E_dS, from rounded weights where the contract says so.
template <class L>
Erring<L> score_gradient(const RowNumbers& n, const Erring<L>& p, const Erring<L>& t) {
  const L size = absolute(t.value), ds = p.value * size;
  const L cast = n.terms[Term::late_cast] * n.cast_of_p.error(p.value + p.error);
  const L p_error = n.late ? p.error + cast : p.error;
  const L rounding = n.terms[Term::score_gradient] * n.u * ds;
  // Of t, of p, and of the two numbers whose difference t is
  const L lost = read_as_0(n.ds_operand, size + t.error + 3 * (p.value + p_error));
  return {
      p.value * t.value,
      (p_error * (size + t.error) + p.value * t.error) * (1 + n.u) + rounding + n.ds_floor + lost,
      p.own * (size + t.own) + p.value * t.own + safety::own_roundings_of_product * unit64 * ds};
}

// bounds_backward.md, 4, Softcap: the factor f = 1 - tau^2 and E_f.
template <class L>
Erring<L> softcap_factor(const RowNumbers& n, L tau, L capped_error) {
  const double u = n.u, second_order = 1 + 2 * u;
  const L factor = (L{} + 1) - tau * tau;
  const L e = n.terms[Term::softcap_score] * capped_error +
              n.terms[Term::softcap_tanh] * (safety::two_roundings * u);
  const L e64 = n.dot_ratio * capped_error + safety::library_tanh;
  const L rounding = n.terms[Term::softcap_factor] * u * ((tau + e) * (tau + e) + factor);
  return {factor, ((2 * tau + e) * e + rounding) * second_order + n.softcap_operand,
          (2 * tau + e64) * e64 + safety::own_rounding * unit64};
}

// bounds_backward.md, 4, Softcap: dS' = dS f and E_dS'.
template <class L>
Erring<L> times_factor(const RowNumbers& n, const Erring<L>& ds, const Erring<L>& f) {
  const L size = absolute(ds.value);
  const L rounding = n.terms[Term::softcap_product] * n.u * size * f.value;
  const L lost = read_as_0(n.softcap_operand, size + ds.error + f.value + f.error);
  return {ds.value * f.value,
          (ds.error * (f.value + f.error) + size * f.error) * (1 + n.u) + rounding +
              n.softcap_floor + lost,
          ds.own * (f.value + f.own) + size * f.own + safety::own_rounding * unit64 * size};
}

// Takes one pair, or eight pairs, from the weight to its parts in the bounds of all gradients.
template <class L>
void derive_pairs(const BackwardContext& x, const GradientTruth& t, const RowNumbers& n,
                  const Scratch& s, const GradientWeights& out, Index j, L zero, RowMaxima& most) {
  const L one = zero + 1, is_live = load_as<L>(t.gap + j) < inf ? one : zero;
  // This is a choice and not a product, because a masked key may hold numbers too large for a
  // product.
  auto where_live = [&](L value) { return is_live > zero ? value : zero; };
  // bounds_backward.md, 8: the oracle's own error as a fraction of the bound.
  auto compare = [&](L own, L bound) {
    const L quotient = own / bound;
    most.ratio.add(where_live(own) > zero ? quotient : zero);
  };
  const Erring<L> p = weight(n, load_as<L>(t.weight + j) * is_live, load_as<L>(s.growth.data() + j),
                             load_as<L>(s.growth64.data() + j));

  const L keep = t.kept ? load_as<L>(s.keep.data() + j) : zero + x.keep_scale;
  const Erring<L> kept = kept_weight(n, p, keep);
  const L cast_p =
      n.terms[Term::value_cast] * n.cast_of_kept.error(kept.value + kept.error) + n.weight_operand;
  const L to_dv = in_sum_of_kernel(kept, cast_p, n.kernel.rows);
  store_lanes(out.kept_weight + j, kept.value);
  store_lanes(out.to_dv + j, where_live(to_dv));
  compare(in_sum_of_oracle(kept, n.oracle.rows), to_dv);

  const L dp_absolute = load_as<L>(t.dp_absolute + j);
  Erring<L> ds = score_gradient(n, p, difference<L>(n, t, j));
  // bounds_backward.md, 4, Stored dP: the cast of dS before it is scaled; dBias is made of it.
  const L stored_ds =
      n.stores_dp ? n.terms[Term::stored_twice] * n.cast_of_dp.error(absolute(ds.value) + ds.error)
                  : zero;
  const L in_bias = x.bias_length > 1 ? stored_ds + n.weight_operand : stored_ds;
  const L to_bias = in_sum_of_kernel(ds, in_bias, n.kernel.bias);
  store_lanes(out.ds + j, ds.value);
  store_lanes(out.to_bias + j, where_live(to_bias));
  compare(in_sum_of_oracle(ds, n.oracle.bias), to_bias);
  most.difference.add(
      where_live(dp_absolute * (1 + n.gamma_dp) + (std::fabs(t.delta) + t.delta_error)));

  if (x.forward.softcap > 0) {
    const L capped_error = load_as<L>(t.capped_error + j) / x.forward.softcap;
    ds = times_factor(n, ds, softcap_factor(n, load_as<L>(s.tau.data() + j), capped_error));
  }
  const L first_cast =
      n.stores_dp ? n.terms[Term::stored_twice] * n.cast_of_dp.error(absolute(ds.value) + ds.error)
                  : zero;
  const L cast_ds = first_cast +
                    n.terms[Term::gradient_cast] *
                        n.cast_of_ds.error(absolute(ds.value) + ds.error + first_cast) +
                    n.scaled_operand;
  const L to_dq = in_sum_of_kernel(ds, cast_ds, n.kernel.keys);
  const L to_dk = in_sum_of_kernel(ds, cast_ds, n.kernel.rows);
  store_lanes(out.dot_gradient + j, ds.value);
  store_lanes(out.to_dq + j, where_live(to_dq));
  store_lanes(out.to_dk + j, where_live(to_dk));
  most.cast.add(where_live(larger(cast_p, cast_ds)));
  compare(in_sum_of_oracle(ds, n.oracle.keys), to_dq);
  compare(in_sum_of_oracle(ds, n.oracle.rows), to_dk);
}

}  // namespace

namespace {

// bounds_backward.md, 4, Stored dP: what D errs if it is the sum of P dP as these are stored
double error_of_delta(const Contract& c, const GradientTruth& t, const RowNumbers& n,
                      const Scratch& s) {
  const double length = static_cast<double>(t.count) + 1;
  const double gamma = gamma_factor(length, c.roundoff);
  double error = length * c.product_floor, sum = 0;
  for (Index j = 0; j < t.count; ++j) {
    if (!(t.gap[j] < inf)) continue;
    const Erring<double> p = weight(n, t.weight[j], s.growth[usize(j)], s.growth64[usize(j)]);
    const double p_error = p.error + n.cast_of_p.error(p.value + p.error);
    const double dp = std::fabs(t.dp[j]), of_dp = error_of_dp<double>(n, t, j) + n.dp_floor,
                 dp_error = of_dp + n.cast_of_dp.error(dp + of_dp);
    error += p_error * (dp + dp_error) + p.value * dp_error +
             read_as_0(c.operand_floor, dp + dp_error + p.value + p_error);
    sum += (p.value + p_error) * (dp + dp_error);
  }
  // dLSE may be added first.
  return n.terms[Term::delta_of_weights] * (error + gamma * (sum + std::fabs(t.d_lse))) *
         (1 + safety::evaluation);
}

}  // namespace

BackwardContext backward_context(const Attention& p) {
  BackwardContext x;
  x.forward = {p.shape.dim, std::fabs(static_cast<double>(p.scale)), static_cast<double>(p.softcap),
               p.dropout > 0};
  x.value_dim = p.shape.value_dim;
  x.keep_scale = dropout_scale(p);
  return x;
}

GradientRow derive_gradient_row(const Contract& c, const BackwardContext& x, const GradientTruth& t,
                                const GradientWeights& out) {
  thread_local Scratch s;
  s.resize(t.count);
  for (Index j = 0; t.kept && j < t.count; ++j) s.keep[usize(j)] = t.kept[j] ? x.keep_scale : 0;
  const double softcap = x.forward.softcap;
  for (Index j = 0; softcap > 0 && j < t.count; ++j)
    s.tau[usize(j)] = std::fabs(std::tanh(x.forward.scale * t.dot[j] / softcap));

  RowNumbers n(c, x, t);
  const LargestExponents exponent = exponent_errors(c, x, t, n, s);
  const double of_weights = n.stores_dp ? error_of_delta(c, t, n, s) : 0;
  n.delta_error += of_weights;
  RowMaxima most;
  for_lanes(0, t.count,
            [&]<class L>(Index j, L zero) { derive_pairs(x, t, n, s, out, j, zero, most); });
  GradientRow row;
  row.delta_of_weights = of_weights;
  row.ratio = most.ratio.total();
  row.may_overflow = !(most.difference.total() * (1 + safety::second_order) < c.largest) ||
                     most.cast.total() == inf;
  row.slack = safety::slack_per_ratio * (exponent.oracle + row.ratio) + safety::least_slack;
  row.vacuous = !(exponent.kernel < safety::largest_exponent);
  return row;
}

// bounds_backward.md, 2: E_P, with the cast
void derive_weight_errors(const Contract& c, const BackwardContext& x, const GradientTruth& t,
                          double* error) {
  Scratch s;
  s.resize(t.count);
  RowNumbers n(c, x, t);
  exponent_errors(c, x, t, n, s);
  for (Index j = 0; j < t.count; ++j) {
    const Erring<double> p = weight(n, t.weight[j], s.growth[usize(j)], s.growth64[usize(j)]);
    const double cast = n.terms[Term::value_cast] * n.cast_of_p.error(p.value + p.error);
    error[j] = p.error + cast + p.own;
  }
}

// bounds_backward.md, 5, dSink: e^(z - L) D
SinkTerm derive_sink_term(const Contract& c, const BackwardContext& x, const SinkTruth& t) {
  const double u = c.roundoff, argument = t.sink - t.lse, weight = std::exp(argument);
  const double reach = std::fabs(argument) + t.lse_error;
  const double magnitude = std::fabs(t.delta), product = weight * magnitude;
  double exponent = t.lse_error +
                    x.terms[Term::sink_argument] * c.argument_roundings * u *
                        (1 + safety::second_order_units * u) * reach +
                    2 * u *
                        (x.terms[Term::sink_exp] * c.exp_ulp +
                         x.terms[Term::sink_exp_per_unit] * c.exp_ulp_per_unit * reach);
  if (c.fused_argument)
    exponent += x.terms[Term::sink_fused_argument] * safety::two_roundings * u *
                    (std::fabs(t.lse) + t.lse_error) +
                x.terms[Term::sink_folded_scale] * c.scale_error * std::fabs(t.sink);
  exponent *= 1 + safety::second_order;
  const double weight_error =
      weight * expm1_above(exponent) + x.terms[Term::sink_underflow] * c.exp_floor;
  const double error =
      (weight_error * (magnitude + t.delta_error) + weight * t.delta_error) * (1 + u) +
      x.terms[Term::sink_product] * u * product +
      read_as_0(x.terms[Term::sink_operands] * c.operand_floor,
                magnitude + t.delta_error + weight + weight_error + 1);
  const double gamma = x.terms[Term::sink_sum] * gamma_factor(t.rows + 1, u);
  SinkTerm part;
  part.value = weight * t.delta;
  part.bound = error + gamma * (product + error);
  part.absolute = product + error;
  part.own = weight * expm1_above(t.lse_radius + safety::library_exp) * magnitude +
             weight * t.delta_radius +
             gamma_factor(t.rows + safety::roundings_of_sink, unit64) * product;
  return part;
}

// bounds_backward.md, 6: from the sum of the parts to the bound of an element.
double gradient_bound(const Contract& c, const BackwardTerms& counts, double terms, double scale,
                      double value, double sum) {
  const double underflow =
      counts[Term::sum_underflow] * ((terms + 2) * c.product_floor * std::max(1.0, scale));
  const double product =
      counts[Term::scale_product] * (scale == 1 ? 0 : c.roundoff * std::fabs(value));
  return (scale * sum * (1 + c.roundoff) + product + underflow) * (1 + safety::evaluation);
}

}  // namespace assay
