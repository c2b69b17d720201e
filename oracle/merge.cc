#include "oracle/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/safety_factors.h"
#include "oracle/arb_ball.h"
#include "oracle/bound.h"

namespace assay {
namespace {

using Term = MergeTerm;

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double log_two = 0.69314718055994530942;

// What all columns of a row have in common: the non-empty parts and their exact shares p_s, rounded
// to double.
struct Shares {
  std::vector<std::size_t> part;
  std::vector<double> distance;  // M - LSE_s, in the base of the logarithms
  std::vector<double> p;
  double max = 0, log_sum = 0;  // log sum w_s, in the base of the logarithms

  double count() const { return static_cast<double>(part.size()); }
};

// bounds.md, 10: of |Ohat - O| and of LSE for arithmetic `c`, as sums over parts
class MergeBound {
 public:
  MergeBound(const Shares& s, const Contract& c, double unit, const MergeTerms& terms)
      : shares_(s), c_(c), terms_(terms) {
    // A single part is taken as it is: its weight is 1, and no sum and no division is rounded.
    if (s.part.size() < 2) return;
    const double u = c.roundoff;
    term_gamma_ =
        terms_[Term::value_sum] * gamma_factor(s.count() + terms_[Term::weight_quotients], u);
    sum_gamma_ = terms_[Term::weight_sum] * gamma_factor(s.count(), u);
    // The sum of weights is at least 1, so this also bounds the error relative to that sum.
    omega_ = terms_[Term::exp_underflow] * c.exp_floor;
    double defect = 0;
    for (std::size_t k = 0; k < s.p.size(); ++k) {
      growth_.push_back(expm1_above(exponent_error(s.distance[k], unit)));
      defect += s.p[k] * (growth_[k] + (1 + growth_[k]) * sum_gamma_) + omega(k);
    }
    denominator_ = 1 - terms_[Term::denominator] * defect;
    lse_ = denominator_ > safety::least_denominator ? lse_bound(defect, unit) : inf;
  }

  double lse() const { return lse_; }

  // `values` holds O_s of one column, for the parts of the shares.
  double column(const std::vector<double>& values, double o) const {
    if (shares_.part.size() < 2) return 0;
    double centred = 0, absolute = 0, sum = 0, distant = 0;
    for (std::size_t k = 0; k < values.size(); ++k) {
      const double grown = shares_.p[k] * (1 + growth_[k]);
      centred += (shares_.p[k] * growth_[k] + omega(k)) * std::fabs(values[k] - o);
      absolute += grown * std::fabs(values[k]);
      sum += grown;
      // The quotient of a weight of 1 is at least 1 / n, and does not underflow.
      if (shares_.distance[k] != 0) distant += std::fabs(values[k]);
    }
    if (!(denominator_ > safety::least_denominator)) return inf;
    const double divisions =
        terms_[Term::division] * safety::one_rounding * c_.division_roundings * c_.roundoff;
    const double quotients = terms_[Term::quotient_underflow] * c_.product_floor * distant;
    const double numerator =
        centred + term_gamma_ * absolute + std::fabs(o) * sum_gamma_ * sum + quotients;
    const double underflow =
        terms_[Term::value_underflow] * (2 * shares_.count() + 2) * c_.product_floor;
    const double bound = numerator / denominator_ + underflow;
    return (bound * (1 + divisions) + divisions * std::fabs(o)) * (1 + safety::evaluation);
  }

 private:
  // Computes H_s, which is 0 for a distance of 0, because e^0 is exactly 1.
  double exponent_error(double distance, double unit) const {
    if (distance == 0) return 0;
    const double u = c_.roundoff, x = distance * unit;
    return (terms_[Term::argument] * c_.argument_roundings * u * x +
            terms_[Term::exp] * c_.exp_ulp * 2 * u +
            terms_[Term::exp_per_unit] * c_.exp_ulp_per_unit * 2 * u * x) *
           (1 + safety::second_order);
  }
  double omega(std::size_t k) const { return shares_.distance[k] == 0 ? 0 : omega_; }

  // Computes B_L.
  double lse_bound(double defect, double unit) const {
    const double u = c_.roundoff, log_sum = std::fabs(shares_.log_sum);
    const double reach = log_sum + defect / unit, magnitude = std::fabs(shares_.max) + log_sum;
    const double near_one =
        reach < safety::log_near_one ? terms_[Term::log_near_one] * safety::log_unit_near_one : 0;
    const double rounded = terms_[Term::lse_sum] * magnitude + terms_[Term::lse_base] * reach;
    return terms_[Term::lse_weights] * -std::log1p(-defect) / unit +
           terms_[Term::log] * c_.log_ulp * 2 * u * (reach + near_one) +
           safety::one_rounding * u * rounded + terms_[Term::lse_underflow] * c_.product_floor;
  }

