#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/bound.h"
#include "oracle/lanes.h"
#include "oracle/safety_factors.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

double sech_squared(double x) {
  const double e = std::exp(-2 * std::min(x, safety::largest_sech_argument));
  return 4 * e / ((1 + e) * (1 + e));
}

// bounds.md, 1: N of q.k; each element of a projected key counts the products of its own sum
double score_roundings(const Contract& c, const BoundContext& x) {
  const double projected = x.terms[BoundTerm::projected_keys] * static_cast<double>(x.projection);
  return dot_roundings(c, static_cast<double>(x.dim) + projected, x.terms[BoundTerm::dot_blocks]);
}

// The coefficients of E_j before the softcap and the biases, per unit of the sums from which E_j is
// computed.
struct DotCoefficients {
  double relative;      // of scale sum |q||k_j|, for sums in any order
  double per_prefix;    // of scale sum |S_k|, for sums in order
  double per_absolute;  // of scale sum |q||k_j|, for sums in order
  double scale;         // with its own rounding
  double per_dot;       // of |q.k_j|
  double floor;
};

// bounds.md, 1, Underflow and rounded factors: the coefficients of E_j of t_j
DotCoefficients dot_coefficients(const Contract& c, const BoundContext& x, const RowTruth& t) {
  const BoundTerms& terms = x.terms;
  const double u = c.roundoff, eps = c.dot_roundoff,
               dim = static_cast<double>(x.dim + x.projection);
  const double n = score_roundings(c, x);
  const double gamma_n = terms[BoundTerm::dot_any_order] * gamma_factor(n, eps);
  const double prescale =
      c.query_dtype ? terms[BoundTerm::query_prescale] * unit_roundoff(*c.query_dtype) : 0;
  const bool scaled_later = c.fused_argument && t.additions == 0 && x.softcap == 0;
  const double tau = scaled_later ? 0 : terms[BoundTerm::score_scale] * u;
  const double prescaled = terms[BoundTerm::query_prescale_product] * 2 * u;
  const double products = terms[BoundTerm::dot_products] * safety::one_rounding * u;
  const double projected =
      terms[BoundTerm::projected_keys] * projection_error(c, x) * (1 + gamma_n);
  DotCoefficients k{};
  k.relative = (1 + prescale) * (1 + gamma_n) - 1;
  k.per_prefix = terms[BoundTerm::dot_in_order] * eps * (1 + 2 * n * eps);
  k.per_absolute = terms[BoundTerm::dot_second_order] * eps * eps * n * n +
                   (c.products_rounded ? products : 0) + projected;
  k.scale = x.scale * (1 + tau);
  k.per_dot = (tau + (c.query_dtype ? prescaled : 0)) * x.scale;
  k.floor =
      terms[BoundTerm::dot_underflow] * (2 * dim + 2) * c.product_floor * std::max(1.0, x.scale);
  // By Cauchy and Schwarz, the elements of a vector add up to at most sqrt(D) times its norm.
  k.floor += terms[BoundTerm::dot_underflow] * static_cast<double>(x.projection) * c.product_floor *
             std::sqrt(static_cast<double>(x.dim)) * t.query_norm * (1 + gamma_n) * k.scale;
  // bounds.md, 14: Q and K may be multiplied by the root of the scale each, and Q by all of it
  const double reads = terms[BoundTerm::dot_operands] * c.operand_floor;
  k.floor += reads * std::sqrt(dim) * (t.key_norm + t.query_norm) * (1 + gamma_n) *
             std::max(x.scale, std::sqrt(x.scale)) * (1 + tau);
  if (c.query_dtype)
    k.floor += (terms[BoundTerm::query_underflow] * half_min_subnormal(*c.query_dtype) + reads) *
               std::sqrt(dim) * t.key_norm * (1 + gamma_n);
  return k;
}

