#include "oracle/stages.h"

#include <algorithm>
#include <cmath>

#include "oracle/key_values.h"
#include "oracle/safety_factors.h"
#include "oracle/stored_forward.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
// The bounds and the values are computed in fp64; both err by far less than this.
constexpr double own = 1 + safety::stage;

double keep_scale(const Attention& p) {
  return p.dropout > 0 ? 1 / (1 - static_cast<double>(p.dropout)) : 1;
}

}  // namespace

bool StageRow::visible(Index j) const {
  const Index at = j - block_.key0;
  return at >= 0 && at < block_.count && block_.visible[usize(at)];
}

Expected StageRow::score(Index j) const {
  const auto at = usize(j - block_.key0);
  double t = static_cast<double>(p_->scale) * block_.dot[at], e = block_.score_error[at];
  if (p_->softcap > 0) {
    const double cap = p_->softcap;
    t = cap * std::tanh(t / cap);
  }
  if (!block_.capped_error.empty()) e = block_.capped_error[at];
  return {t, e * own + safety::library_tanh * std::fabs(t)};
}

Expected StageRow::plain_score(Index j) const {
  return p_->softcap > 0 ? Expected::unknown() : score(j);
}

Expected StageRow::masked(Index j) const {
  if (!visible(j)) return {-inf, 0};
  const auto at = usize(j - block_.key0);
  // The largest score may be that of a sink, which can be far from s.
  const double max = block_.row(0).max, s = max - block_.gap[at];
  return {s, block_.score_error[at] * own + safety::library_tanh * std::fabs(s) +
                 safety::gap_in_fp64 * (std::fabs(max) + block_.gap[at])};
}

const StageRow::Maximum& StageRow::maximum(Index first, Index end) const {
  const auto [found, made] = maxima_.try_emplace({first, end});
  Maximum& m = found->second;
  if (!made) return m;
  m = {-inf, 0, 0};
  double high = -inf, low = -inf;
  for (Index j = std::max(first, block_.key0); j < std::min(end, block_.key0 + block_.count); ++j) {
    if (!visible(j)) continue;
    const Expected s = masked(j);
    ++m.live;
    m.value = std::max(m.value, s.value);
    high = std::max(high, s.value + s.error);
    low = std::max(low, s.value - s.error);
  }
  if (m.live > 0) m.error = std::max(high - m.value, m.value - low);
  return m;
}

Expected StageRow::row_max(Index first, Index end) const {
  const Maximum& m = maximum(first, end);
  return m.live == 0 ? Expected::unknown() : Expected{m.value, m.error};
}

// Computes H of docs/trace.md, the error of the argument s_j - m and of one exponential.
double StageRow::exponent_error(Index j, const Maximum& m) const {
  const Expected s = masked(j);
  const double u = c_->roundoff, reach = (m.value - s.value) + s.error + m.error;
  double h = s.error + m.error +
             (c_->argument_roundings * u * (1 + 4 * u) + 2 * u * c_->exp_ulp_per_unit) * reach +
             2 * u * c_->exp_ulp;
  if (c_->fused_argument)
    h += safety::two_roundings * u * (std::max(std::fabs(s.value), std::fabs(m.value)) + m.error);
  return (h + c_->scale_error * reach) * own;
}

Expected StageRow::correction(Index first, Index before, Index end) const {
  const Maximum &was = maximum(first, before), &is = maximum(first, end);
  if (was.live == 0) return Expected::unknown();
  const double u = c_->roundoff, gap = is.value - was.value, reach = gap + was.error + is.error,
               value = std::exp(-gap);
  double h = was.error + is.error +
             (c_->argument_roundings * u * (1 + 4 * u) + 2 * u * c_->exp_ulp_per_unit) * reach +
             2 * u * c_->exp_ulp + c_->scale_error * reach;
  if (c_->fused_argument)
    h += safety::two_roundings * u *
         (std::max(std::fabs(was.value), std::fabs(is.value)) + is.error);
  return {value, (value * expm1_above(h * own) + c_->exp_floor) * own};
}

