// Gradients of attention by plain loops in double precision, written from docs/semantics.md alone.
// They come with a simple bound for the error of an fp32 kernel, and with the tensors of one
// backward pass.
#pragma once

#include <Random123/philox.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "problem/generate.h"

namespace assay {

inline constexpr double u = 0x1p-24;

inline Tensor make(Dtype dtype, LayoutKind kind, const Extents& shape) {
  Tensor t(dtype, shape, make_layout(kind, shape, shape[1] + 2));
  poison(t, Poison::nan);
  return t;
}

// The tensors that the backward pass reads and writes besides the inputs of a case.
struct Backward {
  explicit Backward(const Case& c, std::optional<Dtype> gradient_dtype = {})
      : in(c), d_o_in(output_gradient_case(c)), p(in.problem) {
    const AttentionShape& s = p.shape;
    const Dtype out = gradient_dtype.value_or(c.dtype);
    o = make(c.out_dtype(), c.o_layout, s.o_extents());
    lse = make(Dtype::f32, c.o_layout, s.lse_extents());
    dq = make(out, c.o_layout, s.q_extents());
    dk = make(out, c.o_layout, s.k_extents());
    dv = make(out, c.o_layout == LayoutKind::bhsd ? LayoutKind::bhsd : LayoutKind::strided,
              s.v_extents());
    if (p.bias) {
      const std::array<bool, 4>& varies = c.bias.varies;
      Extents extent = s.pair_extents();
      for (std::size_t n = 0; n < 4; ++n)
        if (!varies[n]) extent[n] = 1;
      Layout layout = make_layout(LayoutKind::padded, extent, 1);
      for (std::size_t n = 0; n < 4; ++n)
        if (!varies[n]) layout.stride[n] = 0;
      d_bias = Tensor(Dtype::f32, s.pair_extents(), layout);
      poison(d_bias, Poison::nan);
    }
    if (!p.sink.empty()) d_sink = make(Dtype::f32, LayoutKind::strided, {1, s.query_heads, 1, 1});
  }

  static Case output_gradient_case(const Case& c) {
    Case g;
    g.shape = {c.shape.batch,
               c.shape.query_heads,
               c.shape.query_heads,
               c.shape.rows,
               1,
               c.shape.value_dim,
               1};
    g.dtype = c.dtype;
    g.q_layout = c.o_layout;
    g.seed = c.seed + 1000;
    return g;
  }

  AttentionBackwardInput input() const {
    return {o.view(), lse.view(), d_o_in.q.view(), in.d_lse.view()};
  }
  AttentionGradients output() const {
    return {dq.view(), dk.view(), dv.view(), d_bias.view(), d_sink.view()};
  }
  kernels::Status run(const kernels::Execution& how = 1) const {
    return kernels::attention_backward(p, input(), output(), how);
  }

