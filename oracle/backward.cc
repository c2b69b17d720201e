#include "oracle/backward.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "oracle/key_values.h"
#include "oracle/safety_factors.h"
#include "oracle/stored_forward.h"

namespace assay {
namespace {

Taint worse(Taint a, Taint b) { return std::max(a, b); }  // the sum of NaN and anything is NaN

Taint taint_of(double x) {
  return std::isfinite(x) ? Taint::none : std::isnan(x) ? Taint::nan : Taint::anything;
}

Gradient empty_gradient(Index rows, Index columns) {
  Gradient g;
  g.rows = rows;
  g.columns = columns;
  const auto n = usize(rows * columns), r = usize(rows);
  g.value.assign(n, 0);
  g.bound.assign(n, 0);
  g.taint.assign(n, Taint::none);
  g.may_overflow.assign(n, 0);
  g.ratio.assign(r, 0);
  g.slack.assign(r, safety::least_slack);
  g.touched.assign(r, 0);
  return g;
}

// bounds_backward.md, 6: from sums of products and of bound weights to values and bounds. `gamma`,
// the accumulation's part of every weight (0: one term, no sum), tells the largest that a sum of
// absolute values can be.
void finish_gradient(const Contract& c, const BackwardTerms& counts, double terms, double scale,
                     double gamma, Gradient& g) {
  for (std::size_t e = 0; e < g.value.size(); ++e) {
    const double absolute_sum = !g.absolute.empty() ? g.absolute[e]
                                : gamma > 0         ? g.bound[e] / gamma
                                                    : std::fabs(g.value[e]) + g.bound[e];
    const double size = std::fabs(scale);
    const double reach = absolute_sum * std::max(1.0, size) * (1 + safety::accumulation);
    g.may_overflow[e] = !(reach < c.largest);
    g.value[e] *= scale;
    const bool touched = g.touched[e / usize(g.columns)] != 0;
    g.bound[e] = touched ? gradient_bound(c, counts, terms, size, g.value[e], g.bound[e]) : 0;
  }
}

// The magnitudes of what is read as 0, because it is below `floor`; no element where nothing is.
RowMajor lost_operands(const Eigen::Ref<const RowMajor>& m, double floor) {
  if (floor == 0) return {};
  const auto size = m.array().abs();
  RowMajor lost = (size < floor).select(size, 0);
  if ((lost.array() == 0).all()) return {};
  return lost;
}

void add_to(Gradient& g, Index row0, const RowMajor& value, const RowMajor& bound) {
  for (Index r = 0; r < value.rows(); ++r)
    for (Index d = 0; d < g.columns; ++d) {
      const auto at = usize((row0 + r) * g.columns + d);
      g.value[at] += value(r, d);
      g.bound[at] += bound(r, d);
    }
}

// bounds_backward.md, 3: N, the terms that meet in one chain of additions: those of a tile, and one
// for every tile, where sums are blocked.
double chain_length(Index total, Index tile, Index tiles) {
  return static_cast<double>(tile > 0 ? std::min(total, tile) + tiles : total) + 1;
}

}  // namespace

BackwardReference::BackwardReference(const Attention& problem, const AttentionBackwardInput& input,
                                     const AttentionGradients& gradients, const Contract& contract,
                                     const BackwardTerms& terms)
    : problem_(problem),
      input_(input),
      reference_(problem, contract),
      context_(backward_context(problem)),
      has_sink_(gradients.d_sink && !problem.sink.empty()) {
  const AttentionShape& s = problem.shape;
  const auto tiles = [](Index n, Index tile) { return tile > 0 ? (n + tile - 1) / tile : 0; };
  const Index key_tiles =
      tiles(s.keys, contract.backward_tile) + tiles(s.keys, contract.backward_split);
  const Index row_tiles = tiles(s.rows, contract.backward_row_tile) * s.group();
  context_.keys_length = chain_length(s.keys, contract.backward_tile, key_tiles);
  context_.rows_length = chain_length(s.rows * s.group(), contract.backward_row_tile, row_tiles);
  context_.keys_terms = static_cast<double>(s.keys);
  context_.rows_terms = static_cast<double>(s.rows * s.group());
  context_.bias_length = 1;
  context_.terms = terms;
  if (gradients.d_bias) lay_out_bias(gradients.d_bias);
}

// An element of dBias sums over the dimensions of stride 0.
void BackwardReference::lay_out_bias(const TensorView& d_bias) {
  const AttentionShape& s = problem_.shape;
  const Extents extent = s.pair_extents();
  bias_elements_ = 1;
  for (std::size_t axis = 4; axis-- > 0;) {
    if (d_bias.stride[axis] == 0) {
      context_.bias_length *= static_cast<double>(std::max<Index>(extent[axis], 1));
    } else {
      bias_stride_[axis] = bias_elements_;
      bias_elements_ *= extent[axis];
    }
  }
}

Index BackwardReference::bias_element(Index b, Index h, Index i, Index j) const {
  return b * bias_stride_[0] + h * bias_stride_[1] + i * bias_stride_[2] + j * bias_stride_[3];
}

SharedGradients BackwardReference::no_shared_gradients() const {
  // Each element has a row of its own, because a row holds what is known of an element as a whole.
  SharedGradients shared{empty_gradient(bias_elements_, 1),
                         empty_gradient(has_sink_ ? problem_.shape.query_heads : 0, 1)};
  for (Gradient* g : {&shared.d_bias, &shared.d_sink}) g->absolute.assign(g->value.size(), 0);
  return shared;
}

// bounds_backward.md, 6: the bounds of dBias and dSink
void BackwardReference::finish(SharedGradients& shared) const {
  const Contract& c = contract();
  const double bias_gamma =
      context_.bias_length > 1 ? gamma_factor(context_.bias_length, c.roundoff) : 0;
  finish_gradient(c, context_.terms, context_.bias_length, 1, bias_gamma, shared.d_bias);
  const double rows = static_cast<double>(problem_.shape.batch * problem_.shape.rows) + 1;
  finish_gradient(c, context_.terms, rows, 1, gamma_factor(rows, c.roundoff), shared.d_sink);
}

// What is known of a row of a block besides its scores.
struct RowState {
  Taint score_taint = Taint::none;  // of P, and so of everything that the row touches
  Taint taint = Taint::none;        // of dS
  bool from_balls = false, d_o_finite = true;
  Delta delta;
};

// Computes the sums of one kv head. It takes one block of rows of one query head at a time.
class GroupSum {
 public:
  GroupSum(const BackwardReference& x, Index b, Index g, std::span<const Index> row_index,
           SharedGradients& shared, bool with_pairs)
      : x_(x),
        p_(x.problem_),
        s_(p_.shape),
        c_(x.contract()),
        shared_(shared),
        kv_(x.reference_.load_head(b, g)),
        b_(b) {
    keys_ = kv_->keys_transposed.leftCols(s_.keys).transpose();
    keys_absolute_ = keys_.cwiseAbs();
    // bounds_backward.md, 3, Operands that are read as 0: a kernel may multiply Q and K by the root
    // of the scale, and Q by all of it where it stores that
    const double scale = x.context_.forward.scale, shrinks = scale > 0 && scale < 1 ? scale : 1;
    keys_floor_ = c_.operand_floor / std::sqrt(shrinks);
    query_floor_ = c_.query_dtype ? c_.operand_floor / shrinks : keys_floor_;
    keys_lost_ = lost_operands(keys_, keys_floor_);
    // V holds 1 / (1 - dropout).
    values_lost_ = lost_operands(kv_->values, c_.operand_floor * x.context_.keep_scale);
    out_.row_index.assign(row_index.begin(), row_index.end());
    all_rows_ = static_cast<Index>(row_index.size()) == s_.rows;
    with_pairs_ = with_pairs;
    stores_heads_ = c_.head_gradient_dtype && s_.group() > 1 && all_rows_;
    out_.dk = empty_gradient(all_rows_ ? s_.keys : 0, s_.dim);
    out_.dv = empty_gradient(all_rows_ ? s_.keys : 0, s_.value_dim);
    dk_ = dk_bound_ = RowMajor::Zero(out_.dk.rows, s_.dim);
    dv_ = dv_bound_ = RowMajor::Zero(out_.dv.rows, s_.value_dim);
    if (stores_heads_) dk_heads_ = dk_, dv_heads_ = dv_;
  }

