#include "oracle/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "oracle/ball.h"
#include "oracle/key_values.h"
#include "oracle/lanes.h"
#include "oracle/sums.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double unit64 = 0x1p-53;

Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }

// One row in double; the dtype is looked at once.
void load_row(const TensorView& t, Index b, Index h, Index i, std::vector<double>& row) {
  row.resize(static_cast<std::size_t>(t.shape[3]));
  const Index at = t.at(b, h, i, 0), step = t.stride[3];
  const auto* bytes = static_cast<const unsigned char*>(t.data);
  if (t.dtype == Dtype::f32) {
    for (std::size_t d = 0; d < row.size(); ++d) {
      float x;
      std::memcpy(&x, bytes + 4 * (at + static_cast<Index>(d) * step), 4);
      row[d] = x;
    }
  } else if (t.dtype == Dtype::bf16) {
    for (std::size_t d = 0; d < row.size(); ++d) {
      unsigned char x[4] = {0, 0, bytes[2 * (at + static_cast<Index>(d) * step)], bytes[2 * (at + static_cast<Index>(d) * step) + 1]};
      float value;
      std::memcpy(&value, x, 4);
      row[d] = value;
    }
  } else {
    for (std::size_t d = 0; d < row.size(); ++d) row[d] = load(t, at + static_cast<Index>(d) * step);
  }
}

double dropout_scale(const Attention& p) { return p.dropout > 0 ? 1 / (1 - static_cast<double>(p.dropout)) : 1; }

// Matrices of a block, kept by each thread from block to block: fresh pages would cost more than the sums.
struct Scores {
  RowMajor q, dot, absolute, prefix, gap, weight, kept_weight;
  RowMajor magnitude, product, kept;
  RowMajor centred_weights, absolute_weights, tail_weights;
  RowMajor o, sum_absolute, sum_tail, sum_centred, sum_prefix;
  std::vector<double> max, lse;
  std::vector<Index> live;
  int additions = 0;
};

// Largest and smallest visible v of a row, 0 included where the sink or dropout adds it.
double hull_distance(const KeyValues& kv, const Block& block, Index r, Index c, double o, bool with_zero) {
  double distance = with_zero ? std::fabs(o) : 0;
  for (Index j = 0; j < block.count; ++j)
    if (block.visible[static_cast<std::size_t>(r * block.count + j)]) distance = std::max(distance, std::fabs(kv.values(block.key0 + j, c) - o));
  return distance;
}

// The accumulator holds a sum of at most `live` values, not yet divided by the row sum.
bool values_may_overflow(const Contract& c, Index live, double largest_value) { return !(static_cast<double>(live) * largest_value * (1 + 1e-4) < c.largest); }

Domain domain_of(const RowBound& b) {
  return b.must_overflow ? Domain::must_overflow : b.may_overflow ? Domain::may_overflow : b.vacuous ? Domain::vacuous : Domain::bounded;
}

// Exact tier: equal scores of exactly 0, all others so low that exp gives 0, and sums that no order rounds.
bool is_exact_row(const Attention& p, const KeyValues& kv, const double* q, const RowTruth& t) {
  if (t.max != 0 || t.has_sink || t.additions > 0 || p.dropout > 0 || p.softcap > 0 || t.live == 0) return false;
  for (Index j = 0; j < t.count; ++j)
    if (t.gap[j] != 0 && !(t.gap[j] > 104.5)) return false;
  double largest_absolute_dot = 0;
  for (Index j = 0; j < t.count; ++j) {
    double sum = 0;
    for (Index d = 0; d < p.shape.dim; ++d) sum += std::fabs(q[d] * kv.keys_transposed(d, t.key0 + j));
    largest_absolute_dot = std::max(largest_absolute_dot, sum);
  }
  double q_quantum = inf;
  for (Index d = 0; d < p.shape.dim; ++d) q_quantum = std::min(q_quantum, quantum_of(q[d]));
  const double products = q_quantum == inf || kv.key_quantum() == inf ? 0 : largest_absolute_dot / (q_quantum * kv.key_quantum());
  if (!(products < 0x1p24)) return false;
  Index equal = 0;
  for (Index j = 0; j < t.count; ++j) equal += t.gap[j] == 0;
  if (equal == 1) return true;
  for (Index c = 0; c < p.shape.value_dim; ++c) {
    double sum = 0, quantum = inf;
    for (Index j = 0; j < t.count; ++j)
      if (t.gap[j] == 0) {
        sum += kv.values_absolute(t.key0 + j, c);
        quantum = std::min(quantum, quantum_of(kv.values(t.key0 + j, c)));
      }
    if (!(sum < 0x1p24 * quantum)) return false;
  }
  return true;
}

}  // namespace