  Inputs in, d_o_in;
  Attention& p;
  Tensor o, lse, dq, dk, dv, d_bias, d_sink;
};

inline bool visible(const Attention& p, Index b, Index h, Index i, Index j) {
  const Index diagonal = i + p.offset_of(b);
  const auto batch = usize(b);
  if (p.causal && j > diagonal) return false;
  if (p.window_left >= 0 && j < diagonal - p.window_left) return false;
  if (p.window_right >= 0 && j > diagonal + p.window_right) return false;
  if (!p.key_lengths.empty() && j >= p.key_lengths[batch]) return false;
  if (!p.key_starts.empty() && j < p.key_starts[batch]) return false;
  if (!p.query_segment.empty() &&
      p.query_segment[usize(b * p.shape.rows + i)] != p.key_segment[usize(b * p.shape.keys + j)])
    return false;
  if (p.keep && !p.keep.at(b, h, i, j)) return false;
  if (!p.bias) return true;
  const double x = load(p.bias, p.bias.at(b, h, i, j));
  return x != -INFINITY && !(p.finite_min_masks && x == -format(p.bias.dtype).max_finite);
}

inline double kept(const Attention& p, Index b, Index h, Index i, Index j) {
  if (p.dropout == 0) return 1;
  r123::Philox4x32 philox;
  const auto low = static_cast<std::uint32_t>(p.dropout_seed),
             high = static_cast<std::uint32_t>(p.dropout_seed >> 32);
  const auto word = philox({{static_cast<std::uint32_t>(j), static_cast<std::uint32_t>(i),
                             static_cast<std::uint32_t>(h), static_cast<std::uint32_t>(b)}},
                           {{low, high}})[0];
  return word >= static_cast<double>(p.dropout) * 0x1p32 ? 1 / (1 - static_cast<double>(p.dropout))
                                                         : 0;
}

// A value, and how far from it the result of an fp32 kernel may be.
struct Near {
  double value = 0, error = 0;
  double terms = 0;  // sum of magnitudes; the loss of a rounded sum is a fraction of it
  void add(double x, double e) { value += x, error += e, terms += std::fabs(x) + e; }
};

// Computes the gradients of a problem, element by element. It also computes O and LSE, and stores
// them to `t`, rounded.
class PlainReference {
 public:
  // `cast` is the relative error with which a kernel rounds P and dS before it multiplies them.
  explicit PlainReference(const Backward& t, double cast = 0)
      : t_(t),
        cast_(cast),
        p_(t.p),
        s_(p_.shape),
        dq(count(s_.query_heads, s_.rows, s_.dim)),
        dk(count(s_.kv_heads, s_.keys, s_.dim)),
        dv(count(s_.kv_heads, s_.keys, s_.value_dim)),
        d_sink(usize(s_.query_heads)) {
    if (t.d_bias.view()) {
      const TensorView& bias = t.d_bias.view();
      d_bias.resize(usize(t.d_bias.size_in_bytes()) / 4);
      bias_terms_ = 1;
      for (std::size_t n = 0; n < 4; ++n)
        bias_terms_ *= bias.stride[n] == 0 ? static_cast<double>(bias.shape[n]) : 1;
    }
    for (Index b = 0; b < s_.batch; ++b)
      for (Index h = 0; h < s_.query_heads; ++h)
        for (Index i = 0; i < s_.rows; ++i) row(b, h, i);
  }

  // Compares every element of every gradient. Returns the largest error as a fraction of its bound.
  double compare() const {
    const double scale = p_.scale, group_rows = static_cast<double>(s_.rows * s_.group());
    double worst = 0;
    worst = std::max(worst, compare("dq", t_.dq.view(), dq, s_.query_heads, s_.rows, s_.dim, scale,
                                    static_cast<double>(s_.keys)));
    worst = std::max(
        worst, compare("dk", t_.dk.view(), dk, s_.kv_heads, s_.keys, s_.dim, scale, group_rows));
    worst = std::max(
        worst, compare("dv", t_.dv.view(), dv, s_.kv_heads, s_.keys, s_.value_dim, 1, group_rows));
    if (t_.d_bias.view()) {
      const TensorView& v = t_.d_bias.view();
      for (Index b = 0; b < s_.batch; ++b)
        for (Index h = 0; h < s_.query_heads; ++h)
          for (Index i = 0; i < s_.rows; ++i)
            for (Index j = 0; j < s_.keys; ++j)
              worst = std::max(worst, judge("d_bias", v, v.at(b, h, i, j),
                                            d_bias[index(v.at(b, h, i, j))], 1, bias_terms_));
    }
    if (t_.d_sink.view())
      for (Index h = 0; h < s_.query_heads; ++h)
        worst =
            std::max(worst, judge("d_sink", t_.d_sink.view(), t_.d_sink.view().at(0, h, 0, 0),
                                  d_sink[index(h)], 1, static_cast<double>(s_.batch * s_.rows)));
    return worst;
  }