Expected StageRow::weight(Index j, Index first, Index end) const {
  const Maximum& m = maximum(first, end);
  if (m.live == 0) return Expected::unknown();
  if (!visible(j)) return {0, 0};
  const double exact = std::exp(masked(j).value - m.value);
  double error = exact * expm1_above(exponent_error(j, m)) + c_->exp_floor;
  if (p_->dropout > 0) {
    if (!block_.kept[usize(j - block_.key0)]) return {0, 0};
    error = keep_scale(*p_) * (error + gamma_factor(3, c_->roundoff) * (exact + error)) +
            c_->product_floor;
  }
  const double value = exact * keep_scale(*p_);
  // The bound covers the cast, because a probe may see the weight before or after it.
  if (c_->weight_dtype)
    error += std::max(unit_roundoff(*c_->weight_dtype) * (value + error),
                      half_min_subnormal(*c_->weight_dtype) * keep_scale(*p_));
  return {value, error * own};
}

// Each key has an exponential and one correction for every later tile. Then comes a chain of
// additions and products.
Expected StageRow::row_sum(Index first, Index end, Index tiles) const {
  const Maximum& m = maximum(first, end);
  if (m.live == 0) return Expected::unknown();
  const double u = c_->roundoff, corrections = 2 * u * c_->exp_ulp * static_cast<double>(tiles);
  const double gamma = gamma_factor(static_cast<double>(m.live + tiles) + 1, u),
               floor = static_cast<double>(tiles + 1) * c_->exp_floor;
  const bool rounded = c_->sum_from_rounded && c_->weight_dtype;
  const double cast = rounded ? unit_roundoff(*c_->weight_dtype) : 0,
               cast_floor = rounded ? half_min_subnormal(*c_->weight_dtype) : 0;
  double value = 0, error = 0;
  for (Index j = std::max(first, block_.key0); j < std::min(end, block_.key0 + block_.count); ++j) {
    if (!visible(j)) continue;
    const double w = std::exp(masked(j).value - m.value),
                 growth = expm1_above(exponent_error(j, m) + corrections);
    value += w;
    error += w * growth + (gamma + cast) * w * (1 + growth) + floor + cast_floor;
  }
  return {value, error * own};
}

Expected StageRow::accumulated(Index first, Index end, Index tiles, Index column) const {
  const Maximum& m = maximum(first, end);
  if (m.live == 0) return Expected::unknown();
  const double u = c_->roundoff, corrections = 2 * u * c_->exp_ulp * static_cast<double>(tiles);
  const double gamma = gamma_factor(
      dot_roundings(*c_,
                    static_cast<double>(m.live + (c_->dot_block > 0 ? c_->dot_block * tiles : 0))) +
          static_cast<double>(tiles) + 1,
      std::max(c_->dot_roundoff, u));
  const double dropout = p_->dropout > 0 ? gamma_factor(3, u) : 0,
               floor = static_cast<double>(tiles + 1) * c_->exp_floor;
  const double cast = c_->weight_dtype ? unit_roundoff(*c_->weight_dtype) : 0,
               cast_floor = c_->weight_dtype ? half_min_subnormal(*c_->weight_dtype) : 0;
  double value = 0, error = 0;
  for (Index j = std::max(first, block_.key0); j < std::min(end, block_.key0 + block_.count); ++j) {
    if (!visible(j) || (p_->dropout > 0 && !block_.kept[usize(j - block_.key0)])) continue;
    const double w = std::exp(masked(j).value - m.value),
                 growth = expm1_above(exponent_error(j, m) + corrections),
                 v = kv_->values(j, column);
    value += w * v;
    const double off = w * growth + floor, all = w + off;
    error += (off + (gamma + cast + dropout) * all * (1 + cast) + cast_floor) * std::fabs(v) +
             c_->product_floor;
  }
  return {value, (error + static_cast<double>(tiles) * c_->product_floor) * own};
}

Expected StageRow::output(Index column) const {
  if (block_.row(0).fully_masked) return {0, 0};
  const BlockElement& e = block_.element(0, column);
  return {e.value, (e.bound + e.radius) * own};
}

Expected StageRow::lse() const {
  const Certified& lse = block_.row(0).lse;
  if (lse.kind == Kind::minus_infinity) return {-inf, 0};
  return {lse.value, (lse.bound + lse.radius) * own};
}