// bounds.md, 1: E_j of t_j
void dot_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error) {
  const DotCoefficients k = dot_coefficients(c, x, t);
  const double* absolute = t.absolute;
  const double* prefix = t.prefix;
  const double* dot = t.dot;
  if (!(adds_in_order(c) && t.prefix && !c.query_dtype)) {
    for (Index j = 0; j < t.count; ++j)
      error[j] = absolute[j] * k.scale * k.relative + std::fabs(dot[j]) * k.per_dot + k.floor;
  } else if (absolute) {
    for (Index j = 0; j < t.count; ++j)
      error[j] = std::min(absolute[j] * k.relative,
                          k.per_prefix * prefix[j] + k.per_absolute * absolute[j]) *
                     k.scale +
                 std::fabs(dot[j]) * k.per_dot + k.floor;
  } else {
    // Each product is the difference of two partial sums.
    const double limit = t.absolute_limit;
    for (Index j = 0; j < t.count; ++j)
      error[j] =
          (k.per_prefix * prefix[j] + k.per_absolute * std::min(limit, 2 * prefix[j])) * k.scale +
          std::fabs(dot[j]) * k.per_dot + k.floor;
  }
}

// bounds.md, 1, Stored scores: E_j of t_j, if what it is made of is stored as well
void stored_part_errors(const Contract& c, const BoundContext& x, const RowTruth& t,
                        double* error) {
  const double u = unit_roundoff(*c.score_dtype);
  const double stores = t.additions > 0 || x.softcap > 0 ? 2 : 1;
  const double relative = x.terms[BoundTerm::stored_parts] * (std::pow(1 + u, stores) - 1);
  const double floor = x.terms[BoundTerm::stored_score_underflow] * stores * (1 + u) *
                       half_min_subnormal(*c.score_dtype) * std::max(1.0, x.scale);
  for (Index j = 0; j < t.count; ++j)
    error[j] += std::max(relative * (x.scale * std::fabs(t.dot[j]) + error[j]), floor);
}

// bounds.md, 1, Softcap: E_j of c tanh(t_j / c)
void softcap_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error) {
  const BoundTerms& terms = x.terms;
  const double u = c.roundoff, cap = x.softcap;
  const double per_argument = terms[BoundTerm::softcap_argument] * safety::two_roundings * u;
  const double per_constant = terms[BoundTerm::softcap_constant] * c.scale_error;
  const double per_value = terms[BoundTerm::softcap_tanh] * 2 * u * c.tanh_ulp +
                           terms[BoundTerm::softcap_product] * safety::one_rounding * u;
  const double floor = terms[BoundTerm::softcap_underflow] * c.product_floor;
  for (Index j = 0; j < t.count; ++j) {
    const double magnitude = x.scale * std::fabs(t.dot[j]);
    const double e = error[j] + per_argument * (magnitude + error[j]) + per_constant * magnitude;
    // The slope between t and t-hat is at most the slope at the one that is nearer to 0.
    const double slope = sech_squared(std::max(0.0, magnitude - e) / cap);
    const double capped = std::min(cap, magnitude);
    error[j] = slope * e + (capped + slope * e) * per_value + floor * (1 + cap);
    // The exact and the computed result both lie in [-c, c].
    error[j] = std::min(error[j], safety::two_roundings * cap + c.product_floor);
  }
}

// bounds.md, 1, Biases: E_j of the sum
void bias_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error) {
  const BoundTerms& terms = x.terms;
  const double u = c.roundoff;
  const double growth = 1 + terms[BoundTerm::bias_growth] * 2 * u * t.additions;
  const double last = terms[BoundTerm::bias_last] * 2 * u;
  const double first = terms[BoundTerm::bias_first] * 2 * u * (t.additions - 1);
  const double alibi = terms[BoundTerm::alibi_product] * safety::two_roundings * u;
  for (Index j = 0; j < t.count; ++j) {
    if (t.magnitude[j] == 0 || t.gap[j] == inf) continue;  // adding zero is exact
    const double s = std::fabs(t.max - t.gap[j]);
    const double partial = x.scale * std::fabs(t.dot[j]) + t.magnitude[j];
    error[j] = error[j] * growth + last * s + alibi * t.product[j] + first * partial;
  }
}

