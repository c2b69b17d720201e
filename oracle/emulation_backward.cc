#include "oracle/emulation_backward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace assay {
namespace {

// The LSE that follows from the scores of a row. An error of the largest score is one of all
// weights of the row, which a stored LSE would have brought with it.
double lse_of_scores(const EmulatedRows& x, const Eigen::ArrayXd& s) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const double sink = x.has_sink ? static_cast<double>(x.sink) : -infinity;
  const double max = std::max(s.maxCoeff(), sink);
  if (!(max > -infinity)) return max;
  return max + std::log((s - max).exp().sum() + std::exp(sink - max));
}

// D of a row. Where dP hardly differs from it, its roundings are all that a gradient has, and where
// all terms are alike, a plain loop rounds as no sum in lanes does.
float dot_of_row(const Schedule& how, const RowMajorSingle& d_o, const RowMajorSingle& o, Index r) {
  if (!how.sums_in_order) return d_o.row(r).dot(o.row(r));
  float sum = 0;
  for (Index c = 0; c < o.cols(); ++c) sum += d_o(r, c) * o(r, c);
  return sum;
}

// exp(s - lse) before its own error. A kernel that computes 2^x multiplies both numbers by log2 e;
// the product with lse is rounded, and the other one is fused into the difference. The constant of
// the scores is rounded together with the scale, that of LSE alone: where scores are large, the
// weights of all rows are off by one factor.
Eigen::ArrayXd weights_of_row(const Contract& c, const Schedule& how, const Eigen::ArrayXd& s,
                              double lse) {
  if (!how.base_two) return (s - lse).cast<float>().cast<double>().exp();
  constexpr double log2e = std::numbers::log2e_v<float>;
  const auto subtracted = static_cast<double>(static_cast<float>(lse * log2e));
  const double folded = log2e * (1 + how.constant * c.scale_error);
  return ((s * folded - subtracted).cast<float>().cast<double>() * std::numbers::ln2).exp();
}

}  // namespace

EmulatedGradients emulate_backward(const Contract& c, const Schedule& how, const Schedule& forward,
                                   const EmulatedBackward& in) {
  const EmulatedRows& x = in.in;
  const Index rows = x.q.rows(), n = x.count, dv = in.o.cols();
  const RowMajorSingle keys = x.kv->keys_transposed_single.middleCols(x.key0, n).transpose();
  // V holds 1 / (1 - dropout), which the backward pass multiplies in elsewhere.
  const RowMajorSingle values =
      x.kv->values_single.middleRows(x.key0, n).leftCols(dv) / in.keep_scale;
  RowMajorSingle slope;
  const RowMajorSingle s = emulated_scores(c, how, x, &slope);
  const bool own_lse = in.lse.size() == 0;
  // A backward pass that computes its scores anew rounds them otherwise than the forward pass.
  const RowMajorSingle& forward_scores =
      own_lse && !how.keeps_weights ? emulated_scores(c, forward, x) : s;
  RowMajorSingle p = RowMajorSingle::Zero(rows, n), dp = p, ds = p;
  add_product(c, how, in.d_o, RowMajorSingle(values.transpose()), dp);
  const double offset = how.exp_offset * c.exp_ulp * 0x1p-23,
               per_unit = how.exp_slope * c.exp_ulp_per_unit * 0x1p-23;
  for (Index r = 0; r < rows; ++r) {
    const Eigen::ArrayXd scores = s.row(r).transpose().array().cast<double>();
    double lse = own_lse
                     ? lse_of_scores(x, forward_scores.row(r).transpose().array().cast<double>())
                     : static_cast<double>(in.lse(r));
    if (!(lse > -std::numeric_limits<double>::infinity())) continue;
    if (!how.keeps_weights) lse = static_cast<double>(static_cast<float>(lse));
    const Eigen::ArrayXd weight =
        weights_of_row(c, how, scores, lse) * (1 + offset + per_unit * (scores - lse).max(-200.0));
    const double floor = how.flushes ? c.exp_floor : 0;
    p.row(r) = (weight < floor).select(0.0, weight).cast<float>().matrix().transpose();
    const float delta = dot_of_row(how, in.d_o, in.o, r) - in.d_lse(r);
    if (x.kept.size() > 0) dp.row(r).array() *= x.kept.row(r).array() * in.keep_scale;
    if (c.dp_dtype) {
      RowMajorSingle stored = dp.row(r);
      round_all(*c.dp_dtype, stored);
      dp.row(r) = stored;
    }
    // A kernel that casts P once and computes dS from it (score_gradients_late) may also not.
    RowMajorSingle used = p.row(r);
    if (c.score_gradients_late && c.weight_dtype && how.rounds_unscaled)
      round_all(*c.weight_dtype, used);
    const float subtracted = c.dp_dtype ? used.row(0).dot(dp.row(r)) - in.d_lse(r) : delta;
    ds.row(r) = used.array() * (dp.row(r).array() - subtracted);
  }
  if (c.dp_dtype) round_all(*c.dp_dtype, ds);
  if (slope.size() > 0) ds.array() *= slope.array();
  const bool late = c.score_gradients_late && how.scales_gradients;
  if (late) ds *= x.scale;
  if (c.weight_dtype) round_all(*c.weight_dtype, ds);
  if (x.kept.size() > 0) p.array() *= x.kept.array() * in.keep_scale;
  if (c.weight_dtype) round_all(*c.weight_dtype, p);
  EmulatedGradients out{RowMajorSingle::Zero(rows, x.q.cols()), RowMajorSingle::Zero(n, x.q.cols()),
                        RowMajorSingle::Zero(n, dv)};
  for (Index t : how.order) {
    const Index first = t * how.tile, width = std::min(how.tile, n - first);
    if (width <= 0) continue;
    add_product(c, how, RowMajorSingle(ds.middleCols(first, width)), keys.middleRows(first, width),
                out.dq);
  }
  for (Index first = 0; first < rows; first += how.tile) {
    const Index width = std::min(how.tile, rows - first);
    add_product(c, how, RowMajorSingle(ds.middleRows(first, width).transpose()),
                x.q.middleRows(first, width), out.dk);
    add_product(c, how, RowMajorSingle(p.middleRows(first, width).transpose()),
                in.d_o.middleRows(first, width), out.dv);
  }
  if (!late) {
    out.dq *= x.scale;
    out.dk *= x.scale;
  }
  return out;
}

}  // namespace assay
