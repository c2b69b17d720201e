#include "oracle/ball.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/arb_ball.h"
#include "oracle/safety_factors.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

double finite_or_zero(double x) { return std::isfinite(x) ? x : 0; }

}  // namespace

// The evaluation of one row, step by step; what lives on is written into the row.
class BallRow::Evaluation {
 public:
  Evaluation(BallRow& row, const ProjectedAttention& p, Index b, Index h, Index i, long bits)
      : row_(row), p_(p), b_(b), h_(h), i_(i), g_(h / p.shape.group()), bits_(bits) {
    evaluate_visibility(p, b, h, i, seen_);
    const auto keys = usize(p.shape.keys);
    capped_.assign(keys, std::numeric_limits<double>::quiet_NaN());
    score_.resize(keys);
    weight_.resize(keys);
    double square = 0;
    for (Index d = 0; d < p.shape.dim; ++d) {
      const double x = load(p.q, p.q.at(b, h, i, d));
      q_finite_ = q_finite_ && std::isfinite(x);
      q_.push_back(finite_or_zero(x));
      square += q_.back() * q_.back();
    }
    row.truth_.query_norm = std::sqrt(square) * (1 + safety::norm);
    row.gap_.assign(keys, inf);
    for (auto* v : {&row.dot_, &row.absolute_, &row.prefix_, &row.weight_}) v->assign(keys, 0);
    row.magnitude_ = seen_.magnitude;
    row.product_ = seen_.product;
    row.kept_.assign(keys, 1);
  }

  void find_infinite_scores();
  void add_bits_for_exponents();
  void evaluate_scores();
  void evaluate_weights();
  void evaluate_output();

 private:
  bool visible(std::size_t j) const { return seen_.bias[j] != -inf; }
  double key(std::size_t j, std::size_t d) const {
    return load(p_.k, p_.k.at(b_, g_, static_cast<Index>(j), static_cast<Index>(d)));
  }
  // |k_jd|, or the gauge of an element that is a projection.
  double key_gauge(std::size_t j, std::size_t d, double k) const {
    if (!p_.projection) return std::fabs(k);
    const TensorView& absolute = p_.projection.k_absolute;
    return load(absolute, absolute.at(b_, g_, static_cast<Index>(j), static_cast<Index>(d)));
  }
  void evaluate_dot(std::size_t j, Ball& sum);
  void add_biases(std::size_t j, Ball& sum);
  void raise_maximum(const Ball& x) {
    if (!any_ || arf_cmp(arb_midref(x.get()), arb_midref(maximum_.get())) > 0) maximum_ = x;
  }

  BallRow& row_;
  const ProjectedAttention& p_;
  const Index b_, h_, i_, g_;
  long bits_;
  RowVisibility seen_;
  std::vector<double> q_;
  bool q_finite_ = true, any_ = false;
  std::vector<double> capped_;  // what a softcap makes of an infinite score; NaN elsewhere
  std::vector<Ball> score_, weight_;
  Ball term_, maximum_, total_;
};

BallRow::BallRow(const ProjectedAttention& p, Index b, Index h, Index i, long bits) {
  Evaluation row(*this, p, b, h, i, bits);
  row.find_infinite_scores();
  row.add_bits_for_exponents();
  row.evaluate_scores();
  row.evaluate_weights();
  row.evaluate_output();
}

// A key whose score is -inf keeps no weight. But a softcap turns an infinite score into a finite
// one.
void BallRow::Evaluation::find_infinite_scores() {
  for (std::size_t j = 0; j < score_.size(); ++j) {
    if (!visible(j)) continue;
    bool finite = q_finite_;
    for (std::size_t d = 0; finite && d < q_.size(); ++d) finite = std::isfinite(key(j, d));
    if (finite) continue;
    const double t = extended_score(p_, b_, h_, i_, static_cast<Index>(j));
    if (t == -inf) seen_.bias[j] = -inf;
    else capped_[j] = t;
  }
}

// The exponent of a weight needs absolute accuracy. It therefore gets as many further bits as the
// largest score has before its binary point.
void BallRow::Evaluation::add_bits_for_exponents() {
  double reach = 1;
  for (std::size_t j = 0; j < score_.size(); ++j) {
    if (!visible(j)) continue;
    double absolute = 0;
    for (std::size_t d = 0; d < q_.size(); ++d)
      absolute += std::fabs(q_[d] * finite_or_zero(key(j, d)));
    reach = std::max(reach, absolute * std::max(1.0, std::fabs(static_cast<double>(p_.scale))) +
                                finite_or_zero(seen_.magnitude[j]));
  }
  bits_ += std::ilogb(reach) + 8;
}

// q.k_j, with its gauges.
void BallRow::Evaluation::evaluate_dot(std::size_t j, Ball& sum) {
  double partial = 0, absolute = 0, prefix = 0, square = 0;
  for (std::size_t d = 0; d < q_.size(); ++d) {
    const double k = finite_or_zero(key(j, d));
    arb_set_d(term_.get(), k);
    arb_addmul(sum.get(), term_.get(), Ball(q_[d]).get(), bits_);
    partial += q_[d] * k;
    const double gauge = key_gauge(j, d, k);
    absolute += std::fabs(q_[d]) * gauge;
    square += gauge * gauge;
    prefix += std::fabs(partial);
  }
  row_.dot_[j] = nearest(sum.get());
  row_.absolute_[j] = absolute;
  row_.prefix_[j] = prefix;
  row_.truth_.key_norm = std::max(row_.truth_.key_norm, std::sqrt(square) * (1 + safety::norm));
}