  void add_head(Index h) {
    h_ = h;
    const Index rows = static_cast<Index>(out_.row_index.size());
    Gradient& dq = out_.dq.emplace_back(empty_gradient(rows, s_.dim));
    if (with_pairs_)
      for (auto* part : {&out_.score_part, &out_.weight_part})
        part->emplace_back(usize(rows * s_.keys), 0.0f);
    const RowMajor dk_before = stores_heads_ ? dk_ : RowMajor(),
                   dv_before = stores_heads_ ? dv_ : RowMajor();
    const Index pairs = Index{1} << 16;  // in a block, whose matrices take some MiB
    const Index per_block = std::clamp<Index>(pairs / std::max<Index>(s_.keys, 1), 16, 128);
    for (Index first = 0; first < rows; first += per_block) {
      const auto of_block = usize(std::min(per_block, rows - first));
      const std::span<const Index> index{out_.row_index.data() + first, of_block};
      add_block(dq, first, x_.reference_.evaluate(*kv_, h, index, Keep::scores));
    }
    if (stores_heads_) {
      dk_heads_ += (dk_ - dk_before).cwiseAbs();
      dv_heads_ += (dv_ - dv_before).cwiseAbs();
    }
    finish(x_.context_.keys_terms * x_.context_.keep_scale, p_.scale, x_.context_.keys_length, dq);
  }

