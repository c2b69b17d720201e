#include "oracle/stages.h"

#include <algorithm>
#include <cmath>

#include "oracle/conventional.h"
#include "oracle/key_values.h"
#include "oracle/safety_factors.h"
#include "oracle/stored_forward.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
// Enlarges a bound by what fp64 may lose of it, and of the value beside it.
constexpr double own = 1 + safety::stage;

// What a cast of weights adds; nothing without a dtype.
struct WeightCast {
  double roundoff = 0, floor = 0;
};
WeightCast cast_to(const std::optional<Dtype>& dtype) {
  if (!dtype) return {};
  return {unit_roundoff(*dtype), half_min_subnormal(*dtype)};
}

}  // namespace

bool StageRow::visible(Index j) const {
  const Index at = j - block_.key0;
  return at >= 0 && at < block_.count && block_.visible[usize(at)];
}

// bounds.md, 15, Scores: of a visible key, before the biases
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

// bounds.md, 15, Scores: with the biases
Expected StageRow::masked(Index j) const {
  if (!visible(j)) return {-inf, 0};
  const auto at = usize(j - block_.key0);
  // The largest score may be that of a sink, which can be far from s.
  const double max = block_.row(0).max, s = max - block_.gap[at];
  return {s, block_.score_error[at] * own + safety::library_tanh * std::fabs(s) +
                 safety::gap_in_fp64 * (std::fabs(max) + block_.gap[at])};
}

template <class Body>
void StageRow::for_each_visible(Index first, Index end, const Body& body) const {
  for (Index j = std::max(first, block_.key0); j < std::min(end, block_.key0 + block_.count); ++j)
    if (visible(j)) body(j);
}

// bounds.md, 15, Maxima: m and E_m over the visible keys of [first, end)
const StageRow::Maximum& StageRow::maximum(Index first, Index end) const {
  const auto [found, made] = maxima_.try_emplace({first, end});
  Maximum& m = found->second;
  if (!made) return m;
  double most = -inf, high = -inf, low = -inf;
  for_each_visible(first, end, [&](Index j) {
    const Expected s = masked(j);
    ++m.live;
    most = std::max(most, s.value);
    high = std::max(high, s.value + s.error);
    low = std::max(low, s.value - s.error);
  });
  m.most = m.live > 0 ? Expected{most, std::max(high - most, most - low)} : Expected::unknown();
  return m;
}

Expected StageRow::row_max(Index first, Index end) const { return maximum(first, end).most; }

// bounds.md, 15, Weights and corrections: H of the exponential e^(from - to)
double StageRow::exponent_error(const Expected& from, const Expected& to) const {
  const double u = c_->roundoff, x = (to.value - from.value) + from.error + to.error;
  const double per_argument = c_->argument_roundings * u * (1 + safety::second_order_units * u) +
                              2 * u * c_->exp_ulp_per_unit + c_->scale_error;
  const double largest = std::max(std::fabs(from.value), std::fabs(to.value)) + to.error;
  const double fused = c_->fused_argument ? safety::two_roundings * u * largest : 0;
  return (from.error + to.error + per_argument * x + 2 * u * c_->exp_ulp + fused) * own;
}

// bounds.md, 15, Weights and corrections: e^(m_before - m)
Expected StageRow::correction(Index first, Index before, Index end) const {
  const Maximum &was = maximum(first, before), &is = maximum(first, end);
  if (was.live == 0) return Expected::unknown();
  const double value = std::exp(was.most.value - is.most.value);
  return {value, (value * expm1_above(exponent_error(was.most, is.most)) + c_->exp_floor) * own};
}

// bounds.md, 15, Weights and corrections: e^(s_j - m), under dropout and before or after its cast
Expected StageRow::weight(Index j, Index first, Index end) const {
  const Maximum& m = maximum(first, end);
  if (m.live == 0) return Expected::unknown();
  if (!visible(j)) return {0, 0};
  const Expected s = masked(j);
  const double exact = std::exp(s.value - m.most.value), keep_scale = dropout_scale(*p_);
  double error = exact * expm1_above(exponent_error(s, m.most)) + c_->exp_floor;
  if (p_->dropout > 0) {
    if (!block_.kept[usize(j - block_.key0)]) return {0, 0};
    const double gamma = gamma_factor(safety::roundings_of_keep, c_->roundoff);
    error = keep_scale * (error + gamma * (exact + error) + c_->operand_floor) + c_->product_floor;
  }
  const double value = exact * keep_scale;
  // The bound covers the cast, because a probe may see the weight before or after it.
  const WeightCast cast = cast_to(c_->weight_dtype);
  error += std::max(cast.roundoff * (value + error), cast.floor * keep_scale);
  return {value, error * own};
}