 private:
  static std::size_t index(Index i) { return usize(i); }
  std::size_t count(Index heads, Index rows, Index columns) const {
    return index(s_.batch * heads * rows * columns);
  }
  static double get(const TensorView& t, Index b, Index h, Index i, Index d) {
    return load(t, t.at(b, h, i, d));
  }

  void row(Index b, Index h, Index i) {
    const Index g = h / s_.group(), D = s_.dim, Dv = s_.value_dim;
    std::vector<Index> keys;
    for (Index j = 0; j < s_.keys; ++j)
      if (visible(p_, b, h, i, j)) keys.push_back(j);
    const double scale = p_.scale;
    const TensorView &o = t_.o.view(), &lse_view = t_.lse.view(), &d_o = t_.d_o_in.q.view();
    std::vector<double> s, s_error, slope;
    double top = -INFINITY;
    for (Index j : keys) {
      double t = 0, magnitude = 0;
      for (Index d = 0; d < D; ++d) {
        const double x = get(p_.q, b, h, i, d) * get(p_.k, b, g, j, d);
        t += x, magnitude += std::fabs(x);
      }
      t *= scale, magnitude *= scale;
      // An infinite score is not rounded.
      double error =
                 std::isfinite(magnitude) ? 2 * (static_cast<double>(D) + 2) * u * magnitude : 0,
             derivative = 1;
      if (p_.softcap > 0) {
        const double y = std::tanh(t / p_.softcap);
        t = p_.softcap * y, derivative = 1 - y * y;
        error += 12 * u * std::fabs(t);
      }
      double bias = p_.alibi_slopes.empty() ? 0
                                            : static_cast<double>(p_.alibi_slopes[index(h)]) *
                                                  static_cast<double>(j - i - p_.offset_of(b));
      if (p_.bias) bias += get(p_.bias, b, h, i, j);
      error += 4 * u * (std::fabs(bias) + std::fabs(t));
      s.push_back(t + bias), s_error.push_back(error), slope.push_back(derivative);
      top = std::max(top, t + bias);
    }
    const bool sink = !p_.sink.empty();
    const double z = sink ? p_.sink[index(h)] : -INFINITY;
    top = std::max(top, z);
    double sum = sink ? std::exp(z - top) : 0;
    for (double x : s) sum += std::exp(x - top);
    std::vector<double> out(index(Dv), 0.0);
    for (std::size_t n = 0; n < keys.size(); ++n)
      for (Index c = 0; c < Dv; ++c)
        out[index(c)] +=
            std::exp(s[n] - top) / sum * kept(p_, b, h, i, keys[n]) * get(p_.v, b, g, keys[n], c);
    for (Index c = 0; c < Dv; ++c) store(o, o.at(b, h, i, c), out[index(c)]);
    store(lse_view, lse_view.at(b, h, i, 0), top + std::log(sum));
    const TensorView& d_lse_view = t_.in.d_lse.view();
    const double d_lse = d_lse_view ? get(d_lse_view, b, h, i, 0) : 0;
    if (keys.empty()) {
      store(lse_view, lse_view.at(b, h, i, 0), sink ? z : -INFINITY);
      if (sink) d_sink[index(h)].add(d_lse, 4 * u * std::fabs(d_lse));
      return;
    }
    // From here on, O and LSE are what was stored.
    const double lse = get(lse_view, b, h, i, 0);
    double delta = 0, delta_terms = 0;
    for (Index c = 0; c < Dv; ++c) {
      const double x = get(d_o, b, h, i, c) * get(o, b, h, i, c);
      delta += x, delta_terms += std::fabs(x);
    }
    delta -= d_lse, delta_terms += std::fabs(d_lse);
    const double delta_error = 2 * (static_cast<double>(Dv) + 3) * u * delta_terms;
    if (sink) {
      const double w = std::exp(z - lse);
      d_sink[index(h)].add(
          -w * delta, w * delta_error + w * std::fabs(delta) * u * (8 + 2 * std::fabs(z - lse)));
    }
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const Index j = keys[n];
      const double r = kept(p_, b, h, i, j), w = std::exp(s[n] - lse);
      const double w_error =
          w * std::expm1(s_error[n] + u * (8 + 2 * std::fabs(s[n]) + 2 * std::fabs(lse))) +
          0x1p-125;
      double dp = 0, dp_terms = 0;
      for (Index c = 0; c < Dv; ++c) {
        const double x = get(d_o, b, h, i, c) * get(p_.v, b, g, j, c);
        dp += x, dp_terms += std::fabs(x);
        dv[index(((b * s_.kv_heads + g) * s_.keys + j) * Dv + c)].add(
            w * r * get(d_o, b, h, i, c),
            (w_error + 4 * u * w + cast_ * (w + w_error)) * r * std::fabs(get(d_o, b, h, i, c)));
      }
      const double inner = r * dp - delta, inner_terms = r * std::fabs(dp) + std::fabs(delta);
      const double inner_error =
          2 * (static_cast<double>(Dv) + 2) * u * dp_terms * r + delta_error + 4 * u * inner_terms;
      double ds = w * inner, ds_error = w * inner_error +
                                        w_error * (std::fabs(inner) + inner_error) +
                                        4 * u * std::fabs(w * inner);
      if (!d_bias.empty()) d_bias[index(t_.d_bias.view().at(b, h, i, j))].add(ds, ds_error);
      ds_error = ds_error * slope[n] + (p_.softcap > 0 ? (24 * u + s_error[n] / p_.softcap * 2) *
                                                             (std::fabs(ds) + ds_error)
                                                       : 0);
      ds *= slope[n];
      ds_error += cast_ * (std::fabs(ds) + ds_error);
      for (Index d = 0; d < D; ++d) {
        const double q = get(p_.q, b, h, i, d), k = get(p_.k, b, g, j, d);
        dq[index(((b * s_.query_heads + h) * s_.rows + i) * D + d)].add(ds * k,
                                                                        ds_error * std::fabs(k));
        dk[index(((b * s_.kv_heads + g) * s_.keys + j) * D + d)].add(ds * q,
                                                                     ds_error * std::fabs(q));
      }
    }
  }