  GroupGradients finish() {
    if (!all_rows_) return std::move(out_);
    add_to(out_.dk, 0, dk_, dk_bound_);
    add_to(out_.dv, 0, dv_, dv_bound_);
    for (Gradient* m : {&out_.dk, &out_.dv}) {
      std::fill(m->ratio.begin(), m->ratio.end(), key_ratio_);
      std::fill(m->slack.begin(), m->slack.end(), key_slack_);
    }
    const double length = x_.context_.rows_length;
    // bounds_backward.md, 2, Dropout: R may be multiplied into the sum
    const double terms = x_.context_.rows_terms * x_.context_.keep_scale;
    finish(terms, p_.scale, length, out_.dk);
    finish(terms, 1, length, out_.dv);
    if (stores_heads_) {
      store_heads(dk_heads_, x_.context_.forward.scale, out_.dk);
      store_heads(dv_heads_, 1, out_.dv);
    }
    return std::move(out_);
  }

 private:
  // bounds_backward.md, 3, Heads that are stored: their parts, rounded and then added
  void store_heads(const RowMajor& magnitude, double scale, Gradient& g) const {
    const Dtype dtype = *c_.head_gradient_dtype;
    const auto heads = static_cast<double>(s_.group());
    const double counts = x_.context_.terms[BackwardTerm::head_cast];
    const double gamma = gamma_factor(heads - 1, unit_roundoff(dtype));
    const double floor = std::max(half_min_subnormal(dtype), c_.operand_floor);
    for (std::size_t e = 0; e < g.value.size(); ++e) {
      const double size = scale * magnitude.data()[e] + g.bound[e];
      if (g.touched[e / usize(g.columns)]) g.bound[e] += counts * (gamma * size + heads * floor);
      if (!(size < overflow_threshold(dtype))) g.may_overflow[e] = 1;
    }
  }

  void finish(double terms, double scale, double length, Gradient& g) const {
    const double gamma = gamma_factor(dot_roundings(c_, length), c_.dot_roundoff);
    finish_gradient(c_, x_.context_.terms, terms, scale, gamma, g);
  }

  // The matrices of a block. Each thread keeps them from block to block.
  struct Products {
    RowMajor q, d_o, dp, dp_absolute, dp_lost, kept_weight, ds, dot_gradient, to_dq, to_dk, to_dv,
        to_bias;
    std::array<RowMajor*, 7> weights() {
      return {&kept_weight, &ds, &dot_gradient, &to_dq, &to_dk, &to_dv, &to_bias};
    }
  };