Expected StageRow::delta() const { return delta_; }
Expected StageRow::probability(Index j) const { return probability_[usize(j)]; }
Expected StageRow::weight_gradient(Index j) const { return weight_gradient_[usize(j)]; }
Expected StageRow::score_gradient(Index j) const { return score_gradient_[usize(j)]; }

namespace {

// Whether the keys that a row sees, and their values, are finite. An infinity in K may give a score
// of -infinity, and then neither LSE nor O tells of it.
bool sees_numbers(const Attention& p, const KeyValues& kv, Index b, Index h, Index i) {
  if (!kv.any_key_not_finite && !kv.any_value_not_finite) return true;
  RowVisibility seen;
  evaluate_visibility(p, b, h, i, seen);
  for (Index j = seen.begin; j < seen.end; ++j) {
    const auto key = usize(j);
    if (seen.bias[key] != -inf && (kv.key_not_finite[key] || kv.value_not_finite[key]))
      return false;
  }
  return true;
}

}  // namespace

StageReference::StageReference(const Attention& problem, const Contract& contract,
                               const AttentionBackwardInput* backward)
    : problem_(problem), contract_(contract), backward_(backward), reference_(problem, contract_) {}

const StageRow& StageReference::row(Index b, Index h, Index i) {
  const auto [found, made] = rows_.try_emplace({b, h, i});
  StageRow& row = found->second;
  if (!made) return row;
  const Index g = h / problem_.shape.group();
  KeyValuesPointer& kv = heads_[{b, g}];
  if (!kv) kv = reference_.load_head(b, g);
  row.p_ = &problem_;
  row.c_ = &contract_;
  row.kv_ = kv.get();
  const Index rows[] = {i};
  row.block_ = reference_.evaluate(*kv, h, rows, Keep::scores);
  Block& block = row.block_;
  const BlockRow& known = block.row(0);
  if (known.needs_ball && known.lse.kind == Kind::finite) reference_.refine(*kv, block, 0, 128);
  row.judged_ = known.domain == Domain::bounded && known.lse.kind != Kind::nan &&
                (known.lse.kind == Kind::finite || known.fully_masked);
  for (const BlockElement& e : block.o)
    row.judged_ = row.judged_ && e.kind == Kind::finite && !e.value_overflow;
  for (Index d = 0; d < problem_.shape.dim; ++d)
    row.judged_ = row.judged_ && std::isfinite(load(problem_.q, problem_.q.at(b, h, i, d)));
  row.judged_ = row.judged_ && sees_numbers(problem_, *kv, b, h, i);
  if (backward_ && row.judged_) add_backward(row, b, h, i);
  return row;
}