double quantum_of(double x) {
  if (x == 0 || !std::isfinite(x)) return inf;
  int e;
  const auto significand = static_cast<std::int64_t>(std::ldexp(std::frexp(std::fabs(x), &e), 53));
  return std::ldexp(1.0, e - 53 + __builtin_ctzll(static_cast<unsigned long long>(significand)));
}

KeyValues::KeyValues(const Attention& p, Index batch, Index head) : b(batch), g(head) {
  const AttentionShape& s = p.shape;
  constexpr Index pad = 4 * lanes_of<float>;
  keys_transposed = RowMajor::Zero(s.dim, round_up(s.keys, pad) + pad);
  values = RowMajor::Zero(s.keys + 1, round_up(s.value_dim, lanes_of<float>));
  key_not_finite.assign(static_cast<std::size_t>(s.keys), 0);
  value_not_finite = key_not_finite;
  const double scale = dropout_scale(p);
  std::vector<double> row;
  for (Index j = 0; j < s.keys; ++j) {
    load_row(p.k, b, g, j, row);
    for (Index d = 0; d < s.dim; ++d) {
      const double x = row[static_cast<std::size_t>(d)];
      if (!std::isfinite(x)) key_not_finite[static_cast<std::size_t>(j)] = any_key_not_finite = true;
      else keys_transposed(d, j) = x;
    }
    load_row(p.v, b, g, j, row);
    for (Index c = 0; c < s.value_dim; ++c) {
      const double x = row[static_cast<std::size_t>(c)];
      if (!std::isfinite(x)) value_not_finite[static_cast<std::size_t>(j)] = any_value_not_finite = true;
      else values(j, c) = scale * x;
    }
  }
  keys_transposed_absolute = keys_transposed.cwiseAbs();
  values_absolute = values.cwiseAbs();
  if (p.projection > 0)
    for (Index j = 0; j < s.keys; ++j) {
      load_row(p.k_absolute, b, g, j, row);
      for (Index d = 0; d < s.dim; ++d) keys_transposed_absolute(d, j) = row[static_cast<std::size_t>(d)];
      load_row(p.v_absolute, b, g, j, row);
      for (Index c = 0; c < s.value_dim; ++c) values_absolute(j, c) = scale * row[static_cast<std::size_t>(c)];
    }
  for (Dtype dtype : {p.q.dtype, p.k.dtype, p.v.dtype}) single = single && dtype != Dtype::f64;
  if (s.keys > 0) {
    largest_key_norm = std::sqrt(keys_transposed.colwise().squaredNorm().maxCoeff()) * (1 + 0x1p-40);
    largest_value = values_absolute.maxCoeff();
  }
  if (single) {
    keys_transposed_single = keys_transposed.cast<float>();
    values_single = values.cast<float>();
  }
}

double KeyValues::key_quantum() const {
  std::call_once(quantum_once_, [this] {
    for (Index e = 0; e < keys_transposed.size(); ++e) key_quantum_ = std::min(key_quantum_, quantum_of(keys_transposed.data()[e]));
  });
  return key_quantum_;
}

Reference::Reference(const Attention& problem, const Contract& contract)
    : problem_(problem),
      contract_(contract),
      context_{problem.shape.dim, static_cast<double>(problem.scale), static_cast<double>(problem.softcap), problem.dropout > 0, problem.projection} {}

Index Reference::block_rows() const { return std::clamp<Index>((Index{1} << 15) / std::max<Index>(problem_.shape.keys, 1), 8, 48); }