  void add_block(Gradient& dq, Index first, Block block) {
    const Index rows = block.row_count(), n = block.count, key0 = block.key0;
    thread_local Products m;
    m.q.setZero(rows, s_.dim);
    m.d_o.setZero(rows, kv_->values.cols());
    std::vector<RowState> states(usize(rows));
    for (Index r = 0; r < rows; ++r) {
      if (!block.row(r).fully_masked) states[usize(r)] = inspect(block, r, m);
      else if (x_.has_sink_ && x_.input_.d_lse) add_sink_of_masked_row(block, r);
    }
    if (n == 0) return;
    m.dp.noalias() = m.d_o * kv_->values.middleRows(key0, n).transpose();
    m.dp_absolute.noalias() =
        m.d_o.cwiseAbs() * kv_->values_absolute.middleRows(key0, n).transpose();
    const RowMajor d_o_lost = lost_operands(m.d_o, c_.operand_floor);
    add_lost_products(d_o_lost, key0, n, m);
    if (p_.dropout > 0) drop(block, states, m);
    for (RowMajor* w : m.weights()) w->setZero(rows, n);
    for (Index r = 0; r < rows; ++r) {
      if (!block.row(r).fully_masked) add_row(block, r, states[usize(r)], dq, usize(first + r), m);
    }
    add_to(dq, first, m.dot_gradient * keys_.middleRows(key0, n),
           m.to_dq * keys_absolute_.middleRows(key0, n));
    if (keys_lost_.size() > 0) {
      const RowMajor lost = lost_in_sum(m.dot_gradient, m.to_dq) * keys_lost_.middleRows(key0, n);
      add_to(dq, first, RowMajor::Zero(rows, s_.dim), lost);
    }
    if (with_pairs_) keep_pairs(first, key0, m);
    if (!all_rows_) return;
    const auto d_o = m.d_o.leftCols(s_.value_dim);
    dk_.middleRows(key0, n).noalias() += m.dot_gradient.transpose() * m.q;
    dk_bound_.middleRows(key0, n).noalias() += m.to_dk.transpose() * m.q.cwiseAbs();
    dv_.middleRows(key0, n).noalias() += m.kept_weight.transpose() * d_o;
    dv_bound_.middleRows(key0, n).noalias() += m.to_dv.transpose() * d_o.cwiseAbs();
    const RowMajor q_lost = lost_operands(m.q, query_floor_);
    if (q_lost.size() > 0)
      dk_bound_.middleRows(key0, n).noalias() +=
          lost_in_sum(m.dot_gradient, m.to_dk).transpose() * q_lost;
    if (d_o_lost.size() > 0)
      dv_bound_.middleRows(key0, n).noalias() +=
          lost_in_sum(m.kept_weight, m.to_dv).transpose() * d_o_lost.leftCols(s_.value_dim);
  }

  // bounds_backward.md, 3, Operands that are read as 0: of dO.v
  void add_lost_products(const RowMajor& d_o_lost, Index key0, Index n, Products& m) const {
    m.dp_lost.resize(0, 0);
    if (d_o_lost.size() == 0 && values_lost_.size() == 0) return;
    m.dp_lost.setZero(m.dp.rows(), n);
    if (d_o_lost.size() > 0)
      m.dp_lost += d_o_lost * kv_->values_absolute.middleRows(key0, n).transpose();
    if (values_lost_.size() > 0)
      m.dp_lost += m.d_o.cwiseAbs() * values_lost_.middleRows(key0, n).transpose();
  }

  // bounds_backward.md, 3, Operands that are read as 0: the largest weights of a kernel, which the
  // inputs that it loses would have been multiplied with
  RowMajor lost_in_sum(const RowMajor& weight, const RowMajor& bound) const {
    return x_.context_.terms[BackwardTerm::input_operands] * (weight.cwiseAbs() + bound);
  }

