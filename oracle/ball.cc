#include "oracle/ball.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/arb_ball.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

double finite_or_zero(double x) { return std::isfinite(x) ? x : 0; }

}  // namespace

BallRow::BallRow(const ProjectedAttention& p, Index b, Index h, Index i, long bits) {
  const AttentionShape& s = p.shape;
  const Index g = h / s.group();
  const auto keys = usize(s.keys), dim = usize(s.dim);
  RowVisibility seen;
  evaluate_visibility(p, b, h, i, seen);
  for (auto* v : {&gap_, &dot_, &absolute_, &prefix_, &weight_}) v->assign(keys, 0);
  gap_.assign(keys, inf);
  magnitude_ = seen.magnitude;
  product_ = seen.product;
  kept_.assign(keys, 1);

  std::vector<double> q(dim);
  for (std::size_t d = 0; d < dim; ++d)
    q[d] = finite_or_zero(load(p.q, p.q.at(b, h, i, static_cast<Index>(d))));
  // A key whose score is -inf keeps no weight. But a softcap turns an infinite score into a finite
  // one.
  const bool q_finite = std::all_of(q.begin(), q.end(), [&, d = Index{0}](double) mutable {
    return std::isfinite(load(p.q, p.q.at(b, h, i, d++)));
  });
  std::vector<double> capped(keys, std::numeric_limits<double>::quiet_NaN());
  for (std::size_t j = 0; j < keys; ++j) {
    if (seen.bias[j] == -inf) continue;
    bool finite = q_finite;
    for (std::size_t d = 0; finite && d < dim; ++d)
      finite = std::isfinite(load(p.k, p.k.at(b, g, static_cast<Index>(j), static_cast<Index>(d))));
    if (finite) continue;
    const double t = extended_score(p, b, h, i, static_cast<Index>(j));
    if (t == -inf) seen.bias[j] = -inf;
    else capped[j] = t;
  }

  // The exponent of a weight needs absolute accuracy. It therefore gets as many further bits as the
  // largest score has before its binary point.
  double reach = 1;
  for (std::size_t j = 0; j < keys; ++j) {
    if (seen.bias[j] == -inf) continue;
    double absolute = 0;
    for (std::size_t d = 0; d < dim; ++d)
      absolute += std::fabs(q[d] * finite_or_zero(load(p.k, p.k.at(b, g, static_cast<Index>(j),
                                                                   static_cast<Index>(d)))));
    reach = std::max(reach, absolute * std::max(1.0, static_cast<double>(p.scale)) +
                                finite_or_zero(seen.magnitude[j]));
  }
  bits += std::ilogb(reach) + 8;
  const Ball scale(p.scale), cap(p.softcap);
  std::vector<Ball> score(keys);
  Ball term, sum, maximum;
  bool any = false;
  for (std::size_t j = 0; j < keys; ++j) {
    if (seen.bias[j] == -inf) continue;
    arb_zero(sum.get());
    double partial = 0, absolute = 0, prefix = 0;
    for (std::size_t d = 0; d < dim; ++d) {
      const double k =
          finite_or_zero(load(p.k, p.k.at(b, g, static_cast<Index>(j), static_cast<Index>(d))));
      arb_set_d(term.get(), k);
      arb_addmul(sum.get(), term.get(), Ball(q[d]).get(), bits);
      partial += q[d] * k;
      absolute += std::fabs(q[d]) *
                  (p.projection ? load(p.projection.k_absolute,
                                       p.projection.k_absolute.at(b, g, static_cast<Index>(j),
                                                                  static_cast<Index>(d)))
                                : std::fabs(k));
      prefix += std::fabs(partial);
    }
    dot_[j] = nearest(sum.get());
    arb_mul(sum.get(), sum.get(), scale.get(), bits);
    absolute_[j] = absolute;
    prefix_[j] = prefix;
    if (p.softcap > 0) {
      arb_div(sum.get(), sum.get(), cap.get(), bits);
      arb_tanh(sum.get(), sum.get(), bits);
      arb_mul(sum.get(), sum.get(), cap.get(), bits);
    }
    if (!std::isnan(capped[j])) arb_set_d(sum.get(), capped[j]);
    // This adds the exact biases, because visibility.cc has only their sum in double.
    if (p.bias) {
      arb_set_d(term.get(),
                finite_or_zero(load(p.bias, p.bias.at(b, h, i, static_cast<Index>(j)))));
      arb_add(sum.get(), sum.get(), term.get(), bits);
    }
    if (!p.alibi_slopes.empty()) {
      arb_set_si(term.get(), static_cast<slong>(j) - (i + p.offset_of(b)));
      arb_addmul(sum.get(), term.get(), Ball(p.alibi_slopes[usize(h)]).get(), bits);
    }
    score[j] = sum;
    ++truth_.live;
    if (!any || arf_cmp(arb_midref(sum.get()), arb_midref(maximum.get())) > 0) maximum = sum;
    any = true;
  }
  truth_.has_sink = !p.sink.empty() && p.sink[usize(h)] > -inf;
  const Ball sink(truth_.has_sink ? p.sink[usize(h)] : 0.0f);
  if (truth_.has_sink && (!any || arf_cmp(arb_midref(sink.get()), arb_midref(maximum.get())) > 0))
    maximum = sink;

  Ball total;
  std::vector<Ball> weight(keys);
  for (std::size_t j = 0; j < keys; ++j) {
    if (seen.bias[j] == -inf) continue;
    arb_sub(term.get(), maximum.get(), score[j].get(), bits);
    gap_[j] = std::max(0.0, nearest(term.get()));
    arb_neg(term.get(), term.get());
    arb_exp(weight[j].get(), term.get(), bits);
    arb_add(total.get(), total.get(), weight[j].get(), bits);
  }
  if (truth_.has_sink) {
    arb_sub(term.get(), maximum.get(), sink.get(), bits);
    truth_.sink_gap = std::max(0.0, nearest(term.get()));
    arb_neg(term.get(), term.get());
    arb_exp(term.get(), term.get(), bits);
    arb_add(total.get(), total.get(), term.get(), bits);
    arb_div(term.get(), term.get(), total.get(), bits);
    truth_.sink_weight = nearest(term.get());
  }
  arb_log(term.get(), total.get(), bits);
  arb_add(term.get(), term.get(), maximum.get(), bits);
  lse_ = enclose(term.get(), bits);
  truth_.max = nearest(maximum.get());
  truth_.lse = lse_.value;
  truth_.additions = seen.additions;

  Ball keep_scale(1.0);
  if (p.dropout > 0) {
    arb_sub(keep_scale.get(), keep_scale.get(), Ball(p.dropout).get(), bits);
    arb_inv(keep_scale.get(), keep_scale.get(), bits);
  }
  std::vector<Ball> o(usize(s.value_dim));
  for (std::size_t j = 0; j < keys; ++j) {
    if (seen.bias[j] == -inf) continue;
    arb_div(weight[j].get(), weight[j].get(), total.get(), bits);
    weight_[j] = nearest(weight[j].get());
    kept_[j] = keeps_weight(p, b, h, i, static_cast<Index>(j));
    if (kept_[j] == 0) continue;
    for (Index c = 0; c < s.value_dim; ++c) {
      arb_set_d(term.get(), finite_or_zero(load(p.v, p.v.at(b, g, static_cast<Index>(j), c))));
      arb_addmul(o[usize(c)].get(), weight[j].get(), term.get(), bits);
    }
  }
  for (Ball& x : o) {
    arb_mul(x.get(), x.get(), keep_scale.get(), bits);
    o_.push_back(enclose(x.get(), bits));
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
