#include "oracle/ball_backward.h"

#include <cmath>
#include <limits>
#include <optional>

#include "oracle/arb_ball.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

class Matrix {
 public:
  Matrix(Index rows, Index columns) { arb_mat_init(m_, rows, columns); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() { arb_mat_clear(m_); }

  arb_ptr operator()(Index r, Index c) { return arb_mat_entry(m_, r, c); }
  Index rows() const { return arb_mat_nrows(m_); }
  Index columns() const { return arb_mat_ncols(m_); }
  void product(const Matrix& a, const Matrix& b, long bits) { arb_mat_mul(m_, a.m_, b.m_, bits); }
  // Computes A^T B.
  void transposed_product(const Matrix& a, const Matrix& b, long bits) {
    Matrix t(a.columns(), a.rows());
    arb_mat_transpose(t.m_, a.m_);
    arb_mat_mul(m_, t.m_, b.m_, bits);
  }
  void add(const Matrix& other, long bits) { arb_mat_add(m_, m_, other.m_, bits); }
  void append_to(std::vector<BallRow::Enclosure>& out, long bits) {
    for (Index r = 0; r < rows(); ++r)
      for (Index c = 0; c < columns(); ++c) out.push_back(enclose((*this)(r, c), bits));
  }

 private:
  arb_mat_t m_;
};

// Loads the rows of one head of a tensor. Numbers that are not finite become 0; only masked
// elements may hold them.
void load_head(const TensorView& t, Index b, Index h, Matrix& m, bool transposed) {
  for (Index i = 0; i < t.shape[2]; ++i)
    for (Index d = 0; d < t.shape[3]; ++d) {
      const double x = load(t, t.at(b, h, i, d));
      arb_set_d(transposed ? m(d, i) : m(i, d), std::isfinite(x) ? x : 0);
    }
}

// K and V of the kv head, and what all of its query heads have in common.
struct Group {
  Group(const Attention& p_, const TensorView& d_o, const TensorView& d_lse, Index b_, Index g,
        long bits_)
      : p(p_),
        d_o_view(d_o),
        d_lse_view(d_lse),
        b(b_),
        bits(bits_),
        k(p.shape.keys, p.shape.dim),
        k_transposed(p.shape.dim, p.shape.keys),
        v_transposed(p.shape.value_dim, p.shape.keys),
        scale(p.scale),
        cap(p.softcap),
        keep_scale(1.0) {
    load_head(p.k, b, g, k, false);
    load_head(p.k, b, g, k_transposed, true);
    load_head(p.v, b, g, v_transposed, true);
    arb_sub(keep_scale.get(), keep_scale.get(), Ball(p.dropout).get(), bits);
    arb_inv(keep_scale.get(), keep_scale.get(), bits);
  }

  const Attention& p;
  const TensorView &d_o_view, &d_lse_view;
  const Index b;
  const long bits;
  Matrix k, k_transposed, v_transposed;
  Ball scale, cap, keep_scale;  // keep_scale is 1 / (1 - dropout)
};

// The gradients of one query head, row by row. docs/bounds_backward.md names the letters.
class HeadGradients {
 public:
  HeadGradients(Group& group, Index h)
      : q(group.p.shape.rows, group.p.shape.dim),
        d_o(group.p.shape.rows, group.p.shape.value_dim),
        kept_weight(group.p.shape.rows, group.p.shape.keys),
        ds(group.p.shape.rows, group.p.shape.keys),
        group_(group),
        p_(group.p),
        h_(h),
        bits_(group.bits),
        keys_(p_.shape.keys),
        score_(p_.shape.rows, keys_),
        dp_(p_.shape.rows, keys_) {
    load_head(p_.q, group.b, h, q, false);
    load_head(group.d_o_view, group.b, h, d_o, false);
    score_.product(q, group.k_transposed, bits_);
    dp_.product(d_o, group.v_transposed, bits_);
    if (!p_.sink.empty()) sink_.emplace(p_.sink[usize(h)]);
  }

  // Computes dS of all rows, which is appended to `ds_of_pairs`. Afterwards `ds` holds the
  // gradients of q.k instead.
  void compute(std::vector<BallRow::Enclosure>& ds_of_pairs) {
    for (Index i = 0; i < p_.shape.rows; ++i) {
      evaluate_visibility(p_, group_.b, h_, i, seen_);
      if (seen_.visible == 0) {
        if (sink_) arb_add(sink_gradient.get(), sink_gradient.get(), lse_gradient(i).get(), bits_);
        ds_of_pairs.resize(ds_of_pairs.size() + usize(keys_));
        continue;
      }
      score_row(i);
      weigh_row(i);
      differentiate_weights(i);
      for (Index j = 0; j < keys_; ++j) ds_of_pairs.push_back(enclose(ds(i, j), bits_));
      differentiate_scores(i);
    }
  }

  Matrix q, d_o;
  Matrix kept_weight;  // P R, what dV sums
  Matrix ds;
  Ball sink_gradient;

 private:
  Ball lse_gradient(Index i) const {
    const TensorView& t = group_.d_lse_view;
    return Ball(t ? load(t, t.at(group_.b, h_, i, 0)) : 0.0);
  }
  bool visible(Index j) const { return seen_.bias[usize(j)] != -inf; }