  // bounds_backward.md, 7: dP of keys that dropout drops is 0, but a kernel may compute what
  // dropout then multiplies by 0.
  void drop(const Block& block, std::vector<RowState>& states, Products& m) const {
    for (Index e = 0; e < block.row_count() * block.count; ++e) {
      const auto pair = usize(e);
      if (block.kept[pair]) continue;
      RowState& state = states[usize(e / block.count)];
      const double reach = m.dp_absolute.data()[e] * (1 + safety::accumulation);
      if (block.visible[pair] && !(reach < c_.largest))
        state.taint = worse(state.taint, Taint::anything);
      m.dp.data()[e] = m.dp_absolute.data()[e] = 0;
      if (m.dp_lost.size() > 0) m.dp_lost.data()[e] = 0;
    }
  }

  // Weighs the pairs of a row, and keeps tainted numbers out of all sums. `own` is the index of the
  // row in dQ.
  void add_row(const Block& block, Index r, RowState& state, Gradient& dq, std::size_t own,
               Products& m) {
    dq.touched[own] = 1;
    if (state.score_taint == Taint::none) weigh(block, r, state, dq, own, m);
    if (state.score_taint != Taint::none)
      for (RowMajor* w : {&m.kept_weight, &m.to_dv}) w->row(r).setZero();
    if (state.taint != Taint::none) {
      for (RowMajor* w : {&m.ds, &m.dot_gradient, &m.to_dq, &m.to_dk, &m.to_bias})
        w->row(r).setZero();
      std::fill_n(dq.taint.begin() + static_cast<Index>(own) * s_.dim, s_.dim, state.taint);
    }
    if (x_.has_sink_) add_sink(block, r, state);
    if (x_.bias_elements_ > 0) add_to_bias(block, r, state, dq, own, m);
    if (all_rows_) touch_keys(block, r, state);
  }

  void keep_pairs(Index first, Index key0, const Products& m) {
    for (Index r = 0; r < m.dot_gradient.rows(); ++r)
      for (Index j = 0; j < m.dot_gradient.cols(); ++j) {
        const auto pair = usize((first + r) * s_.keys + key0 + j);
        out_.score_part.back()[pair] = static_cast<float>(m.dot_gradient(r, j));
        out_.weight_part.back()[pair] = static_cast<float>(m.kept_weight(r, j));
      }
  }

  // Reads Q and dO of a row, and finds D and what taints the row. Rows that fp64 cannot weigh are
  // first weighed in balls.
  RowState inspect(Block& block, Index r, Products& m) const {
    const BlockRow& row = block.row(r);
    RowState state;
    if (row.needs_ball && row.lse.kind == Kind::finite) {
      x_.reference_.refine(*kv_, block, r, safety::bits_of_refined_rows);
      state.from_balls = true;
    }
    read_query(block, r, state, m);
    state.taint = state.score_taint;
    read_output_gradient(block, r, state, m);
    state.delta = delta_of_row(c_, x_.context_.terms, x_.input_, block, r, m.d_o.row(r).data());
    if (!(state.delta.stored * (1 + safety::accumulation) < c_.largest))
      state.taint = worse(state.taint, Taint::anything);
    return state;
  }

  // bounds_backward.md, 7: what of scores and LSE taints P, and with it all that the row touches.
  void read_query(const Block& block, Index r, RowState& state, Products& m) const {
    const BlockRow& row = block.row(r);
    const Index i = row.index;
    const TensorView& lse = x_.input_.lse;
    if (row.domain == Domain::may_overflow || row.domain == Domain::must_overflow ||
        row.lse.kind == Kind::minus_infinity ||
        (lse && !std::isfinite(load(lse, lse.at(b_, h_, i, 0)))))
      state.score_taint = Taint::anything;
    for (Index d = 0; d < s_.dim; ++d) {
      const double q = load(p_.q, p_.q.at(b_, h_, i, d));
      if (std::isfinite(q)) m.q(r, d) = q;
      else state.score_taint = Taint::anything;
    }
    for (Index j = 0; kv_->any_key_not_finite && j < block.count; ++j)
      if (block.visible[block.pair(r, j)] && kv_->key_not_finite[usize(block.key0 + j)])
        state.score_taint = Taint::anything;
    if (row.lse.kind == Kind::nan) state.score_taint = Taint::nan;
  }