// bounds.md, 15, Sums: the weights that a sum adds, each with e^H - 1 after all corrections
template <class Body>
void StageRow::for_each_weight(Index first, Index end, Index tiles, const Body& body) const {
  const Maximum& m = maximum(first, end);
  const double corrections = 2 * c_->roundoff * c_->exp_ulp * static_cast<double>(tiles);
  for_each_visible(first, end, [&](Index j) {
    const Expected s = masked(j);
    body(j, std::exp(s.value - m.most.value), expm1_above(exponent_error(s, m.most) + corrections));
  });
}

// bounds.md, 15, Sums: l
Expected StageRow::row_sum(Index first, Index end, Index tiles) const {
  const Maximum& m = maximum(first, end);
  if (m.live == 0) return Expected::unknown();
  const double gamma = gamma_factor(static_cast<double>(m.live + tiles) + 1, c_->roundoff);
  const double floor = static_cast<double>(tiles + 1) * c_->exp_floor;
  const WeightCast cast = c_->sum_from_rounded ? cast_to(c_->weight_dtype) : WeightCast{};
  double value = 0, error = 0;
  for_each_weight(first, end, tiles, [&](Index, double w, double growth) {
    value += w;
    error += w * growth + (gamma + cast.roundoff) * w * (1 + growth) + floor + cast.floor;
  });
  return {value, error * own};
}

// bounds.md, 15, Sums: a column of the accumulator
Expected StageRow::accumulated(Index first, Index end, Index tiles, Index column) const {
  const Maximum& m = maximum(first, end);
  if (m.live == 0) return Expected::unknown();
  const double u = c_->roundoff;
  // Every tile may begin a block of its own.
  const double length = static_cast<double>(m.live + c_->dot_block * tiles);
  const double gamma = gamma_factor(dot_roundings(*c_, length) + static_cast<double>(tiles) + 1,
                                    std::max(c_->dot_roundoff, u));
  const double dropout = p_->dropout > 0 ? gamma_factor(safety::roundings_of_keep, u) : 0;
  const double floor = static_cast<double>(tiles + 1) * c_->exp_floor;
  const WeightCast cast = cast_to(c_->weight_dtype);
  double value = 0, error = static_cast<double>(tiles) * c_->product_floor;
  for_each_weight(first, end, tiles, [&](Index j, double w, double growth) {
    if (p_->dropout > 0 && !block_.kept[usize(j - block_.key0)]) return;
    const double v = kv_->values(j, column), off = w * growth + floor, all = w + off;
    const double sum = (gamma + cast.roundoff + dropout) * all * (1 + cast.roundoff);
    value += w * v;
    // kv_ holds V times the scale of dropout, which a kernel may multiply later.
    const double lost = c_->operand_floor * (dropout_scale(*p_) * all + std::fabs(v));
    error += (off + sum + cast.floor) * std::fabs(v) + c_->product_floor + lost;
  });
  return {value, error * own};
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
                               const Conventions& conventions,
                               const AttentionBackwardInput* backward)
    : problem_(problem),
      contract_(flushing(conventions, contract)),
      backward_(backward),
      reference_(problem, contract_) {}

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

namespace {

// bounds_backward.md, 11: the row with the O and the LSE that were stored, and the weights that
// these give
Block with_stored_forward(Block block, const AttentionBackwardInput& in) {
  BlockRow& row = block.row(0);
  for (Index c = 0; c < block.value_dim; ++c) {
    BlockElement& e = block.element(0, c);
    e = {};
    e.value = load(in.o, in.o.at(block.b, block.h, row.index, c));
  }
  row.lse = {};
  row.lse.value = load(in.lse, in.lse.at(block.b, block.h, row.index, 0));
  for (std::size_t j = 0; j < block.weight.size(); ++j)
    block.weight[j] = block.visible[j] ? std::exp((row.max - row.lse.value) - block.gap[j]) : 0;
  return block;
}

// Whether the stored O and LSE, dO and dLSE of a row are numbers. The LSE of a row that sees no key
// is not one.
bool reads_numbers(const Block& stored, const std::vector<double>& d_o, double d_lse) {
  const auto finite = [](double x) { return std::isfinite(x); };
  const auto is_number = [](const BlockElement& e) { return std::isfinite(e.value); };
  const BlockRow& row = stored.row(0);
  return std::ranges::all_of(d_o, finite) && std::ranges::all_of(stored.o, is_number) &&
         std::isfinite(d_lse) && (row.fully_masked || std::isfinite(row.lse.value));
}

// R_j dO.v_j of a row, the same over absolute values, and what of these is lost where operands
// below a floor are read as 0.
struct ValueProducts {
  std::vector<double> sum, absolute, lost;
};
ValueProducts value_products(const KeyValues& kv, const Block& block,
                             const std::vector<double>& d_o, double floor, double keep_scale) {
  const std::vector<double> zeros(usize(block.count));
  ValueProducts dp{zeros, zeros, zeros};
  for (std::size_t j = 0; j < dp.sum.size(); ++j) {
    if (!block.visible[j]) continue;
    for (std::size_t column = 0; column < d_o.size(); ++column) {
      const double v = kv.values(block.key0 + static_cast<Index>(j), static_cast<Index>(column));
      dp.sum[j] += d_o[column] * v;
      dp.absolute[j] += std::fabs(d_o[column] * v);
      if (std::fabs(d_o[column]) < floor || std::fabs(v) < floor * keep_scale)
        dp.lost[j] += std::fabs(d_o[column] * v);
    }
  }
  return dp;
}

}  // namespace