// bounds.md, 1, Stored scores: E_j of a score that is stored in a dtype
void stored_score_errors(const Contract& c, const BoundContext& x, const RowTruth& t,
                         double* error) {
  const double relative = x.terms[BoundTerm::stored_score] * unit_roundoff(*c.score_dtype);
  const double floor = x.terms[BoundTerm::stored_score_underflow] *
                       half_min_subnormal(*c.score_dtype) * std::max(1.0, x.scale);
  for (Index j = 0; j < t.count; ++j)
    if (t.gap[j] < inf)
      error[j] += std::max(relative * (std::fabs(t.max - t.gap[j]) + error[j]), floor);
}

// The largest finite score that can be kept, in the accumulator or in the dtype of stored scores.
double largest_score(const Contract& c) {
  return c.score_dtype ? std::min(c.largest, format(*c.score_dtype).max_finite) : c.largest;
}

// The largest finite q.k that is kept for certain. What may be stored before the scale may leave
// the range there.
double largest_unscaled(const Contract& c) {
  return c.stores_score_parts ? largest_score(c) : c.largest;
}

}  // namespace

void score_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error) {
  dot_errors(c, x, t, error);
  if (c.score_dtype && c.stores_score_parts) stored_part_errors(c, x, t, error);
  if (x.softcap > 0) softcap_errors(c, x, t, error);
  if (t.additions > 0) bias_errors(c, x, t, error);
  if (c.score_dtype) stored_score_errors(c, x, t, error);
}

// bounds.md, 9: whether sum |q||k_j| is of first order, and has to be taken
bool needs_absolute(const Contract& c, const BoundContext& x) {
  const double n = score_roundings(c, x);
  return !adds_in_order(c) || c.query_dtype || c.products_rounded || x.projection > 0 ||
         !(c.dot_roundoff * n * n < safety::negligible_second_order);
}

// bounds.md, 5: no score leaves the range, by norms alone
bool excludes_overflow(const Contract& c, const BoundContext& x, double absolute,
                       double magnitude) {
  const double gamma_n = gamma_factor(score_roundings(c, x), c.dot_roundoff);
  const double above = absolute * (1 + gamma_n) * (1 + safety::second_order);
  return above < largest_unscaled(c) &&
         above * x.scale + magnitude * (1 + safety::second_order) < largest_score(c);
}

// bounds.md, 5: whether a score of the row may, or must, leave the range
void find_overflow(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out) {
  if (!t.absolute) return;  // the caller has excluded that scores leave the range
  const double gamma_n = gamma_factor(score_roundings(c, x), c.dot_roundoff);
  const double score_limit = largest_score(c);
  // A score must fit the accumulator before the scale. After the scale, and after every bias, it
  // must fit where scores are kept.
  const double per_unscaled = (1 + gamma_n) / largest_unscaled(c);
  const double per_scaled = (1 + gamma_n) * x.scale / score_limit, per_magnitude = 1 / score_limit;
  const double per_dot = std::max(1 / c.largest, x.scale / score_limit);
  LaneMax possible(0), certain(0);
  for_lanes(0, t.count, [&]<class L>(Index j, L zero) {
    const L absolute = load_as<L>(t.absolute + j), dot = load_as<L>(t.dot + j);
    const L unscaled = absolute * per_unscaled;
    const L biases = t.magnitude ? load_as<L>(t.magnitude + j) : zero;
    const L scaled = absolute * per_scaled + biases * per_magnitude;
    const auto live = load_as<L>(t.gap + j) < inf;
    possible.add(live ? larger(unscaled, scaled) : zero);
    certain.add(live ? larger(dot, -dot) * per_dot : zero);
  });
  out.may_overflow = !(possible.total() * (1 + safety::second_order) < 1);
  out.must_overflow = certain.total() > (1 + gamma_n) * (1 + safety::second_order) &&
                      x.softcap == 0 && !t.magnitude;
}

}  // namespace assay
