#include "oracle/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/key_values.h"
#include "oracle/safety_factors.h"
#include "oracle/special_rows.h"
#include "oracle/sums.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// The matrices of a block, rows x count unless another shape is given. Each thread keeps them from
// block to block, because fresh pages would cost more time than the sums.
struct Matrices {
  RowMajor q;                               // rows x dim
  RowMajor dot, absolute, prefix;           // q.k_j, sum |q||k_j|, sum |S_k|
  RowMajor gap, weight, kept, kept_weight;  // M - s_j, p_j, 1 or 0 by dropout, p_j times that
  RowMajor magnitude, product;              // of the biases
  RowMajor centred_weights, absolute_weights, tail_weights;
  RowMajor o, sum_centred, sum_absolute, sum_tail, sum_prefix;  // rows x padded value_dim
};

// What is known of a row besides the matrices and the block.
struct RowState {
  RowVisibility seen;
  Index live = 0;  // the number of keys that keep weight
  RowBound bound;
};

Index seen_length(const BlockRow& row) { return row.seen_end - row.seen_begin; }
bool has_weight(const BlockRow& row) { return row.max > -inf; }

// The smallest and the largest v of each column, and the largest |v|, over the keys of a block.
struct ColumnHulls {
  Eigen::RowVectorXd low, high, largest;
};

// The largest |v - o| among the visible keys. With `with_zero` it includes v = 0, which a sink or
// dropout adds.
double hull_distance(const KeyValues& kv, const Block& block, Index r, Index c, double o,
                     bool with_zero) {
  double distance = with_zero ? std::fabs(o) : 0;
  for (Index j = 0; j < block.count; ++j)
    if (block.visible[block.pair(r, j)])
      distance = std::max(distance, std::fabs(kv.values(block.key0 + j, c) - o));
  return distance;
}

// bounds.md, 6: the relative error of p, and with it of the bound
double bound_slack(const ProjectedAttention& p, double ratio, double largest_exponent) {
  const double least = p.projection ? safety::projected_slack : safety::least_slack;
  return safety::slack_per_exponent * ratio * largest_exponent + least;
}

// Takes a block of rows from its inputs to its bounds, step by step.
class BlockEvaluation {
 public:
  BlockEvaluation(const ProjectedAttention& p, const Contract& c, const BoundContext& x,
                  const KeyValues& kv, bool keep_scores, Matrices& m, Block& block)
      : p_(p), c_(c), x_(x), kv_(kv), keep_scores_(keep_scores), m_(m), block_(block) {
    const auto head = usize(block.h);
    sink_ = p.sink.empty() ? -inf : static_cast<double>(p.sink[head]);
  }

  void run() {
    see_keys();
    load_queries();
    score_rows();
    if (keep_scores_) keep_scores();
    gauge_scores();
    weigh_rows();
    sum_values();
    bound_outputs();
  }

 private:
  void see_keys();
  void load_queries();
  void score_rows();
  void score_keys(Index r);
  void normalize(Index r);
  void keep_scores();
  void gauge_scores();
  RowTruth truth_of(Index r);
  void keep_score_errors(Index r, const RowTruth& t);
  void weigh_rows();
  void weigh(Index r);
  void sum_values();
  ColumnHulls column_hulls() const;
  void bound_outputs();
  void bound_element(Index r, Index c, const ColumnHulls& hulls);
  void judge_exactly(Index r, Index c, double largest_value);
  void bound_lse(Index r);

  RowState& state(Index r) { return states_[usize(r)]; }
  // Whether a row sees every key between the first and the last that it sees.
  bool dense(Index r) { return state(r).seen.visible == seen_length(block_.row(r)); }
  double n_live(Index r) {
    return static_cast<double>(state(r).live) + safety::additions_of_blocks;
  }
  // bounds.md, 6: gamma of the oracle's own sums
  double gamma64(Index r) {
    const double terms = n_live(r) + static_cast<double>(p_.projection.length);
    return gamma_factor(terms + safety::roundings_of_term, safety::unit64);
  }