  static double judge(const char* name, const TensorView& t, Index at, const Near& exact,
                      double scale, double terms) {
    const double got = load(t, at), value = exact.value * scale;
    if (!std::isfinite(value)) {
      EXPECT_TRUE(std::isnan(value) ? std::isnan(got) : got == value)
          << name << " at " << at << ": " << got << ", not " << value;
      return 0;
    }
    double bound = scale * (exact.error + 2 * (terms + 4) * u * exact.terms) +
                   4 * u * std::fabs(value) + 0x1p-120;
    bound += half_ulp(t.dtype, std::fabs(value) + bound);
    const double error = std::fabs(got - value);
    EXPECT_TRUE(error <= bound) << name << " at " << at << ": " << got << ", not " << value
                                << ", is off by " << error / bound << " bounds";
    return error / bound;
  }

  double compare(const char* name, const TensorView& t, const std::vector<Near>& exact, Index heads,
                 Index rows, Index columns, double scale, double terms) const {
    double worst = 0;
    std::size_t e = 0;
    for (Index b = 0; b < s_.batch; ++b)
      for (Index h = 0; h < heads; ++h)
        for (Index i = 0; i < rows; ++i)
          for (Index c = 0; c < columns; ++c, ++e) {
            worst = std::max(worst, judge(name, t, t.at(b, h, i, c), exact[e], scale, terms));
            if (testing::Test::HasFailure()) return worst;
          }
    return worst;
  }

  const Backward& t_;
  const double cast_;
  const Attention& p_;
  const AttentionShape& s_;
  double bias_terms_ = 0;

 public:
  std::vector<Near> dq, dk, dv, d_bias, d_sink;
};

}  // namespace assay