  // bounds_backward.md, 7: what of dO, dLSE and O taints dS.
  void read_output_gradient(const Block& block, Index r, RowState& state, Products& m) const {
    const BlockRow& row = block.row(r);
    const Index i = row.index;
    const TensorView &d_o_view = x_.input_.d_o, &o_view = x_.input_.o;
    state.taint = worse(state.taint, taint_of(lse_gradient_of_row(x_.input_, b_, h_, i)));
    for (Index col = 0; col < s_.value_dim; ++col) {
      const BlockElement& e = block.element(r, col);
      const double d_o = load(d_o_view, d_o_view.at(b_, h_, i, col));
      if (std::isfinite(d_o)) {
        m.d_o(r, col) = d_o;
      } else {
        state.d_o_finite = false;
        state.taint = worse(state.taint, taint_of(d_o));
      }
      // If every visible score is -inf, O is NaN. But a kernel may take LSE = -inf for a row
      // without keys.
      if (e.kind == Kind::nan && !e.underflow_excused && row.lse.kind != Kind::minus_infinity)
        state.taint = Taint::nan;
      else if (e.kind != Kind::finite || !std::isfinite(load(o_view, o_view.at(b_, h_, i, col))))
        state.taint = worse(state.taint, Taint::anything);
    }
  }

  void weigh(const Block& block, Index r, RowState& state, Gradient& dq, std::size_t own,
             Products& m) {
    GradientTruth t = truth_of_row(p_, block, r);
    t.dp = m.dp.row(r).data();
    t.dp_absolute = m.dp_absolute.row(r).data();
    if (m.dp_lost.size() > 0) t.dp_lost = m.dp_lost.row(r).data();
    t.weights_from_balls = state.from_balls;
    t.lse_error = lse_error_of_row(c_, x_.context_.terms, p_, x_.input_, block, r);
    t.delta = state.delta.value;
    t.delta_error = state.delta.error;
    t.delta_radius = state.delta.radius;
    t.d_lse = lse_gradient_of_row(x_.input_, b_, h_, block.row(r).index);
    const GradientRow bound = derive_gradient_row(
        c_, x_.context_, t,
        {m.kept_weight.row(r).data(), m.ds.row(r).data(), m.dot_gradient.row(r).data(),
         m.to_dq.row(r).data(), m.to_dk.row(r).data(), m.to_dv.row(r).data(),
         m.to_bias.row(r).data()});
    if (bound.vacuous) {
      state.score_taint = worse(state.score_taint, Taint::anything);
      state.taint = worse(state.taint, Taint::anything);
    }
    if (bound.may_overflow) state.taint = worse(state.taint, Taint::anything);
    state.delta.error += bound.delta_of_weights;
    dq.ratio[own] = bound.ratio;
    dq.slack[own] = bound.slack;
    key_ratio_ = std::max(key_ratio_, bound.ratio);
    key_slack_ = std::max(key_slack_, bound.slack);
  }

  // bounds_backward.md, 5, dSink: what a row adds.
  void add_sink(const Block& block, Index r, const RowState& state) {
    const auto head = usize(h_);
    Gradient& sink = shared_.d_sink;
    sink.touched[head] = 1;
    if (state.taint != Taint::none) {
      sink.taint[head] = worse(sink.taint[head], state.taint);
      return;
    }
    SinkTruth t;
    t.sink = static_cast<double>(p_.sink[head]);
    t.lse = block.row(r).lse.value;
    t.lse_error = lse_error_of_row(c_, x_.context_.terms, p_, x_.input_, block, r);
    t.lse_radius = block.row(r).lse.radius;
    t.delta = state.delta.value;
    t.delta_error = state.delta.error;
    t.delta_radius = state.delta.radius;
    t.rows = static_cast<double>(s_.batch * s_.rows);
    const SinkTerm part = derive_sink_term(c_, x_.context_, t);
    sink.value[head] -= part.value;
    sink.bound[head] += part.bound;
    sink.absolute[head] += part.absolute;
    if (part.own > 0) sink.ratio[head] = std::max(sink.ratio[head], part.own / part.bound);
  }