  const ProjectedAttention& p_;
  const Contract& c_;
  const BoundContext& x_;
  const KeyValues& kv_;
  const bool keep_scores_;
  Matrices& m_;
  Block& block_;
  std::vector<RowState> states_;
  double sink_ = -inf;
  bool any_not_finite_ = false;
  int additions_ = 0;
  double ratio_ = 0;  // kappa
  double absolute_limit_ = 0;
  bool with_absolute_ = false, with_order_ = false, with_tail_ = false;
};

// Finds the keys of the block, which are those between the first and the last that some row sees.
void BlockEvaluation::see_keys() {
  states_.resize(block_.rows.size());
  Index begin = p_.shape.keys, end = 0;
  for (std::size_t r = 0; r < states_.size(); ++r) {
    RowVisibility& seen = states_[r].seen;
    evaluate_visibility(p_, block_.b, block_.h, block_.rows[r].index, seen);
    if (seen.visible > 0) begin = std::min(begin, seen.begin), end = std::max(end, seen.end);
  }
  const Index n = std::max<Index>(0, end - begin), pairs = block_.row_count() * n;
  block_.key0 = n > 0 ? begin : 0;
  block_.count = n;
  block_.weight.assign(usize(pairs), 0);
  block_.visible.assign(usize(pairs), 0);
  if (p_.dropout > 0) block_.kept.assign(usize(pairs), 0);
  for (std::size_t r = 0; r < states_.size(); ++r) {
    const RowVisibility& seen = states_[r].seen;
    if (seen.visible == 0) continue;
    block_.rows[r].seen_begin = seen.begin - block_.key0;
    block_.rows[r].seen_end = seen.end - block_.key0;
  }
  additions_ = states_.empty() ? 0 : states_[0].seen.additions;
}

void BlockEvaluation::load_queries() {
  m_.q = RowMajor::Zero(block_.row_count(), p_.shape.dim);
  any_not_finite_ = kv_.any_key_not_finite || kv_.any_value_not_finite || p_.bias;
  std::vector<double> elements;
  for (Index r = 0; r < block_.row_count(); ++r) {
    BlockRow& row = block_.row(r);
    load_row(p_.q, block_.b, block_.h, row.index, elements);
    for (Index d = 0; d < p_.shape.dim; ++d) {
      const double element = elements[usize(d)];
      if (std::isfinite(element)) m_.q(r, d) = element;
      else any_not_finite_ = true;
      const bool projected = c_.absorbed && d < p_.projection.columns;
      if (std::isinf(element) && projected && state(r).seen.visible > 0) row.nan_excused = true;
    }
  }
}

// Computes scores and weights by a matrix product and array arithmetic on rows.
void BlockEvaluation::score_rows() {
  const Index rows = block_.row_count(), n = block_.count;
  m_.dot.noalias() = m_.q * kv_.keys_transposed.middleCols(block_.key0, n);
  m_.gap.resize(rows, n);
  m_.weight.resize(rows, n);
  if (additions_ > 0) {
    m_.magnitude.setZero(rows, n);
    m_.product.setZero(rows, n);
  }
  if (p_.dropout > 0) m_.kept.setZero(rows, n);
  for (Index r = 0; r < rows; ++r) {
    score_keys(r);
    normalize(r);
  }
}

// Computes the scores s_j of a row. They are stored where the gaps will be.
void BlockEvaluation::score_keys(Index r) {
  const RowState& known = state(r);
  const BlockRow& row = block_.row(r);
  const Index first = row.seen_begin, last = row.seen_end, n = block_.count;
  const double scale = p_.scale, cap = x_.softcap;
  char* visible = block_.visible.data() + r * n;
  double* scores = m_.gap.row(r).data();
  const bool all_seen = dense(r);
  if (all_seen) std::fill(visible + first, visible + last, char{1});
  if (all_seen && additions_ == 0 && p_.softcap == 0) {
    auto score = m_.gap.row(r).segment(first, last - first).array();
    score = scale * m_.dot.row(r).segment(first, last - first).array();
  } else {
    for (Index j = first; j < last; ++j) {
      const auto key = usize(block_.key0 + j);
      const double bias = known.seen.bias[key];
      visible[j] = bias != -inf;
      double t = scale * m_.dot(r, j);
      if (cap > 0) t = cap * std::tanh(t / cap);
      scores[j] = std::isfinite(bias) ? t + bias : bias == -inf ? -inf : t;
      if (additions_ > 0) {
        const double magnitude = known.seen.magnitude[key];
        m_.magnitude(r, j) = std::isfinite(magnitude) ? magnitude : 0;
        m_.product(r, j) = known.seen.product[key];
      }
    }
  }
  if (p_.dropout > 0)
    for (Index j = first; j < last; ++j)
      m_.kept(r, j) = keeps_weight(p_, block_.b, block_.h, row.index, block_.key0 + j);
  if (any_not_finite_ && known.seen.visible > 0) {
    std::fill(scores, scores + first, -inf);
    std::fill(scores + last, scores + n, -inf);
    classify_scores(p_, kv_, block_, r, known.seen, scores);
    if (reads_factor_as_zero(c_, p_, kv_, block_, row.index, known.seen))
      block_.row(r).nan_excused = true;
  }
}