void KeyValuesDeleter::operator()(KeyValues* kv) const { delete kv; }

KeyValuesPointer Reference::load_head(Index b, Index kv_head) const { return KeyValuesPointer(new KeyValues(problem_, b, kv_head)); }

namespace {

// NaN and infinities among what a row sees, by extended-real arithmetic; the sums count them as 0.
// A visible key whose score is -inf keeps no weight.
void classify_scores(const Attention& p, const KeyValues& kv, Block& block, Index r, const RowVisibility& seen, double* score) {
  const AttentionShape& s = p.shape;
  const Index i = block.row_index[static_cast<std::size_t>(r)];
  bool q_finite = true;
  for (Index d = 0; d < s.dim; ++d) q_finite = q_finite && std::isfinite(load(p.q, p.q.at(block.b, block.h, i, d)));
  for (Index j = seen.begin; j < seen.end; ++j) {
    const double bias = seen.bias[static_cast<std::size_t>(j)];
    if (bias == -inf) continue;
    const bool suspicious = !q_finite || kv.key_not_finite[static_cast<std::size_t>(j)];
    const double t = suspicious ? extended_score(p, block.b, block.h, i, j) : 0;
    if (std::isfinite(t) && std::isfinite(bias)) {
      // A softcap makes a finite score of an infinite one.
      if (suspicious) score[j - block.key0] = t + bias;
      continue;
    }
    if (t + bias == -inf) {
      score[j - block.key0] = -inf;
    } else {
      block.lse_kind[static_cast<std::size_t>(r)] = Kind::nan;
      std::fill_n(block.o_kind.begin() + r * s.value_dim, s.value_dim, Kind::nan);
      return;
    }
  }
}

// Weights smaller than e^-largest_gap may underflow to 0 in the kernel.
void classify_values(const Attention& p, const KeyValues& kv, Block& block, Index r, const RowVisibility& seen, const double* gap, double largest_gap) {
  const AttentionShape& s = p.shape;
  if (block.lse_kind[static_cast<std::size_t>(r)] == Kind::nan) return;
  for (Index j = seen.begin; j < seen.end; ++j) {
    if (seen.bias[static_cast<std::size_t>(j)] == -inf || !kv.value_not_finite[static_cast<std::size_t>(j)]) continue;
    const bool zero_weight = gap[j - block.key0] == inf || !keeps_weight(p, block.b, block.h, block.row_index[static_cast<std::size_t>(r)], j);
    for (Index c = 0; c < s.value_dim; ++c) {
      const double v = load(p.v, p.v.at(block.b, kv.g, j, c));
      if (std::isfinite(v)) continue;
      const auto at = static_cast<std::size_t>(r * s.value_dim + c);
      const Kind mine = std::isnan(v) || zero_weight ? Kind::nan : v > 0 ? Kind::plus_infinity : Kind::minus_infinity;
      Kind& kind = block.o_kind[at];
      kind = kind == Kind::finite || kind == mine ? mine : Kind::nan;
      if (gap[j - block.key0] > largest_gap) block.underflow_excused[at] = 1;
    }
  }
}

}  // namespace