void StageReference::add_backward(StageRow& row, Index b, Index h, Index i) const {
  const AttentionShape& s = problem_.shape;
  const Contract& c = contract_;
  const Block& block = row.block_;
  const BlockRow& known = block.row(0);
  // dLSE is one more term of D.
  const double u = c.roundoff,
               length = static_cast<double>(s.value_dim) + (backward_->d_lse ? 2 : 1);
  const auto n = usize(block.count);
  for (auto* list : {&row.probability_, &row.weight_gradient_, &row.score_gradient_})
    list->assign(usize(s.keys), Expected{});
  // P and D are computed from the stored LSE and O, because a kernel reads these.
  double stored = 0, stored_absolute = 0;
  std::vector<double> d_o(usize(s.value_dim));
  for (Index column = 0; column < s.value_dim; ++column) {
    const double x = load(backward_->d_o, backward_->d_o.at(b, h, i, column)),
                 o = load(backward_->o, backward_->o.at(b, h, i, column));
    if (!std::isfinite(x) || !std::isfinite(o)) row.judged_ = false;
    d_o[usize(column)] = x;
    stored += x * o;
    stored_absolute += std::fabs(x * o);
  }
  const double d_lse = lse_gradient_of_row(*backward_, b, h, i);
  if (!std::isfinite(d_lse)) row.judged_ = false;
  stored -= d_lse;
  stored_absolute += std::fabs(d_lse);
  const double lse = load(backward_->lse, backward_->lse.at(b, h, i, 0));
  if (!row.judged_ || (!std::isfinite(lse) && !known.fully_masked)) {
    row.judged_ = false;
    return;
  }
  row.delta_ = {known.fully_masked ? 0 : stored,
                (gamma_factor(length, u) * stored_absolute + length * c.product_floor) * own};
  if (known.fully_masked) {
    row.delta_ = Expected::unknown();  // nothing reads the D of such a row
    return;
  }
  BackwardContext x;
  x.forward = {s.dim, static_cast<double>(problem_.scale), static_cast<double>(problem_.softcap),
               problem_.dropout > 0};
  x.value_dim = s.value_dim;
  x.keep_scale = keep_scale(problem_);
  x.keys_length = x.rows_length = x.bias_length = 1;
  // dP includes the scale of dropout, because the values of kv_ are already multiplied by it.
  std::vector<double> dp(n), dp_absolute(n), weight(n), scratch(7 * n);
  const double gamma_values =
      gamma_factor(dot_roundings(c, static_cast<double>(s.value_dim)), c.dot_roundoff);
  for (std::size_t j = 0; j < n; ++j) {
    if (!block.visible[j]) continue;
    weight[j] = std::exp((known.max - lse) - block.gap[j]);
    for (Index column = 0; column < s.value_dim; ++column) {
      const double term =
          d_o[usize(column)] * row.kv_->values(block.key0 + static_cast<Index>(j), column);
      dp[j] += term;
      dp_absolute[j] += std::fabs(term);
    }
    row.weight_gradient_[usize(block.key0) + j] = {
        dp[j] / x.keep_scale,
        (gamma_values * dp_absolute[j] / x.keep_scale + (length + 1) * c.product_floor) * own};
    // This concerns dropped pairs too, because a kernel may compute them before it drops them.
    if (!(dp_absolute[j] * (1 + safety::accumulation) < c.largest)) row.judged_ = false;
    if (problem_.dropout > 0 && !block.kept[j]) dp[j] = dp_absolute[j] = 0;
  }
  GradientTruth t;
  t.count = block.count;
  t.gap = block.gap.data();
  t.weight = weight.data();
  t.dot = block.dot.data();
  t.score_error = block.score_error.data();
  t.capped_error = problem_.softcap > 0 ? block.capped_error.data() : nullptr;
  t.dp = dp.data();
  t.dp_absolute = dp_absolute.data();
  t.kept = problem_.dropout > 0 ? block.kept.data() : nullptr;
  t.max = known.max;
  t.lse = lse;
  t.delta = stored;
  t.delta_error = row.delta_.error;
  double* out = scratch.data();
  const GradientWeights weights{out,         out + n,     out + 2 * n, out + 3 * n,
                                out + 4 * n, out + 5 * n, out + 6 * n};
  const GradientRow bound = derive_gradient_row(c, x, t, weights);
  if (bound.may_overflow || bound.vacuous) {
    row.judged_ = false;
    return;
  }
  for (std::size_t j = 0; j < n; ++j) {
    const auto key = usize(block.key0) + j;
    if (!block.visible[j]) continue;
    const double argument = std::fabs((t.max - t.lse) - t.gap[j]), off = t.score_error[j];
    double exponent =
        off +
        (c.argument_roundings * u * (1 + 4 * u) + 2 * u * c.exp_ulp_per_unit) * (argument + off) +
        2 * u * c.exp_ulp;
    if (c.fused_argument)
      exponent += safety::two_roundings * u * std::fabs(t.lse) +
                  c.scale_error * std::fabs(static_cast<double>(problem_.scale) * t.dot[j]);
    double error = t.weight[j] * (expm1_above(exponent * own) + safety::least_slack) + c.exp_floor;
    if (c.weight_dtype)
      error += std::max(unit_roundoff(*c.weight_dtype) * (t.weight[j] + error),
                        half_min_subnormal(*c.weight_dtype));
    row.probability_[key] = {t.weight[j], error * own};
    row.score_gradient_[key] = {weights.dot_gradient[j],
                                weights.to_dq[j] * (1 + bound.ratio) * own};
  }
}

}  // namespace assay