// Computes M, L, gaps and weights p_j of a row from its scores.
void BlockEvaluation::normalize(Index r) {
  RowState& known = state(r);
  BlockRow& row = block_.row(r);
  const Index first = row.seen_begin, length = seen_length(row), n = block_.count;
  double* gaps = m_.gap.row(r).data();
  double* weights = m_.weight.row(r).data();
  std::fill(gaps, gaps + first, inf);
  std::fill(gaps + row.seen_end, gaps + n, inf);
  std::fill(weights, weights + first, 0);
  std::fill(weights + row.seen_end, weights + n, 0);
  auto score = m_.gap.row(r).segment(first, length).array();  // these scores become the gaps
  row.max = std::max(sink_, length > 0 ? score.maxCoeff() : -inf);
  known.live = dense(r) && !any_not_finite_ ? length : (score > -inf).count();
  row.fully_masked = known.seen.visible == 0;
  if (!has_weight(row)) {
    // A row that sees no key is exactly 0. A row in which every visible score is -inf is 0 / 0.
    row.lse.value = 0;
    if (row.lse.kind == Kind::finite) row.lse.kind = Kind::minus_infinity;
    if (!row.fully_masked)
      for (BlockElement& e : block_.elements(r)) e.kind = Kind::nan;
    std::fill(gaps, gaps + n, inf);
    std::fill(weights, weights + n, 0);
    return;
  }
  score = row.max - score;
  auto weight = m_.weight.row(r).segment(first, length).array();
  weight = (-score).max(-safety::largest_gap_of_exp).exp();
  if (known.live < length) weight = (score < inf).select(weight, 0);
  const double sum = weight.sum() + (sink_ > -inf ? std::exp(sink_ - row.max) : 0);
  weight *= 1 / sum;
  row.lse.value = row.max + std::log(sum);
}

void BlockEvaluation::keep_scores() {
  const auto pairs = usize(block_.row_count() * block_.count);
  block_.gap.assign(m_.gap.data(), m_.gap.data() + pairs);
  block_.dot.assign(m_.dot.data(), m_.dot.data() + pairs);
  block_.score_error.assign(pairs, 0);
  if (x_.softcap > 0 || additions_ > 0) block_.capped_error = block_.score_error;
}

// bounds.md, 9: sums over q and k; those of moduli only where they are of first order, or could
// leave the range
void BlockEvaluation::gauge_scores() {
  const Index n = block_.count;
  if (adds_in_order(c_) && n > 0) prefix_sums(kv_, m_.q, block_.key0, n, m_.prefix);
  const double largest_magnitude =
      additions_ > 0 && m_.magnitude.size() > 0 ? m_.magnitude.maxCoeff() : 0;
  if (!block_.rows.empty())
    absolute_limit_ = m_.q.rowwise().norm().maxCoeff() * kv_.largest_key_norm * (1 + safety::norm);
  with_absolute_ =
      needs_absolute(c_, x_) || !excludes_overflow(c_, x_, absolute_limit_, largest_magnitude);
  if (with_absolute_) absolute_products(kv_, m_.q, block_.key0, n, m_.absolute);
}