  const Shares& shares_;
  const Contract& c_;
  const MergeTerms terms_;
  double term_gamma_ = 0, sum_gamma_ = 0, omega_ = 0, denominator_ = 1, lse_ = 0;
  std::vector<double> growth_;
};

// The contract of the oracle's own arithmetic.
Contract fp64_contract() {
  Contract c;
  c.roundoff = safety::unit64;
  c.argument_roundings = 3;
  c.exp_ulp = c.log_ulp = safety::library_ulp;
  c.exp_floor = c.product_floor = safety::merge_underflow;
  return c;
}

void merge_in_balls(const MergeProblem& problem, const Shares& s, Index b, Index h, Index i,
                    long bits, MergedRow& row) {
  double reach = 1;
  for (double d : s.distance)
    reach = std::max(reach, std::min(d, safety::largest_distance_in_balls));
  bits += std::ilogb(reach) + 8;
  std::vector<Ball> w(s.part.size());
  const Ball max(s.max);
  Ball sum, term, two(2.0);
  arb_log(two.get(), two.get(), bits);
  for (std::size_t k = 0; k < w.size(); ++k) {
    const TensorView& lse = problem.parts[s.part[k]].lse;
    arb_sub(term.get(), Ball(load(lse, lse.at(b, h, i, 0))).get(), max.get(), bits);
    if (problem.base_two) arb_mul(term.get(), term.get(), two.get(), bits);
    arb_exp(w[k].get(), term.get(), bits);
    arb_add(sum.get(), sum.get(), w[k].get(), bits);
  }
  for (std::size_t c = 0; c < row.o.size(); ++c) {
    Ball o;
    for (std::size_t k = 0; k < w.size(); ++k) {
      const TensorView& v = problem.parts[s.part[k]].o;
      const double x = load(v, v.at(b, h, i, static_cast<Index>(c)));
      if (std::isfinite(x)) arb_addmul(o.get(), w[k].get(), Ball(x).get(), bits);
    }
    arb_div(o.get(), o.get(), sum.get(), bits);
    const BallRow::Enclosure e = enclose(o.get(), bits);
    row.o[c] = e.value, row.o_low[c] = e.low, row.o_radius[c] = e.radius;
  }
  arb_log(term.get(), sum.get(), bits);
  if (problem.base_two) arb_div(term.get(), term.get(), two.get(), bits);
  arb_add(term.get(), term.get(), max.get(), 2 * bits + 128);
  const BallRow::Enclosure e = enclose(term.get(), bits);
  row.lse = e.value, row.lse_low = e.low, row.lse_radius = e.radius;
}

}  // namespace

MergedRow merge_row(const MergeProblem& problem, const Contract& contract, Index b, Index h,
                    Index i, long bits, const MergeTerms& terms) {
  MergedRow row;
  Shares s;
  s.max = -inf;
  for (std::size_t k = 0; k < problem.parts.size(); ++k) {
    const double lse = load(problem.parts[k].lse, problem.parts[k].lse.at(b, h, i, 0));
    if (std::isnan(lse) || lse == inf) row.nan = true;
    if (lse == -inf) continue;
    s.part.push_back(k);
    s.max = std::max(s.max, lse);
  }
  if (row.nan) return row;
  row.empty = s.part.empty();
  if (row.empty) return row;
  const double unit = problem.base_two ? log_two : 1;
  double sum = 0;
  for (std::size_t k : s.part) {
    s.distance.push_back(s.max - load(problem.parts[k].lse, problem.parts[k].lse.at(b, h, i, 0)));
    s.p.push_back(std::exp(-s.distance.back() * unit));
    sum += s.p.back();
  }
  for (double& p : s.p) p /= sum;
  s.log_sum = std::log(sum) / unit;

  const auto columns = usize(problem.parts[0].o.shape[3]);
  for (auto* v : {&row.o, &row.o_low, &row.o_radius, &row.o_bound, &row.extended})
    v->assign(columns, 0);
  row.underflow.assign(columns, 0);
  row.may_overflow.assign(columns, 0);
  const Contract fp64 = fp64_contract();
  const MergeBound bound(s, contract, unit, terms), radius(s, fp64, unit, {});
  row.lse = s.max + s.log_sum;
  row.lse_radius = radius.lse() * safety::one_rounding;
  row.lse_bound = bound.lse();
  const double underflow_distance = (-std::log(contract.exp_floor) - 1) / unit;
  std::vector<std::vector<double>> values(columns, std::vector<double>(s.part.size()));
  for (std::size_t c = 0; c < columns; ++c) {
    double largest = 0;
    for (std::size_t k = 0; k < s.part.size(); ++k) {
      const TensorView& o = problem.parts[s.part[k]].o;
      double x = load(o, o.at(b, h, i, static_cast<Index>(c)));
      if (!std::isfinite(x)) {
        row.extended[c] = row.extended[c] == 0 || row.extended[c] == x ? x : nan;
        row.underflow[c] |= s.distance[k] > underflow_distance;
        x = 0;
      }
      values[c][k] = x;
      row.o[c] += s.p[k] * x;
      largest = std::max(largest, std::fabs(x));
    }
    row.o_radius[c] = radius.column(values[c], row.o[c]) * safety::one_rounding;
    row.may_overflow[c] =
        !(s.count() * largest * (1 + safety::accumulation) < contract.largest) && s.part.size() > 1;
  }
  if (bits > 0) merge_in_balls(problem, s, b, h, i, bits, row);
  for (std::size_t c = 0; c < columns; ++c) row.o_bound[c] = bound.column(values[c], row.o[c]);
  return row;
}

}  // namespace assay