Block Reference::evaluate(const KeyValues& kv, Index h, std::span<const Index> row_index, Keep keep) const {
  const Attention& p = problem_;
  const AttentionShape& s = p.shape;
  Block block;
  block.b = kv.b;
  block.h = h;
  block.row_index.assign(row_index.begin(), row_index.end());
  const Index rows = block.rows = static_cast<Index>(row_index.size());
  const Index dv = s.value_dim;
  const auto n_rows = static_cast<std::size_t>(rows), n_out = static_cast<std::size_t>(rows * dv);
  for (auto* v : {&block.o, &block.o_low, &block.radius, &block.bound}) v->assign(n_out, 0);
  for (auto* v : {&block.lse, &block.lse_low, &block.lse_radius, &block.lse_bound, &block.slack}) v->assign(n_rows, 0);
  block.o_kind.assign(n_out, Kind::finite);
  block.lse_kind.assign(n_rows, Kind::finite);
  block.underflow_excused.assign(n_out, 0);
  block.value_overflow.assign(n_out, 0);
  block.domain.assign(n_rows, Domain::bounded);
  for (auto* v : {&block.exact, &block.fully_masked, &block.needs_ball, &block.query_lost}) v->assign(n_rows, 0);

  std::vector<RowVisibility> seen(n_rows);
  Index begin = s.keys, end = 0;
  for (Index r = 0; r < rows; ++r) {
    RowVisibility& row = seen[static_cast<std::size_t>(r)];
    evaluate_visibility(p, block.b, h, block.row_index[static_cast<std::size_t>(r)], row);
    if (row.visible > 0) begin = std::min(begin, row.begin), end = std::max(end, row.end);
  }
  const Index n = std::max<Index>(0, end - begin);
  block.key0 = n > 0 ? begin : 0;
  block.count = n;
  block.weight.assign(static_cast<std::size_t>(rows * n), 0);
  block.visible.assign(static_cast<std::size_t>(rows * n), 0);
  if (p.dropout > 0) block.kept.assign(static_cast<std::size_t>(rows * n), 0);
  const double sink = p.sink.empty() ? -inf : static_cast<double>(p.sink[static_cast<std::size_t>(h)]);

  thread_local Scores x;
  x.q = RowMajor::Zero(rows, s.dim);
  bool any_not_finite = kv.any_key_not_finite || kv.any_value_not_finite || p.bias;
  std::vector<double> q_row;
  for (Index r = 0; r < rows; ++r) {
    load_row(p.q, block.b, h, block.row_index[static_cast<std::size_t>(r)], q_row);
    for (Index d = 0; d < s.dim; ++d) {
      const double element = q_row[static_cast<std::size_t>(d)];
      if (std::isfinite(element)) x.q(r, d) = element;
      else any_not_finite = true;
      if (std::isinf(element) && contract_.absorbed && d < p.projected_columns && seen[static_cast<std::size_t>(r)].visible > 0) block.query_lost[static_cast<std::size_t>(r)] = 1;
    }
  }

  // Scores and weights: a matrix product and row-wise array arithmetic.
  const double scale = context_.scale;
  x.dot.noalias() = x.q * kv.keys_transposed.middleCols(block.key0, n);
  x.additions = n_rows > 0 ? seen[0].additions : 0;
  x.gap.resize(rows, n);
  x.weight.resize(rows, n);
  if (x.additions > 0) {
    x.magnitude.setZero(rows, n);
    x.product.setZero(rows, n);
  }
  if (p.dropout > 0) x.kept.setZero(rows, n);
  x.max.assign(n_rows, -inf);
  x.lse.assign(n_rows, -inf);
  x.live.assign(n_rows, 0);
  block.seen_begin.assign(n_rows, 0);
  block.seen_end.assign(n_rows, 0);
  const bool plain_scores = x.additions == 0 && p.softcap == 0;
  for (Index r = 0; r < rows; ++r) {
    const auto at = static_cast<std::size_t>(r);
    const RowVisibility& row = seen[at];
    const Index first = row.visible > 0 ? row.begin - block.key0 : 0, last = row.visible > 0 ? row.end - block.key0 : 0, length = last - first;
    block.seen_begin[at] = first;
    block.seen_end[at] = last;
    const bool dense = row.visible == length;
    char* visible = block.visible.data() + r * n;
    double* gaps = x.gap.row(r).data();
    double* weights = x.weight.row(r).data();
    std::fill(gaps, gaps + first, inf);
    std::fill(gaps + last, gaps + n, inf);
    std::fill(weights, weights + first, 0);
    std::fill(weights + last, weights + n, 0);
    auto score = x.gap.row(r).segment(first, length).array();  // becomes the gap
    if (dense) std::fill(visible + first, visible + last, char{1});
    if (dense && plain_scores) {
      score = scale * x.dot.row(r).segment(first, length).array();
    } else {
      for (Index j = first; j < last; ++j) {
        const auto key = static_cast<std::size_t>(block.key0 + j);
        const double bias = row.bias[key];
        visible[j] = bias != -inf;
        double t = scale * x.dot(r, j);
        if (context_.softcap > 0) t = context_.softcap * std::tanh(t / context_.softcap);
        gaps[j] = std::isfinite(bias) ? t + bias : bias == -inf ? -inf : t;
        if (x.additions > 0) {
          x.magnitude(r, j) = std::isfinite(row.magnitude[key]) ? row.magnitude[key] : 0;
          x.product(r, j) = row.product[key];
        }
      }
    }
    if (p.dropout > 0)
      for (Index j = first; j < last; ++j) x.kept(r, j) = keeps_weight(p, block.b, h, block.row_index[at], block.key0 + j);
    if (any_not_finite && row.visible > 0) {
      std::fill(gaps, gaps + first, -inf);
      std::fill(gaps + last, gaps + n, -inf);
      classify_scores(p, kv, block, r, row, gaps);
      std::fill(gaps, gaps + first, inf);
      std::fill(gaps + last, gaps + n, inf);
    }
    double& m = x.max[at];
    m = std::max(sink, length > 0 ? score.maxCoeff() : -inf);
    Index& live = x.live[at];
    live = dense && !any_not_finite ? length : (score > -inf).count();
    block.fully_masked[at] = row.visible == 0;
    if (m == -inf) {
      // Nothing visible: exactly 0. Visible, but every score -inf: 0 / 0.
      block.lse[at] = 0;
      if (block.lse_kind[at] == Kind::finite) block.lse_kind[at] = Kind::minus_infinity;
      if (row.visible > 0) std::fill_n(block.o_kind.begin() + r * dv, dv, Kind::nan);
      std::fill(gaps, gaps + n, inf);
      std::fill(weights, weights + n, 0);
      continue;
    }
    score = m - score;
    auto weight = x.weight.row(r).segment(first, length).array();
    weight = (-score).max(-745.0).exp();
    if (live < length) weight = (score < inf).select(weight, 0);
    const double sum = weight.sum() + (sink > -inf ? std::exp(sink - m) : 0);
    weight *= 1 / sum;
    x.lse[at] = block.lse[at] = m + std::log(sum);
  }

  if (keep == Keep::scores) {
    block.gap.assign(x.gap.data(), x.gap.data() + rows * n);
    block.dot.assign(x.dot.data(), x.dot.data() + rows * n);
    block.score_error.assign(static_cast<std::size_t>(rows * n), 0);
    if (context_.softcap > 0 || x.additions > 0) block.capped_error = block.score_error;
    block.max = x.max;
  }

  // Gauges of the scores. Sums of |q||k| are needed only where they enter to first order, or could leave the range.
  if (contract_.ordered && n > 0) prefix_sums(kv, x.q, block.key0, n, x.prefix);
  const double largest_magnitude = x.additions > 0 && x.magnitude.size() > 0 ? x.magnitude.maxCoeff() : 0;
  const double absolute_limit = rows > 0 ? x.q.rowwise().norm().maxCoeff() * kv.largest_key_norm * (1 + 0x1p-40) : 0;
  const bool with_absolute = needs_absolute(contract_, context_) || !excludes_overflow(contract_, context_, absolute_limit, largest_magnitude);
  if (with_absolute) absolute_products(kv, x.q, block.key0, n, x.absolute);

  // Weights of the bound, per row.
  std::vector<RowBound> bounds(n_rows);
  const double ratio = exponent_ratio(contract_, s.dim + p.projection);
  // Projected K and V are themselves right to 2^-53 of their gauges, of which the bound holds many more.
  const double own_slack = p.projection > 0 ? 0x1p-24 : 0x1p-40;
  const bool with_order = uses_order(contract_), with_tail = with_order && !tail_is_second_order(contract_, context_);
  x.centred_weights.setZero(rows, n);
  if (!with_order) x.absolute_weights.setZero(rows, n);
  if (with_tail) x.tail_weights.setZero(rows, n);
  for (Index r = 0; r < rows; ++r) {
    const auto at = static_cast<std::size_t>(r);
    if (x.max[at] == -inf) continue;
    const Index first = block.seen_begin[at];
    auto from = [&](RowMajor& m, bool wanted) { return wanted ? m.row(r).data() + first : nullptr; };
    RowTruth t;
    t.key0 = block.key0 + first;
    t.count = block.seen_end[at] - first;
    t.live = x.live[at];
    t.gap = from(x.gap, true);
    t.dot = from(x.dot, true);
    t.absolute = from(x.absolute, with_absolute);
    t.absolute_limit = absolute_limit;
    t.prefix = from(x.prefix, contract_.ordered && n > 0);
    t.weight = from(x.weight, true);
    t.magnitude = from(x.magnitude, x.additions > 0);
    t.product = from(x.product, x.additions > 0);
    t.kept = from(x.kept, p.dropout > 0);
    t.additions = x.additions;
    t.max = x.max[at];
    t.lse = x.lse[at];
    t.has_sink = sink > -inf;
    t.sink_gap = t.max - sink;
    t.sink_weight = t.has_sink ? std::exp(sink - t.lse) : 0;
    if (keep == Keep::scores) {
      score_errors(contract_, context_, t, block.score_error.data() + r * n + first);
      if (!block.capped_error.empty()) {
        RowTruth capped = t;
        capped.additions = 0;
        score_errors(contract_, context_, capped, block.capped_error.data() + r * n + first);
      }
    }
    RowBound& bound = bounds[at];
    derive_row_bound(contract_, context_, t, bound, {from(x.centred_weights, true), from(x.absolute_weights, !with_order), from(x.tail_weights, with_tail)});
    // Every p of the bound is right to a factor of e^H at unit roundoff 2^-53.
    block.slack[at] = 8 * ratio * bound.largest_exponent + own_slack;
    block.needs_ball[at] = !(block.slack[at] < 0x1p-16) || contract_.roundoff < 0x1p-40;
    block.domain[at] = domain_of(bound);
    if (kv.any_value_not_finite) classify_values(p, kv, block, r, seen[at], x.gap.row(r).data(), -std::log(contract_.exp_floor) - 1 - bound.gap_error);
    block.exact[at] = contract_.dot_roundoff <= 0x1p-23 && contract_.query_prescale == 0 && p.projection == 0 && !bound.may_overflow && n > 0 &&
                      is_exact_row(p, kv, x.q.row(r).data(), t);
    if (block.exact[at]) block.domain[at] = Domain::bounded;
  }

  // Sums against V.
  const Index columns = kv.values.cols();
  if (p.dropout > 0) x.kept_weight = x.weight.cwiseProduct(x.kept);
  const RowMajor& w = p.dropout > 0 ? x.kept_weight : x.weight;
  const auto v = kv.values.middleRows(block.key0, n);
  x.o.setZero(rows, columns);
  if (n > 0) x.o.noalias() = w * v;
  std::vector<SeenKeys> keys(n_rows);
  for (std::size_t r = 0; r < n_rows; ++r) {
    if (x.max[r] == -inf) continue;
    const bool dense = seen[r].visible == block.seen_end[r] - block.seen_begin[r];
    keys[r] = {block.seen_begin[r], block.seen_end[r], dense ? nullptr : block.visible.data() + static_cast<Index>(r) * n};
  }
  const PartialSums counted(contract_);
  column_sums(kv, block.key0, keys, with_order ? &counted : nullptr, {x.centred_weights, w, x.o}, x.sum_centred, x.sum_prefix);
  if (!with_order) absolute_values(kv, x.absolute_weights, block.key0, x.sum_absolute);
  if (with_tail) absolute_values(kv, x.tail_weights, block.key0, x.sum_tail);

  // Bounds and radii.
  Eigen::RowVectorXd low = Eigen::RowVectorXd::Constant(columns, inf), high = -low;
  for (Index j = 0; j < n; ++j) {
    low = low.cwiseMin(v.row(j));
    high = high.cwiseMax(v.row(j));
  }
  Eigen::RowVectorXd largest = n > 0 ? Eigen::RowVectorXd(high.cwiseMax(-low)) : Eigen::RowVectorXd::Zero(columns);
  if (p.projection > 0 && n > 0) largest = kv.values_absolute.middleRows(block.key0, n).colwise().maxCoeff();
  const bool with_zero = sink > -inf || p.dropout > 0;
  for (Index r = 0; r < rows; ++r) {
    const auto at = static_cast<std::size_t>(r);
    if (x.max[at] == -inf) continue;
    const RowBound& bound = bounds[at];
    const double n_live = static_cast<double>(x.live[at]) + 4;
    const double gamma64 = gamma_factor(n_live + static_cast<double>(p.projection) + 3, unit64);
    for (Index c = 0; c < dv; ++c) {
      const auto element = static_cast<std::size_t>(r * dv + c);
      const double center = block.o[element] = x.o(r, c);
      const ColumnSums sums{x.sum_centred(r, c), with_order ? 0 : x.sum_absolute(r, c), contract_.dot_roundoff * x.sum_prefix(r, c),
                            with_tail ? x.sum_tail(r, c) : 0};
      // At least sum p |v|, whose terms are differences of partial sums.
      const double plain = std::min(largest(c), with_order ? 2 * x.sum_prefix(r, c) : std::isfinite(bound.gamma_n) ? sums.absolute / bound.gamma_n : inf);
      // The same identity at unit roundoff 2^-53: exponents are at most `ratio` times the contract's.
      block.radius[element] = 1.01 * (std::min(ratio, 1.0) * (sums.centred + std::fabs(center) * bound.zero_centred) + (gamma64 + 8 * unit64) * plain +
                                      std::fabs(center) * bound.sum_weight * gamma64) +
                              n_live * largest(c) * 0x1p-1018 + 0x1p-1060;
      double hull = std::max({high(c) - center, center - low(c), with_zero ? std::fabs(center) : 0});
      double b = element_bound(contract_, context_, bound, center, sums, hull, largest(c));
      if (bound.vacuous) b = element_bound(contract_, context_, bound, center, sums, hull_distance(kv, block, r, c, center, with_zero || bound.may_overflow), largest(c));
      // Sums of |v - O| were taken around a centre that is off by the radius.
      block.bound[element] = b + bound.centred_total * block.radius[element] / std::max(bound.denominator, 0.1);
      block.value_overflow[element] = values_may_overflow(contract_, x.live[at], largest(c));
      if (block.exact[at]) {
        // Weights are exactly 0 or 1 and no sum rounds: only the division by the count is left.
        const double count = std::round(std::exp(x.lse[at]));
        const bool power_of_two = quantum_of(count) == count;
        double sum = 0;
        for (Index j = 0; j < n; ++j)
          if (x.gap(r, j) == 0) sum += kv.values(block.key0 + j, c);
        block.o[element] = sum / count;
        // What the other keys add to the true value; fp32 cannot see it, so it is all the tolerance there is.
        const double rest = 2 * n_live * std::exp(-104.5) * largest(c);
        block.radius[element] = rest + (power_of_two ? 0 : unit64 * std::fabs(block.o[element]));
        block.bound[element] = 4 * rest + contract_.division_roundings * contract_.product_floor +
                               (power_of_two ? 0 : 1.01 * contract_.division_roundings * contract_.roundoff * std::fabs(block.o[element]));
      }
    }
    const double reach = std::fabs(x.lse[at] - x.max[at]) + 1;
    block.lse_bound[at] = bound.lse;
    block.lse_radius[at] =
        1.02 * (std::min(ratio, 1.0) * bound.sum_weight * std::min(bound.largest_exponent, 1.0) + gamma64 * bound.sum_weight + n_live * 0x1p-1018) +
        130 * unit64 * reach + 1.01 * unit64 * (std::fabs(x.max[at]) + std::fabs(x.lse[at]));
    if (ratio > 1 || bound.largest_exponent > 1) block.needs_ball[at] = 1;
    std::copy_n(x.weight.row(r).data(), n, block.weight.begin() + r * n);
    if (p.dropout > 0) std::copy_n(x.kept.row(r).data(), n, block.kept.begin() + r * n);
  }
  return block;
}