RowTruth BlockEvaluation::truth_of(Index r) {
  const BlockRow& row = block_.row(r);
  auto from = [&](const RowMajor& m, bool wanted) {
    return wanted ? m.row(r).data() + row.seen_begin : nullptr;
  };
  RowTruth t;
  t.key0 = block_.key0 + row.seen_begin;
  t.count = seen_length(row);
  t.live = state(r).live;
  t.gap = from(m_.gap, true);
  t.dot = from(m_.dot, true);
  t.absolute = from(m_.absolute, with_absolute_);
  t.absolute_limit = absolute_limit_;
  t.key_norm = kv_.largest_key_norm;
  t.query_norm = m_.q.row(r).norm() * (1 + safety::norm);
  t.prefix = from(m_.prefix, adds_in_order(c_) && block_.count > 0);
  t.weight = from(m_.weight, true);
  t.magnitude = from(m_.magnitude, additions_ > 0);
  t.product = from(m_.product, additions_ > 0);
  t.kept = from(m_.kept, p_.dropout > 0);
  t.additions = additions_;
  t.max = row.max;
  t.lse = row.lse.value;
  t.has_sink = sink_ > -inf;
  t.sink_gap = t.max - sink_;
  t.sink_weight = t.has_sink ? std::exp(sink_ - t.lse) : 0;
  return t;
}

void BlockEvaluation::keep_score_errors(Index r, const RowTruth& t) {
  const std::size_t at = block_.pair(r, block_.row(r).seen_begin);
  score_errors(c_, x_, t, block_.score_error.data() + at);
  if (block_.capped_error.empty()) return;
  RowTruth capped = t;
  capped.additions = 0;
  score_errors(c_, x_, capped, block_.capped_error.data() + at);
}

// bounds.md, 3: the weights of the sums over V, for all rows
void BlockEvaluation::weigh_rows() {
  const Index rows = block_.row_count(), n = block_.count;
  ratio_ = exponent_ratio(c_, p_.shape.dim + p_.projection.length);
  with_order_ = uses_order(c_);
  with_tail_ = with_order_ && !tail_is_second_order(c_, x_);
  m_.centred_weights.setZero(rows, n);
  if (!with_order_) m_.absolute_weights.setZero(rows, n);
  if (with_tail_) m_.tail_weights.setZero(rows, n);
  for (Index r = 0; r < rows; ++r)
    if (has_weight(block_.row(r))) weigh(r);
}

void BlockEvaluation::weigh(Index r) {
  RowBound& bound = state(r).bound;
  BlockRow& row = block_.row(r);
  const RowTruth t = truth_of(r);
  if (keep_scores_) keep_score_errors(r, t);
  auto from = [&](RowMajor& m, bool wanted) {
    return wanted ? m.row(r).data() + row.seen_begin : nullptr;
  };
  derive_row_bound(c_, x_, t, bound,
                   {from(m_.centred_weights, true), from(m_.absolute_weights, !with_order_),
                    from(m_.tail_weights, with_tail_)});
  row.slack = bound_slack(p_, ratio_, bound.largest_exponent);
  row.needs_ball =
      !(row.slack < safety::largest_slack) || c_.roundoff < safety::least_roundoff_of_fp64;
  row.domain = domain_of(bound);
  if (kv_.any_value_not_finite)
    classify_values(p_, kv_, block_, r, state(r).seen, m_.gap.row(r).data(),
                    -std::log(c_.exp_floor) - 1 - bound.gap_error);
  row.exact = allows_exact_rows(c_, p_) && !bound.may_overflow && block_.count > 0 &&
              is_exact_row(c_, p_, kv_, m_.q.row(r).data(), t);
  if (row.exact) row.domain = Domain::bounded;
}