// Adds the exact biases, because visibility.cc has only their sum in double.
void BallRow::Evaluation::add_biases(std::size_t j, Ball& sum) {
  const auto key = static_cast<Index>(j);
  if (p_.bias) {
    arb_set_d(term_.get(), finite_or_zero(load(p_.bias, p_.bias.at(b_, h_, i_, key))));
    arb_add(sum.get(), sum.get(), term_.get(), bits_);
  }
  if (!p_.alibi_slopes.empty()) {
    arb_set_si(term_.get(), static_cast<slong>(key) - (i_ + p_.offset_of(b_)));
    arb_addmul(sum.get(), term_.get(), Ball(p_.alibi_slopes[usize(h_)]).get(), bits_);
  }
}

void BallRow::Evaluation::evaluate_scores() {
  const Ball scale(p_.scale), cap(p_.softcap);
  Ball sum;
  for (std::size_t j = 0; j < score_.size(); ++j) {
    if (!visible(j)) continue;
    arb_zero(sum.get());
    evaluate_dot(j, sum);
    arb_mul(sum.get(), sum.get(), scale.get(), bits_);
    if (p_.softcap > 0) {
      arb_div(sum.get(), sum.get(), cap.get(), bits_);
      arb_tanh(sum.get(), sum.get(), bits_);
      arb_mul(sum.get(), sum.get(), cap.get(), bits_);
    }
    if (!std::isnan(capped_[j])) arb_set_d(sum.get(), capped_[j]);
    add_biases(j, sum);
    score_[j] = sum;
    ++row_.truth_.live;
    raise_maximum(sum);
    any_ = true;
  }
}

// Weights before the division by their sum, the sum, M and LSE.
void BallRow::Evaluation::evaluate_weights() {
  RowTruth& truth = row_.truth_;
  truth.has_sink = !p_.sink.empty() && p_.sink[usize(h_)] > -inf;
  const Ball sink(truth.has_sink ? p_.sink[usize(h_)] : 0.0f);
  if (truth.has_sink) raise_maximum(sink);
  for (std::size_t j = 0; j < score_.size(); ++j) {
    if (!visible(j)) continue;
    arb_sub(term_.get(), maximum_.get(), score_[j].get(), bits_);
    row_.gap_[j] = std::max(0.0, nearest(term_.get()));
    arb_neg(term_.get(), term_.get());
    arb_exp(weight_[j].get(), term_.get(), bits_);
    arb_add(total_.get(), total_.get(), weight_[j].get(), bits_);
  }
  if (truth.has_sink) {
    arb_sub(term_.get(), maximum_.get(), sink.get(), bits_);
    truth.sink_gap = std::max(0.0, nearest(term_.get()));
    arb_neg(term_.get(), term_.get());
    arb_exp(term_.get(), term_.get(), bits_);
    arb_add(total_.get(), total_.get(), term_.get(), bits_);
    arb_div(term_.get(), term_.get(), total_.get(), bits_);
    truth.sink_weight = nearest(term_.get());
  }
  arb_log(term_.get(), total_.get(), bits_);
  arb_add(term_.get(), term_.get(), maximum_.get(), bits_);
  row_.lse_ = enclose(term_.get(), bits_);
  truth.max = nearest(maximum_.get());
  truth.lse = row_.lse_.value;
  truth.additions = seen_.additions;
}

void BallRow::Evaluation::evaluate_output() {
  Ball keep_scale(1.0);
  if (p_.dropout > 0) {
    arb_sub(keep_scale.get(), keep_scale.get(), Ball(p_.dropout).get(), bits_);
    arb_inv(keep_scale.get(), keep_scale.get(), bits_);
  }
  std::vector<Ball> o(usize(p_.shape.value_dim));
  for (std::size_t j = 0; j < weight_.size(); ++j) {
    if (!visible(j)) continue;
    const auto key = static_cast<Index>(j);
    arb_div(weight_[j].get(), weight_[j].get(), total_.get(), bits_);
    row_.weight_[j] = nearest(weight_[j].get());
    row_.kept_[j] = keeps_weight(p_, b_, h_, i_, key);
    if (row_.kept_[j] == 0) continue;
    for (Index c = 0; c < p_.shape.value_dim; ++c) {
      arb_set_d(term_.get(), finite_or_zero(load(p_.v, p_.v.at(b_, g_, key, c))));
      arb_addmul(o[usize(c)].get(), weight_[j].get(), term_.get(), bits_);
    }
  }
  for (Ball& x : o) {
    arb_mul(x.get(), x.get(), keep_scale.get(), bits_);
    row_.o_.push_back(enclose(x.get(), bits_));
  }
}

RowTruth BallRow::truth(Index key0, Index count, bool with_prefix) const {
  RowTruth t = truth_;
  t.key0 = key0;
  t.count = count;
  t.gap = gap_.data() + key0;
  t.dot = dot_.data() + key0;
  t.absolute = absolute_.data() + key0;
  t.prefix = with_prefix ? prefix_.data() + key0 : nullptr;
  t.weight = weight_.data() + key0;
  t.magnitude = truth_.additions > 0 ? magnitude_.data() + key0 : nullptr;
  t.product = truth_.additions > 0 ? product_.data() + key0 : nullptr;
  t.kept = kept_.data() + key0;
  return t;
}

}  // namespace assay
