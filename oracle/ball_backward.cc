#include "oracle/ball_backward.h"

#include <arb_mat.h>

#include <cmath>
#include <limits>

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

}  // namespace

BallGradients::BallGradients(const Attention& p, const TensorView& d_o_view, Index b, Index g,
                             long bits)
    : rows_(p.shape.rows), keys_(p.shape.keys), dim_(p.shape.dim), value_dim_(p.shape.value_dim) {
  const AttentionShape& s = p.shape;
  Matrix k(keys_, dim_), k_transposed(dim_, keys_), v(keys_, value_dim_),
      v_transposed(value_dim_, keys_);
  load_head(p.k, b, g, k, false);
  load_head(p.k, b, g, k_transposed, true);
  load_head(p.v, b, g, v, false);
  load_head(p.v, b, g, v_transposed, true);
  Matrix dk(keys_, dim_), dv(keys_, value_dim_), part_k(keys_, dim_), part_v(keys_, value_dim_);
  const Ball scale(p.scale), cap(p.softcap), one(1.0);
  Ball keep_scale(1.0), x, y, total, delta, maximum;
  arb_sub(keep_scale.get(), one.get(), Ball(p.dropout).get(), bits);
  arb_inv(keep_scale.get(), keep_scale.get(), bits);
  RowVisibility seen;
  for (Index head = 0; head < s.group(); ++head) {
    const Index h = g * s.group() + head;
    Matrix q(rows_, dim_), d_o(rows_, value_dim_), score(rows_, keys_), dp(rows_, keys_),
        kept_weight(rows_, keys_), ds(rows_, keys_), dq(rows_, dim_);
    load_head(p.q, b, h, q, false);
    load_head(d_o_view, b, h, d_o, false);
    score.product(q, k_transposed, bits);
    dp.product(d_o, v_transposed, bits);
    Ball sink_gradient;
    for (Index i = 0; i < rows_; ++i) {
      evaluate_visibility(p, b, h, i, seen);
      if (seen.visible == 0) {
        ds_.resize(ds_.size() + usize(keys_));
        continue;
      }
      const bool has_sink = !p.sink.empty();
      const Ball sink(has_sink ? p.sink[usize(h)] : 0.0f);
      bool any = has_sink;
      if (has_sink) maximum = sink;
      std::vector<Ball> factor(usize(keys_)), weight(factor);
      auto visible = [&](Index j) { return seen.bias[usize(j)] != -inf; };
      for (Index j = 0; j < keys_; ++j) {
        if (!visible(j)) continue;
        arb_ptr z = score(i, j);
        arb_mul(z, z, scale.get(), bits);
        arb_set(factor[usize(j)].get(), one.get());
        if (p.softcap > 0) {
          arb_div(z, z, cap.get(), bits);
          arb_tanh(z, z, bits);
          arb_submul(factor[usize(j)].get(), z, z, bits);
          arb_mul(z, z, cap.get(), bits);
        }
        if (p.bias) {
          arb_set_d(x.get(), load(p.bias, p.bias.at(b, h, i, j)));
          arb_add(z, z, x.get(), bits);
        }
        if (!p.alibi_slopes.empty()) {
          arb_set_si(x.get(), static_cast<slong>(j - (i + p.offset_of(b))));
          arb_addmul(z, x.get(), Ball(p.alibi_slopes[usize(h)]).get(), bits);
        }
        if (!any || arf_cmp(arb_midref(z), arb_midref(maximum.get())) > 0)
          arb_set(maximum.get(), z);
        any = true;
      }
      arb_zero(total.get());
      for (Index j = 0; j < keys_; ++j) {
        if (!visible(j)) continue;
        arb_ptr w = weight[usize(j)].get();
        arb_sub(w, score(i, j), maximum.get(), bits);
        arb_exp(w, w, bits);
        arb_add(total.get(), total.get(), w, bits);
      }
      if (has_sink) {
        arb_sub(y.get(), sink.get(), maximum.get(), bits);
        arb_exp(y.get(), y.get(), bits);
        arb_add(total.get(), total.get(), y.get(), bits);
        arb_div(y.get(), y.get(), total.get(), bits);  // the sink's weight
      }
      // D = sum P R dP, which equals dO.O and does not need O.
      arb_zero(delta.get());
      for (Index j = 0; j < keys_; ++j) {
        if (!visible(j)) continue;
        arb_ptr w = weight[usize(j)].get();
        arb_div(w, w, total.get(), bits);
        if (!keeps_weight(p, b, h, i, j)) {
          arb_zero(dp(i, j));
          continue;
        }
        arb_mul(kept_weight(i, j), w, keep_scale.get(), bits);
        arb_mul(dp(i, j), dp(i, j), keep_scale.get(), bits);
        arb_addmul(delta.get(), w, dp(i, j), bits);
      }
      for (Index j = 0; j < keys_; ++j) {
        if (!visible(j)) continue;
        arb_sub(x.get(), dp(i, j), delta.get(), bits);
        arb_mul(ds(i, j), weight[usize(j)].get(), x.get(), bits);
      }
      if (has_sink) arb_submul(sink_gradient.get(), y.get(), delta.get(), bits);
      for (Index j = 0; j < keys_; ++j) ds_.push_back(enclose(ds(i, j), bits));
      for (Index j = 0; j < keys_; ++j)
        if (visible(j)) {
          arb_mul(ds(i, j), ds(i, j), factor[usize(j)].get(), bits);
          arb_mul(ds(i, j), ds(i, j), scale.get(), bits);
        }
    }
    d_sink_.push_back(enclose(sink_gradient.get(), bits));
    dq.product(ds, k, bits);
    dq.append_to(dq_, bits);
    part_k.transposed_product(ds, q, bits);
    dk.add(part_k, bits);
    part_v.transposed_product(kept_weight, d_o, bits);
    dv.add(part_v, bits);
  }
  dk.append_to(dk_, bits);
  dv.append_to(dv_, bits);
}

}  // namespace assay