// bounds.md, 9: sums over V
void BlockEvaluation::sum_values() {
  const Index n = block_.count, key0 = block_.key0;
  if (p_.dropout > 0) m_.kept_weight = m_.weight.cwiseProduct(m_.kept);
  const RowMajor& w = p_.dropout > 0 ? m_.kept_weight : m_.weight;
  m_.o.setZero(block_.row_count(), kv_.values.cols());
  if (n > 0) m_.o.noalias() = w * kv_.values.middleRows(key0, n);
  std::vector<SeenKeys> keys(states_.size());
  for (Index r = 0; r < block_.row_count(); ++r) {
    const BlockRow& row = block_.row(r);
    const char* visible = block_.visible.data() + r * n;
    if (has_weight(row))
      keys[usize(r)] = {row.seen_begin, row.seen_end, dense(r) ? nullptr : visible};
  }
  const PartialSums counted(c_, x_.terms);
  column_sums(kv_, key0, keys, with_order_ ? &counted : nullptr, {m_.centred_weights, w, m_.o},
              m_.sum_centred, m_.sum_prefix);
  if (!with_order_) absolute_values(kv_, m_.absolute_weights, key0, m_.sum_absolute);
  if (with_tail_) absolute_values(kv_, m_.tail_weights, key0, m_.sum_tail);
}

ColumnHulls BlockEvaluation::column_hulls() const {
  const Index n = block_.count, columns = kv_.values.cols();
  const auto v = kv_.values.middleRows(block_.key0, n);
  ColumnHulls hulls;
  hulls.low = Eigen::RowVectorXd::Constant(columns, inf);
  hulls.high = -hulls.low;
  for (Index j = 0; j < n; ++j) {
    hulls.low = hulls.low.cwiseMin(v.row(j));
    hulls.high = hulls.high.cwiseMax(v.row(j));
  }
  if (n == 0) hulls.largest = Eigen::RowVectorXd::Zero(columns);
  else if (!p_.projection) hulls.largest = hulls.high.cwiseMax(-hulls.low);
  else hulls.largest = kv_.values_absolute.middleRows(block_.key0, n).colwise().maxCoeff();
  return hulls;
}

void BlockEvaluation::bound_outputs() {
  const ColumnHulls hulls = column_hulls();
  const Index n = block_.count;
  for (Index r = 0; r < block_.row_count(); ++r) {
    const BlockRow& row = block_.row(r);
    if (!has_weight(row)) continue;
    for (Index c = 0; c < p_.shape.value_dim; ++c) {
      bound_element(r, c, hulls);
      if (row.exact) judge_exactly(r, c, hulls.largest(c));
    }
    bound_lse(r);
    std::copy_n(m_.weight.row(r).data(), n, block_.weight.begin() + r * n);
    if (p_.dropout > 0) std::copy_n(m_.kept.row(r).data(), n, block_.kept.begin() + r * n);
  }
}

// bounds.md, 6: the radius of an element of O, and its bound
void BlockEvaluation::bound_element(Index r, Index c, const ColumnHulls& hulls) {
  const RowBound& bound = state(r).bound;
  BlockElement& element = block_.element(r, c);
  const double center = element.value = m_.o(r, c), magnitude = std::fabs(center);
  const double largest = hulls.largest(c);
  const ColumnSums sums{m_.sum_centred(r, c), with_order_ ? 0 : m_.sum_absolute(r, c),
                        c_.dot_roundoff * m_.sum_prefix(r, c), with_tail_ ? m_.sum_tail(r, c) : 0};
  // An upper bound of sum p |v|. Its terms are differences of partial sums, but those with the
  // gauges of projected values are not.
  const double of_prefix = p_.projection ? inf : 2 * m_.sum_prefix(r, c);
  const double of_moduli = std::isfinite(bound.gamma_n) ? sums.absolute / bound.gamma_n : inf;
  const double plain = std::min(largest, with_order_ ? of_prefix : of_moduli);
  // This is the identity of section 3 at unit roundoff 2^-53. Its exponents are at most kappa times
  // those of the contract.
  const double centred = sums.centred + magnitude * bound.zero_centred;
  element.radius =
      safety::one_rounding * (std::min(ratio_, 1.0) * centred +
                              (gamma64(r) + safety::units_of_weight * safety::unit64) * plain +
                              magnitude * bound.sum_weight * gamma64(r)) +
      n_live(r) * largest * safety::exp_underflow + safety::product_underflow;
  const bool with_zero = sink_ > -inf || p_.dropout > 0;
  double hull =
      std::max({hulls.high(c) - center, center - hulls.low(c), with_zero ? magnitude : 0});
  if (bound.vacuous)
    hull = hull_distance(kv_, block_, r, c, center, with_zero || bound.may_overflow);
  // The sums of |v - O| were taken around a centre that may differ from O by the radius.
  element.bound =
      element_bound(c_, x_, bound, center, sums, hull, largest) +
      bound.centred_total * element.radius / std::max(bound.denominator, safety::least_denominator);
  element.value_overflow = values_may_overflow(c_, state(r).live, largest);
  // Sums of fp64 numbers near their largest may leave the range on the way.
  if (!std::isfinite(element.radius) || std::isnan(element.bound)) block_.row(r).needs_ball = true;
}