  // bounds_backward.md, 5, dSink: LSE of a row that sees no key is the sink, to which its dLSE
  // goes.
  void add_sink_of_masked_row(const Block& block, Index r) {
    const std::vector<double> no_d_o(usize(s_.value_dim), 0);
    RowState state;
    state.taint = taint_of(lse_gradient_of_row(x_.input_, b_, h_, block.row(r).index));
    state.delta = delta_of_row(c_, x_.context_.terms, x_.input_, block, r, no_d_o.data());
    add_sink(block, r, state);
  }

  // bounds_backward.md, 5, dBias: what a row adds.
  void add_to_bias(const Block& block, Index r, const RowState& state, const Gradient& dq,
                   std::size_t own, const Products& m) {
    const Index i = block.row(r).index;
    Gradient& bias = shared_.d_bias;
    for (Index j = 0; j < block.count; ++j) {
      if (!block.visible[block.pair(r, j)]) continue;
      const auto e = usize(x_.bias_element(b_, h_, i, block.key0 + j));
      bias.value[e] += m.ds(r, j);
      bias.bound[e] += m.to_bias(r, j);
      bias.absolute[e] += std::fabs(m.ds(r, j)) + m.to_bias(r, j);
      bias.touched[e] = 1;
      bias.ratio[e] = std::max(bias.ratio[e], dq.ratio[own]);
      bias.slack[e] = std::max(bias.slack[e], dq.slack[own]);
      bias.taint[e] = worse(bias.taint[e], state.taint);
    }
  }

  // bounds_backward.md, 7: whom a row touches or taints among dK and dV.
  void touch_keys(const Block& block, Index r, const RowState& state) {
    const Index i = block.row(r).index;
    const TensorView& d_o_view = x_.input_.d_o;
    for (Index j = 0; j < block.count; ++j) {
      if (!block.visible[block.pair(r, j)]) continue;
      const Index key = block.key0 + j;
      out_.dk.touched[usize(key)] = 1;
      out_.dv.touched[usize(key)] = 1;
      if (state.taint != Taint::none)
        for (Index d = 0; d < s_.dim; ++d) taint(out_.dk, key, d, state.taint);
      if (state.score_taint == Taint::none && state.d_o_finite) continue;
      for (Index col = 0; col < s_.value_dim; ++col) {
        const double d_o = load(d_o_view, d_o_view.at(b_, h_, i, col));
        taint(out_.dv, key, col, worse(state.score_taint, taint_of(d_o)));
      }
    }
  }
  static void taint(Gradient& g, Index row, Index column, Taint with) {
    Taint& mine = g.taint[usize(row * g.columns + column)];
    mine = worse(mine, with);
  }

  const BackwardReference& x_;
  const Attention& p_;
  const AttentionShape& s_;
  const Contract& c_;
  SharedGradients& shared_;
  const KeyValuesPointer kv_;
  const Index b_;
  Index h_ = 0;
  bool all_rows_ = false, with_pairs_ = false;
  RowMajor keys_, keys_absolute_, dk_, dk_bound_, dv_, dv_bound_;
  RowMajor keys_lost_, values_lost_;  // what is read as 0; no element: nothing is
  double keys_floor_ = 0, query_floor_ = 0;
  // Only for heads whose parts are stored: the sums of their absolute values.
  RowMajor dk_heads_, dv_heads_;
  bool stores_heads_ = false;
  double key_ratio_ = 0, key_slack_ = safety::least_slack;
  GroupGradients out_;
};

GroupGradients BackwardReference::evaluate(Index b, Index g, std::span<const Index> rows,
                                           SharedGradients& shared, bool with_pairs) const {
  GroupSum sum(*this, b, g, rows, shared, with_pairs);
  for (Index h = g * problem_.shape.group(); h < (g + 1) * problem_.shape.group(); ++h)
    sum.add_head(h);
  return sum.finish();
}

}  // namespace assay
