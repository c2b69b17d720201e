#include "oracle/spread_gradients.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/conventional.h"
#include "oracle/stored_forward.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

bool is_finite(const TensorView& t, Index b, Index h, Index i) {
  for (Index d = 0; d < t.shape[3]; ++d)
    if (!std::isfinite(load(t, t.at(b, h, i, d)))) return false;
  return true;
}

// Goes through the rows of the heads that share a kv head.
class Spread {
 public:
  Spread(const Attention& p, const AttentionBackwardInput& in, const BackwardReference& reference,
         Index b, Index g, GroupGradients& group, SharedGradients& shared)
      : p_(p),
        in_(in),
        reference_(reference),
        b_(b),
        keys_(keys_of_sequence(p, b)),
        group_(group),
        shared_(shared) {
    for (Gradient* m : {&group.dk, &group.dv}) m->spread.assign(m->value.size(), 0);
    for (Gradient& dq : group.dq) dq.spread.assign(dq.value.size(), 0);
    for (Index j = keys_.begin; j < keys_.end; ++j) {
      key_spoilt_.push_back(!is_finite(p.k, b, g, j));
      value_spoilt_.push_back(!is_finite(p.v, b, g, j));
    }
    any_key_ = std::ranges::count(key_spoilt_, 1) > 0;
    any_value_ = std::ranges::count(value_spoilt_, 1) > 0;
  }

  // Row i of head h, which is row r of dQ.
  void take(Index h, Index i, Index r) {
    const bool query = !is_finite(p_.q, b_, h, i), d_o = !is_finite(in_.d_o, b_, h, i);
    const bool d_lse = !std::isfinite(lse_gradient_of_row(in_, b_, h, i));
    if (!any_key_ && !any_value_ && !query && !d_o && !d_lse) return;
    evaluate_visibility(p_, b_, h, i, seen_);
    const bool lse = (query || any_key_) && lse_is_spoilt(h, i);
    const bool delta =
        d_o || d_lse || ((query || any_key_ || any_value_) && !is_finite(in_.o, b_, h, i));
    for (Index j = keys_.begin; j < keys_.end; ++j) {
      const auto at = usize(j - keys_.begin);
      const bool masked = seen_.bias[usize(j)] == -inf;
      const bool weight = lse || (masked && (query || key_spoilt_[at]));
      const bool score = weight || delta || (masked && value_spoilt_[at]);
      if (weight) mark(group_.dv, j);
      else if (masked && d_o) mark_columns(group_.dv, j, h, i);
      if (!score) continue;
      mark(group_.dq[usize(h % p_.shape.group())], r);
      mark(group_.dk, j);
      if (shared_.d_bias.rows > 0) mark(shared_.d_bias, reference_.bias_element(b_, h, i, j));
    }
    if (shared_.d_sink.rows > 0 && (lse || delta)) mark(shared_.d_sink, h);
  }

 private:
  // If LSE is infinite, the weight of a score of -inf is NaN. This does not count for a row that
  // sees no key: its LSE is -inf whatever the inputs hold.
  bool lse_is_spoilt(Index h, Index i) const {
    if (!in_.lse) return true;
    const double lse = load(in_.lse, in_.lse.at(b_, h, i, 0));
    return std::isnan(lse) || (std::isinf(lse) && seen_.visible > 0);
  }

  static void mark(Gradient& m, Index row) {
    if (m.rows == 0) return;  // only some rows were asked for
    m.spread.resize(m.value.size(), 0);
    std::fill_n(m.spread.begin() + row * m.columns, m.columns, 1);
  }
  // Marks the columns of dV in which dO of the row is not finite.
  void mark_columns(Gradient& dv, Index j, Index h, Index i) const {
    if (dv.rows == 0) return;
    for (Index c = 0; c < dv.columns; ++c)
      if (!std::isfinite(load(in_.d_o, in_.d_o.at(b_, h, i, c))))
        dv.spread[usize(j * dv.columns + c)] = 1;
  }

  const Attention& p_;
  const AttentionBackwardInput& in_;
  const BackwardReference& reference_;
  const Index b_;
  const KeyInterval keys_;  // those of the sequence; beyond them memory may hold anything
  GroupGradients& group_;
  SharedGradients& shared_;
  // Whether K and V of a key of the sequence hold a NaN or an infinity.
  std::vector<char> key_spoilt_, value_spoilt_;
  bool any_key_ = false, any_value_ = false;
  RowVisibility seen_;
};

}  // namespace

// bounds_backward.md, 7, 0 times NaN: which elements a pair that a mask hides may spoil
void mark_spread(const Attention& problem, const AttentionBackwardInput& input,
                 const BackwardReference& reference, Index b, Index g, std::span<const Index> rows,
                 GroupGradients& group, SharedGradients& shared) {
  Spread spread(problem, input, reference, b, g, group, shared);
  const Index heads = problem.shape.group();
  for (Index h = g * heads; h < (g + 1) * heads; ++h)
    for (Index r = 0; r < std::ssize(rows); ++r) spread.take(h, rows[usize(r)], r);
}

}  // namespace assay