  // Computes the scores, the slope of the softcap at each, and a number near their maximum.
  void score_row(Index i) {
    slope_.assign(usize(keys_), Ball(1.0));
    bool any = sink_.has_value();
    if (any) maximum_ = *sink_;
    for (Index j = 0; j < keys_; ++j) {
      if (!visible(j)) continue;
      arb_ptr z = score_(i, j);
      score(i, j, z);
      if (!any || arf_cmp(arb_midref(z), arb_midref(maximum_.get())) > 0)
        arb_set(maximum_.get(), z);
      any = true;
    }
  }

  // Makes a score of q.k, in place.
  void score(Index i, Index j, arb_ptr z) {
    arb_mul(z, z, group_.scale.get(), bits_);
    if (p_.softcap > 0) {
      arb_ptr slope = slope_[usize(j)].get();
      arb_div(z, z, group_.cap.get(), bits_);
      arb_tanh(z, z, bits_);
      arb_submul(slope, z, z, bits_);
      arb_mul(z, z, group_.cap.get(), bits_);
    }
    if (p_.bias) {
      arb_set_d(x_.get(), load(p_.bias, p_.bias.at(group_.b, h_, i, j)));
      arb_add(z, z, x_.get(), bits_);
    }
    if (!p_.alibi_slopes.empty()) {
      arb_set_si(x_.get(), static_cast<slong>(j - (i + p_.offset_of(group_.b))));
      arb_addmul(z, x_.get(), Ball(p_.alibi_slopes[usize(h_)]).get(), bits_);
    }
  }

  // Computes the weights P, before dropout, and the sink's.
  void weigh_row(Index i) {
    weight_.assign(usize(keys_), Ball(0.0));
    Ball total(0.0);
    for (Index j = 0; j < keys_; ++j) {
      if (!visible(j)) continue;
      arb_ptr w = weight_[usize(j)].get();
      arb_sub(w, score_(i, j), maximum_.get(), bits_);
      arb_exp(w, w, bits_);
      arb_add(total.get(), total.get(), w, bits_);
    }
    if (sink_) {
      arb_ptr w = sink_weight_.get();
      arb_sub(w, sink_->get(), maximum_.get(), bits_);
      arb_exp(w, w, bits_);
      arb_add(total.get(), total.get(), w, bits_);
      arb_div(w, w, total.get(), bits_);
    }
    for (Index j = 0; j < keys_; ++j)
      if (visible(j)) arb_div(weight_[usize(j)].get(), weight_[usize(j)].get(), total.get(), bits_);
  }

  // Computes D = sum P R dP, which equals dO.O and does not need O, less dLSE, and
  // dS = P (R dP - D).
  void differentiate_weights(Index i) {
    Ball delta(0.0);
    for (Index j = 0; j < keys_; ++j) {
      if (!visible(j)) continue;
      arb_ptr w = weight_[usize(j)].get();
      if (!keeps_weight(p_, group_.b, h_, i, j)) {
        arb_zero(dp_(i, j));
        continue;
      }
      arb_mul(kept_weight(i, j), w, group_.keep_scale.get(), bits_);
      arb_mul(dp_(i, j), dp_(i, j), group_.keep_scale.get(), bits_);
      arb_addmul(delta.get(), w, dp_(i, j), bits_);
    }
    arb_sub(delta.get(), delta.get(), lse_gradient(i).get(), bits_);
    for (Index j = 0; j < keys_; ++j) {
      if (!visible(j)) continue;
      arb_sub(x_.get(), dp_(i, j), delta.get(), bits_);
      arb_mul(ds(i, j), weight_[usize(j)].get(), x_.get(), bits_);
    }
    if (sink_) arb_submul(sink_gradient.get(), sink_weight_.get(), delta.get(), bits_);
  }

  // Makes dS the gradient of q.k.
  void differentiate_scores(Index i) {
    for (Index j = 0; j < keys_; ++j) {
      if (!visible(j)) continue;
      arb_mul(ds(i, j), ds(i, j), slope_[usize(j)].get(), bits_);
      arb_mul(ds(i, j), ds(i, j), group_.scale.get(), bits_);
    }
  }

  Group& group_;
  const Attention& p_;
  const Index h_;
  const long bits_;
  const Index keys_;
  Matrix score_, dp_;
  std::optional<Ball> sink_;
  RowVisibility seen_;
  std::vector<Ball> slope_, weight_;
  Ball maximum_, sink_weight_, x_;
};

}  // namespace

BallGradients::BallGradients(const Attention& p, const TensorView& d_o, const TensorView& d_lse,
                             Index b, Index g, long bits)
    : rows_(p.shape.rows), keys_(p.shape.keys), dim_(p.shape.dim), value_dim_(p.shape.value_dim) {
  Group group(p, d_o, d_lse, b, g, bits);
  Matrix dk(keys_, dim_), dv(keys_, value_dim_), part_k(keys_, dim_), part_v(keys_, value_dim_);
  Matrix dq(rows_, dim_);
  for (Index h = g * p.shape.group(); h < (g + 1) * p.shape.group(); ++h) {
    HeadGradients head(group, h);
    head.compute(ds_);
    d_sink_.push_back(enclose(head.sink_gradient.get(), bits));
    dq.product(head.ds, group.k, bits);
    dq.append_to(dq_, bits);
    part_k.transposed_product(head.ds, head.q, bits);
    dk.add(part_k, bits);
    part_v.transposed_product(head.kept_weight, head.d_o, bits);
    dv.add(part_v, bits);
  }
  dk.append_to(dk_, bits);
  dv.append_to(dv_, bits);
}

}  // namespace assay