void StageReference::add_backward(StageRow& row, Index b, Index h, Index i) const {
  for (auto* list : {&row.probability_, &row.weight_gradient_, &row.score_gradient_})
    list->assign(usize(problem_.shape.keys), Expected{});
  const Block stored = with_stored_forward(row.block_, *backward_);
  std::vector<double> d_o;
  load_row(backward_->d_o, b, h, i, d_o);
  row.judged_ = reads_numbers(stored, d_o, lse_gradient_of_row(*backward_, b, h, i));
  row.delta_ = Expected::unknown();  // nothing reads the D of a row that sees no key
  if (!row.judged_ || stored.row(0).fully_masked) return;
  // bounds_backward.md, 11: D
  const Delta delta = delta_of_row(contract_, {}, *backward_, stored, 0, d_o.data());
  row.delta_ = {delta.value, delta.error * own};
  if (!(delta.stored * (1 + safety::accumulation) < contract_.largest)) row.judged_ = false;
  ValueProducts dp =
      value_products(*row.kv_, stored, d_o, contract_.operand_floor, dropout_scale(problem_));
  add_weight_gradients(row, dp.sum, dp.absolute, dp.lost);
  for (std::size_t j = 0; problem_.dropout > 0 && j < dp.sum.size(); ++j)
    if (!stored.kept[j]) dp.sum[j] = dp.absolute[j] = dp.lost[j] = 0;
  GradientTruth t = truth_of_row(problem_, stored, 0);
  t.dp = dp.sum.data();
  t.dp_absolute = dp.absolute.data();
  t.dp_lost = dp.lost.data();
  t.delta = delta.value;
  t.delta_error = row.delta_.error;
  t.d_lse = lse_gradient_of_row(*backward_, b, h, i);
  add_pairs(row, t);
}

// bounds_backward.md, 11: dP, before dropout
void StageReference::add_weight_gradients(StageRow& row, const std::vector<double>& sum,
                                          const std::vector<double>& absolute,
                                          const std::vector<double>& lost) const {
  const Contract& c = contract_;
  // The values of kv_ are multiplied by the scale of dropout.
  const double keep_scale = dropout_scale(problem_);
  const double length = static_cast<double>(problem_.shape.value_dim);
  const double gamma = gamma_factor(dot_roundings(c, length), c.dot_roundoff);
  const double floor = (length + 2) * c.product_floor;
  for (std::size_t j = 0; j < sum.size(); ++j) {
    if (!row.block_.visible[j]) continue;
    row.weight_gradient_[usize(row.block_.key0) + j] = {
        sum[j] / keep_scale, ((gamma * absolute[j] + lost[j]) / keep_scale + floor) * own};
    // This concerns dropped pairs too, because a kernel may compute them before it drops them.
    if (!(absolute[j] * (1 + safety::accumulation) < c.largest)) row.judged_ = false;
  }
}

// bounds_backward.md, 11: P and dS
void StageReference::add_pairs(StageRow& row, const GradientTruth& t) const {
  BackwardContext x = backward_context(problem_);
  x.keys_length = x.rows_length = x.bias_length = 1;
  std::vector<std::vector<double>> out(8, std::vector<double>(usize(t.count)));
  const GradientWeights weights{out[0].data(), out[1].data(), out[2].data(), out[3].data(),
                                out[4].data(), out[5].data(), out[6].data()};
  double* weight_error = out[7].data();
  const GradientRow bound = derive_gradient_row(contract_, x, t, weights);
  if (bound.may_overflow || bound.vacuous) row.judged_ = false;
  if (!row.judged_) return;
  derive_weight_errors(contract_, x, t, weight_error);
  for (Index j = 0; j < t.count; ++j) {
    if (!row.block_.visible[usize(j)]) continue;
    const auto key = usize(row.block_.key0 + j);
    row.probability_[key] = {t.weight[j], weight_error[j] * own};
    row.score_gradient_[key] = {weights.dot_gradient[j],
                                weights.to_dq[j] * (1 + bound.ratio) * own};
  }
}

}  // namespace assay