// Computes an element of a row where weights are exactly 0 or 1, and no sum is rounded.
void BlockEvaluation::judge_exactly(Index r, Index c, double largest_value) {
  double sum = 0;
  for (Index j = 0; j < block_.count; ++j)
    if (m_.gap(r, j) == 0) sum += kv_.values(block_.key0 + j, c);
  const double count = std::round(std::exp(block_.row(r).lse.value));
  const ExactElement exact = exact_element(c_, sum, count, n_live(r), largest_value);
  BlockElement& element = block_.element(r, c);
  element.value = exact.o;
  element.radius = exact.radius;
  element.bound = exact.bound;
}

// bounds.md, 6: the radius of LSE
void BlockEvaluation::bound_lse(Index r) {
  const RowBound& bound = state(r).bound;
  BlockRow& row = block_.row(r);
  Certified& lse = row.lse;
  const double reach = std::fabs(lse.value - row.max) + 1;
  const double of_weights =
      std::min(ratio_, 1.0) * bound.sum_weight * std::min(bound.largest_exponent, 1.0);
  lse.bound = bound.lse;
  lse.radius = safety::one_rounding_twice * (of_weights + gamma64(r) * bound.sum_weight +
                                             n_live(r) * safety::exp_underflow) +
               safety::log_units * safety::unit64 * reach +
               safety::one_rounding * safety::unit64 * (std::fabs(row.max) + std::fabs(lse.value));
  if (ratio_ > 1 || bound.largest_exponent > 1) row.needs_ball = true;
}

}  // namespace

// bounds.md, 5: a sum of at most `live` values, not yet divided by the row sum, leaves the range
bool values_may_overflow(const Contract& c, Index live, double largest_value) {
  return !(static_cast<double>(live) * largest_value * (1 + safety::accumulation) < c.largest);
}

Domain domain_of(const RowBound& b) {
  return b.must_overflow  ? Domain::must_overflow
         : b.may_overflow ? Domain::may_overflow
         : b.vacuous      ? Domain::vacuous
                          : Domain::bounded;
}

Reference::Reference(const ProjectedAttention& problem, const Contract& contract,
                     const BoundTerms& terms)
    : problem_(problem), contract_(contract) {
  context_.dim = problem.shape.dim;
  context_.scale = std::fabs(static_cast<double>(problem.scale));
  context_.softcap = static_cast<double>(problem.softcap);
  context_.dropout = problem.dropout > 0;
  context_.keep_scale = dropout_scale(problem);
  context_.projection = problem.projection.length;
  context_.terms = terms;
}

Index Reference::block_rows() const {
  return std::clamp<Index>((Index{1} << 15) / std::max<Index>(problem_.shape.keys, 1), 8, 48);
}

void KeyValuesDeleter::operator()(KeyValues* kv) const { delete kv; }

KeyValuesPointer Reference::load_head(Index b, Index kv_head) const {
  return KeyValuesPointer(new KeyValues(problem_, b, kv_head));
}

Block Reference::evaluate(const KeyValues& kv, Index h, std::span<const Index> row_index,
                          Keep keep) const {
  thread_local Matrices matrices;
  Block block;
  block.b = kv.b;
  block.h = h;
  block.value_dim = problem_.shape.value_dim;
  block.rows.resize(row_index.size());
  for (std::size_t r = 0; r < row_index.size(); ++r) block.rows[r].index = row_index[r];
  block.o.resize(row_index.size() * usize(block.value_dim));
  BlockEvaluation(problem_, contract_, context_, kv, keep == Keep::scores, matrices, block).run();
  return block;
}

}  // namespace assay