bool Reference::refine(const KeyValues& kv, Block& block, Index r, long bits) const {
  const Attention& p = problem_;
  const Index dv = p.shape.value_dim, n = block.count;
  const auto at = static_cast<std::size_t>(r);
  if (block.lse_kind[at] != Kind::finite) return true;
  const BallRow ball(p, block.b, block.h, block.row_index[static_cast<std::size_t>(r)], bits);
  const Index first = block.seen_begin[at], count = block.seen_end[at] - first;
  const RowTruth t = ball.truth(block.key0 + first, count, contract_.ordered);
  RowBound bound;
  std::vector<double> centred(static_cast<std::size_t>(count)), absolute(centred), tail(centred);
  derive_row_bound(contract_, context_, t, bound, {centred.data(), absolute.data(), tail.data()});
  block.slack[at] = p.projection > 0 ? 0x1p-24 : 0x1p-40;

  bool consistent = true;
  auto meet = [&](double center, double center_low, double radius, double mid, double low, double ball_radius) {
    if (!(std::fabs((center - mid) + (center_low - low)) <= (radius + ball_radius) * (1 + 1e-9))) consistent = false;
  };
  if (!block.needs_ball[at]) meet(block.lse[at], block.lse_low[at], block.lse_radius[at], ball.lse(), ball.lse_low(), ball.lse_radius());
  const bool with_zero = t.has_sink || p.dropout > 0;
  const PartialSums counted(contract_);
  const char* visible = block.visible.data() + r * n + first;
  const Index key0 = block.key0 + first;
  for (Index c = 0; c < dv; ++c) {
    const auto element = static_cast<std::size_t>(r * dv + c);
    if (block.o_kind[element] != Kind::finite) continue;
    const double o = ball.o(c);
    if (!block.needs_ball[at]) meet(block.o[element], block.o_low[element], block.radius[element], o, ball.o_low(c), ball.o_radius(c));
    double largest = 0;
    for (Index j = 0; j < count; ++j)
      if (visible[j]) largest = std::max(largest, kv.values_absolute(key0 + j, c));
    block.value_overflow[element] = values_may_overflow(contract_, t.live, largest);
    if (!block.exact[at]) {
      ColumnSums sums;
      bool first_split = true;
      double partial = 0, merged = 0, hull = with_zero || bound.may_overflow ? std::fabs(o) : 0;
      for (Index j = 0; j < count; ++j) {
        const Index after = key0 + j + 1;
        if (visible[j]) {
          const auto key = static_cast<std::size_t>(j);
          const double v = kv.values(key0 + j, c);
          hull = std::max(hull, std::fabs(v - o));
          sums.centred += centred[key] * std::fabs(v - o);
          sums.absolute += absolute[key] * kv.values_absolute(key0 + j, c);
          sums.tail += tail[key] * kv.values_absolute(key0 + j, c);
          partial += (t.kept && t.kept[j] == 0 ? 0 : t.weight[j]) * v;
          sums.prefix += std::fabs(partial);
        }
        if (counted.ends_split(after) || (j + 1 == count && !first_split)) {
          const double before = std::exchange(merged, merged + partial);
          if (!first_split) sums.prefix += counted.merge * (std::fabs(before) + std::fabs(partial) + std::fabs(merged));
          partial = 0;
          first_split = false;
        } else if (after % contract_.tile == 0 && j + 1 < count) {
          sums.prefix += counted.tile_end * std::fabs(partial);
        }
      }
      sums.prefix *= contract_.dot_roundoff;
      block.bound[element] = element_bound(contract_, context_, bound, o, sums, hull, largest);
    }
    block.o[element] = o;
    block.o_low[element] = ball.o_low(c);
    block.radius[element] = ball.o_radius(c);
  }
  block.lse[at] = ball.lse();
  block.lse_low[at] = ball.lse_low();
  block.lse_radius[at] = ball.lse_radius();
  block.lse_bound[at] = bound.lse;
  if (block.needs_ball[at]) {
    block.domain[at] = domain_of(bound);
    std::copy_n(t.weight, count, block.weight.begin() + r * n + first);
    block.needs_ball[at] = 0;
  }
  return consistent;
}

}  // namespace assay
