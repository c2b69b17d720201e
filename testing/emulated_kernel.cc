#include "testing/emulated_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/visibility.h"
#include "testing/flushing_fma.h"

namespace assay {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

float rounded(std::optional<Dtype> dtype, float x) {
  return dtype ? static_cast<float>(round_to(*dtype, x)) : x;
}

double truncated_to(double x, double quantum) { return std::trunc(x / quantum) * quantum; }

// Computes start + sum a_k b_k.
float dot(Accumulation how, const std::vector<float>& a, const std::vector<float>& b, float start) {
  const std::size_t n = a.size();
  float sum = start;
  switch (how) {
    case Accumulation::fma:
      for (std::size_t k = 0; k < n; ++k) sum = std::fma(a[k], b[k], sum);
      return sum;
    case Accumulation::flushing_fma:
      for (std::size_t k = 0; k < n; ++k) sum = flushing_fma(a[k], b[k], sum);
      return sum;
    case Accumulation::flushing_lanes:
      for (std::size_t k0 = 0; k0 < n; k0 += 32) {
        float lanes[2] = {0, 0};
        for (std::size_t k = k0; k < std::min(n, k0 + 32); ++k)
          lanes[k % 2] = flushing_fma(a[k], b[k], lanes[k % 2]);
        sum = flushing_sum(sum, flushing_sum(lanes[0], lanes[1]));
      }
      return sum;
    case Accumulation::rounded_products:
      for (std::size_t k = 0; k < n; ++k) {
        const float product = a[k] * b[k];
        sum += product;
      }
      return sum;
    case Accumulation::half:
      for (std::size_t k = 0; k < n; ++k)
        sum = static_cast<float>(
            round_to(Dtype::f16, static_cast<double>(sum) + static_cast<double>(a[k]) * b[k]));
      return sum;
    case Accumulation::truncating_block:
      // Sixteen exact products and the accumulator are aligned to the largest of them, and
      // truncated to 24 bits from its leading bit.
      for (std::size_t k0 = 0; k0 < n; k0 += 16) {
        const std::size_t end = std::min(n, k0 + 16);
        double largest = std::fabs(sum);
        for (std::size_t k = k0; k < end; ++k)
          largest = std::max(largest, std::fabs(static_cast<double>(a[k]) * b[k]));
        if (largest == 0) continue;
        if (!std::isfinite(largest)) return std::numeric_limits<float>::quiet_NaN();
        const double quantum = std::max(std::ldexp(1.0, std::ilogb(largest) - 23), 0x1p-149);
        double total = truncated_to(sum, quantum);
        for (std::size_t k = k0; k < end; ++k)
          total += truncated_to(static_cast<double>(a[k]) * b[k], quantum);
        // A NaN among the products does not show in the maximum.
        if (!std::isfinite(total)) return std::numeric_limits<float>::quiet_NaN();
        const double final_quantum =
            total == 0 ? quantum : std::max(std::ldexp(1.0, std::ilogb(total) - 23), 0x1p-149);
        sum = static_cast<float>(truncated_to(total, final_quantum));
      }
      return sum;
  }
  return sum;
}

// An exp with an error of up to 2 + 1.173 |x| ulp, which depends on the argument alone.
float noisy_exp(float x) {
  if (!std::isfinite(x)) return std::exp(x);
  std::uint64_t h =
      static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<double>(x) * 1e6)) *
      0x9E3779B97F4A7C15u;
  h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9u;
  const double noise = static_cast<double>(static_cast<std::int64_t>(h ^ h >> 32)) * 0x1p-63;
  return static_cast<float>(
      std::exp(static_cast<double>(x)) *
      (1 + noise * (2 + 1.173 * std::fabs(static_cast<double>(x))) * 0x1p-23));
}

struct Partial {
  float max = -inf, sum = 0;
  std::vector<float> accumulator;
};

class Row {
 public:
  Row(const Emulation& e, const Attention& p, Index b, Index h, Index i)
      : e_(e), c_(e.contract), p_(p), b_(b), h_(h), i_(i), dv_(usize(p.shape.value_dim)) {
    evaluate_visibility(p, b, h, i, seen_);
    folded_ = static_cast<float>(static_cast<double>(p.scale) * 1.4426950408889634);
    for (Index d = 0; d < p.shape.dim; ++d) {
      float q = static_cast<float>(load(p.q, p.q.at(b, h, i, d)));
      if (c_.query_dtype) q = static_cast<float>(round_to(*c_.query_dtype, q * p.scale));
      q_.push_back(q);
    }
    // The fused base-2 form is used only if nothing comes between the dot product and the exponent,
    // and if the largest dot product gives the largest score.
    fused_ =
        e.exp == ExpModel::base_two_fused && p.softcap == 0 && seen_.additions == 0 && p.scale >= 0;
  }

  void run(const AttentionOutput& out) {
    const Index tiles = (p_.shape.keys + c_.tile - 1) / c_.tile;
    const Index per_split =
        c_.split_keys > 0 ? c_.split_keys / c_.tile : (tiles + c_.splits - 1) / c_.splits;
    std::vector<Partial> parts;
    for (Index t = 0; t < tiles || t == 0; t += std::max<Index>(per_split, 1))
      parts.push_back(part(t, std::min(tiles, t + std::max<Index>(per_split, 1))));
    Partial whole = parts[0];
    if (c_.split_keys > 0) {
      for (std::size_t s = 1; s < parts.size(); ++s) merge(whole, parts[s]);
    } else if (parts.size() > 1) {
      whole = {-inf, 0, std::vector<float>(dv_, 0)};
      for (const Partial& x : parts) whole.max = std::max(whole.max, x.max);
      for (const Partial& x : parts) {
        if (x.max == -inf) continue;
        const float w = correction(x.max, whole.max);
        whole.sum = std::fma(w, x.sum, whole.sum);
        for (std::size_t c = 0; c < dv_; ++c)
          whole.accumulator[c] = std::fma(w, x.accumulator[c], whole.accumulator[c]);
      }
    }
    if (!p_.sink.empty()) {
      const float z = fused_ ? p_.sink[usize(h_)] / p_.scale : p_.sink[usize(h_)];
      const float m = std::max(whole.max, z), w = whole.max == -inf ? 0 : correction(whole.max, m);
      whole.sum = whole.sum * w + correction(z, m);
      for (float& x : whole.accumulator) x *= w;
      whole.max = m;
    }
    const Index lse_at = out.lse.at(b_, h_, i_, 0);
    if (c_.divides_first) multiply_weights(whole, out);
    for (std::size_t c = 0; c < dv_ && !c_.divides_first; ++c) {
      const float inverse = 1 / whole.sum;
      const float o = whole.sum == 0               ? 0
                      : c_.division_roundings == 2 ? whole.accumulator[c] * inverse
                                                   : whole.accumulator[c] / whole.sum;
      store(out.o, out.o.at(b_, h_, i_, static_cast<Index>(c)), o);
    }
    const float m = fused_ ? whole.max * p_.scale : whole.max;
    store(out.lse, lse_at, whole.sum == 0 ? -inf : m + std::log(whole.sum));
  }

  // The numbers that the backward pass recomputes for one visible key.
  struct Pair {
    Index key;
    float weight;  // e^(s - LSE), not yet cast
    float factor;  // 1 - (t/c)^2; 1 without a softcap
  };
  std::vector<Pair> backward(float lse) const {
    std::vector<Pair> pairs;
    for (Index j = 0; j < p_.shape.keys; ++j) {
      if (seen_.bias[usize(j)] == -std::numeric_limits<double>::infinity()) continue;
      const float capped = capped_score(j), s = biased_score(j, capped),
                  ratio = p_.softcap > 0 ? capped / p_.softcap : 0;
      const float weight =
          fused_ ? static_cast<float>(
                       std::exp2(static_cast<double>(std::fma(s, folded_, -(lse * 1.44269504f)))))
                 : exp_of(s - lse);
      pairs.push_back({j, weight, 1 - ratio * ratio});
    }
    return pairs;
  }

 private:
  float exp_of(float x) const {
    if (e_.exp == ExpModel::noisy) return noisy_exp(x);
    return static_cast<float>(std::exp(static_cast<double>(x)));
  }
  float correction(float from, float to) const {
    if (from == to) return 1;
    if (fused_) return static_cast<float>(std::exp2(static_cast<double>((from - to) * folded_)));
    return exp_of(from - to);
  }

  // Merges a split into the result of the splits before. If products are rounded, no operation is
  // fused here either.
  void merge(Partial& whole, const Partial& x) const {
    if (x.max == -inf) return;
    if (whole.max == -inf) {
      whole = x;
      return;
    }
    const float m = std::max(whole.max, x.max), a = correction(whole.max, m),
                b = correction(x.max, m);
    auto merged = [&](float before, float own) {
      const float kept = before * a, added = own * b;
      return c_.products_rounded ? kept + added : std::fma(own, b, kept);
    };
    whole.max = m;
    whole.sum = merged(whole.sum, x.sum);
    for (std::size_t c = 0; c < dv_; ++c)
      whole.accumulator[c] = merged(whole.accumulator[c], x.accumulator[c]);
  }

  // Weights that are divided first, or come from LSE, are stored in their dtype and multiplied by
  // V.
  void multiply_weights(const Partial& whole, const AttentionOutput& out) {
    const float keep_scale = 1.0f / (1.0f - p_.dropout), inverse = 1 / whole.sum,
                lse = whole.max + std::log(whole.sum);
    std::vector<Index> keys;
    std::vector<float> weights;
    for (Index j = 0; j < p_.shape.keys; ++j) {
      if (seen_.bias[usize(j)] == -std::numeric_limits<double>::infinity()) continue;
      const float e = exp_of(score(j) - (c_.weights_from_lse ? lse : whole.max));
      const float divided = c_.weights_from_lse          ? e
                            : c_.division_roundings == 2 ? e * inverse
                                                         : e / whole.sum;
      const float cast = rounded(c_.weight_dtype, divided);
      keys.push_back(j);
      weights.push_back(p_.dropout == 0                   ? cast
                        : keeps_weight(p_, b_, h_, i_, j) ? cast * keep_scale
                                                          : 0);
    }
    for (std::size_t c = 0; c < dv_; ++c) {
      std::vector<float> v;
      for (Index j : keys)
        v.push_back(static_cast<float>(
            load(p_.v, p_.v.at(b_, h_ / p_.shape.group(), j, static_cast<Index>(c)))));
      store(out.o, out.o.at(b_, h_, i_, static_cast<Index>(c)),
            keys.empty() ? 0 : dot(e_.accumulation, weights, v, 0));
    }
  }

  float score(Index j) const { return biased_score(j, capped_score(j)); }
  float capped_score(Index j) const {
    std::vector<float> k;
    for (Index d = 0; d < p_.shape.dim; ++d)
      k.push_back(static_cast<float>(load(p_.k, p_.k.at(b_, h_ / p_.shape.group(), j, d))));
    float s =
        dot(e_.accumulation == Accumulation::half ? Accumulation::fma : e_.accumulation, q_, k, 0);
    if (c_.stores_score_parts) s = rounded(c_.score_dtype, s);
    if (!fused_ && !c_.query_dtype) s *= p_.scale;
    if (c_.stores_score_parts) s = rounded(c_.score_dtype, s);
    if (p_.softcap > 0) {
      const float inverse = 1 / p_.softcap;
      s = p_.softcap * std::tanh(s * inverse);
    }
    return s;
  }
  float biased_score(Index j, float s) const {
    if (!p_.alibi_slopes.empty()) {
      const float product =
          p_.alibi_slopes[usize(h_)] * static_cast<float>(j - (i_ + p_.offset_of(b_)));
      s += product;
    }
    if (p_.bias) s += static_cast<float>(load(p_.bias, p_.bias.at(b_, h_, i_, j)));
    return rounded(c_.score_dtype, s);
  }

  Partial part(Index first_tile, Index last_tile) {
    Partial x{-inf, 0, std::vector<float>(dv_, 0)};
    const float keep_scale = 1.0f / (1.0f - p_.dropout);
    for (Index tile = first_tile; tile < last_tile; ++tile) {
      std::vector<Index> keys;
      std::vector<float> scores;
      for (Index j = tile * c_.tile; j < std::min(p_.shape.keys, (tile + 1) * c_.tile); ++j)
        if (seen_.bias[usize(j)] != -std::numeric_limits<double>::infinity()) {
          keys.push_back(j);
          scores.push_back(score(j));
        }
      if (keys.empty()) continue;
      const float m = std::max(x.max, *std::max_element(scores.begin(), scores.end()));
      const float w = x.max == -inf ? 0 : correction(x.max, m);
      x.max = m;
      const float folded_max = m * folded_;
      std::vector<float> weights;
      float tile_sum = 0;
      for (std::size_t k = 0; k < keys.size(); ++k) {
        const float e =
            fused_ ? static_cast<float>(
                         std::exp2(static_cast<double>(std::fma(scores[k], folded_, -folded_max))))
                   : exp_of(scores[k] - m);
        const float cast = rounded(c_.weight_dtype, e);
        tile_sum += c_.sum_from_rounded ? cast : e;
        weights.push_back(p_.dropout == 0                         ? cast
                          : keeps_weight(p_, b_, h_, i_, keys[k]) ? cast * keep_scale
                                                                  : 0);
      }
      x.sum = x.sum * w + tile_sum;
      for (std::size_t c = 0; c < dv_; ++c) {
        std::vector<float> v;
        for (Index j : keys)
          v.push_back(static_cast<float>(
              load(p_.v, p_.v.at(b_, h_ / p_.shape.group(), j, static_cast<Index>(c)))));
        x.accumulator[c] = dot(e_.accumulation, weights, v, x.accumulator[c] * w);
      }
    }
    return x;
  }

  const Emulation& e_;
  const Contract& c_;
  const Attention& p_;
  Index b_, h_, i_;
  std::size_t dv_;
  RowVisibility seen_;
  std::vector<float> q_;
  float folded_ = 0;
  bool fused_ = false;
};

}  // namespace

std::vector<Emulation> emulations(Dtype dtype) {
  std::vector<Emulation> all;
  auto add = [&](const char* name, Accumulation a, ExpModel exp, auto change) {
    Emulation e;
    e.accumulation = a;
    e.exp = exp;
    Contract& c = e.contract;
    c.name = name;
    c.tile = 64;
    c.ordered = true;
    c.products_rounded = a == Accumulation::rounded_products;
    if (a == Accumulation::truncating_block) {
      c.ordered = false;
      c.dot_block = 16;
      c.dot_roundoff = 0x1p-23;
    }
    if (a == Accumulation::half) {
      c.dot_roundoff = 0x1p-11;
      c.product_floor = 0x1p-25;
      c.largest = 65504;
    }
    if (flushes(a)) c.product_floor = c.operand_floor = 0x1p-126;
    if (a == Accumulation::flushing_lanes) c.ordered = false;
    if (exp == ExpModel::base_two_fused) {
      c.fused_argument = true;
      c.argument_roundings = 2;
      c.scale_error = 0x1.03p-24;
    }
    if (exp == ExpModel::noisy) {
      c.exp_ulp = 2.6;
      c.exp_ulp_per_unit = 1.18;
    }
    change(c);
    all.push_back(e);
  };
  auto plain = [](Contract&) {};
  add("fp32, fma", Accumulation::fma, ExpModel::precise, plain);
  add("fp32, fma, order not declared", Accumulation::fma, ExpModel::precise,
      [](Contract& c) { c.ordered = false; });
  add("fp32, rounded products, exp2", Accumulation::rounded_products, ExpModel::base_two_fused,
      plain);
  add("fp32, noisy exp, divided", Accumulation::fma, ExpModel::noisy,
      [](Contract& c) { c.division_roundings = 1; });
  add("fp32, four splits", Accumulation::fma, ExpModel::precise, [](Contract& c) { c.splits = 4; });
  add("fp32, splits of one tile of 16", Accumulation::fma, ExpModel::precise,
      [](Contract& c) { c.tile = c.split_keys = 16; });
  add("fp32, splits of two tiles of 16, noisy exp", Accumulation::fma, ExpModel::noisy,
      [](Contract& c) { c.tile = 16, c.split_keys = 32; });
  add("fp32, splits, rounded products, exp2", Accumulation::rounded_products,
      ExpModel::base_two_fused, [](Contract& c) { c.tile = 16, c.split_keys = 32; });
  add("fp32, splits, order not declared", Accumulation::fma, ExpModel::precise,
      [](Contract& c) { c.tile = 16, c.split_keys = 32, c.ordered = false; });
  const auto stored_softmax = [](Contract& c) { c.divides_first = true, c.ordered = false; };
  add("fp32, softmax stored", Accumulation::fma, ExpModel::precise, stored_softmax);
  add("fp32, softmax stored, noisy exp, divided", Accumulation::rounded_products, ExpModel::noisy,
      [](Contract& c) { c.divides_first = true, c.ordered = false, c.division_roundings = 1; });
  add("fp32, weights from LSE", Accumulation::fma, ExpModel::precise, [](Contract& c) {
    c.divides_first = c.weights_from_lse = true;
    c.ordered = false;
    c.division_roundings = 0;
  });
  add("softmax stored, order declared", Accumulation::fma, ExpModel::precise,
      [](Contract& c) { c.divides_first = true, c.tile = 1024; });
  add("softmax stored, truncating blocks of 16", Accumulation::truncating_block, ExpModel::precise,
      stored_softmax);
  add("truncating blocks of 16", Accumulation::truncating_block, ExpModel::precise, plain);
  add("truncating blocks of 16, splits", Accumulation::truncating_block, ExpModel::precise,
      [](Contract& c) { c.tile = 16, c.split_keys = 48; });
  add("fp32, sums that flush", Accumulation::flushing_fma, ExpModel::precise, plain);
  if (dtype == Dtype::bf16)
    add("sums that flush in two lanes, weights in bf16", Accumulation::flushing_lanes,
        ExpModel::precise, [=](Contract& c) { c.weight_dtype = dtype, c.backward_tile = 32; });
  if (dtype != Dtype::f32) {
    add("sums that flush, weights in the dtype, splits", Accumulation::flushing_fma,
        ExpModel::precise,
        [=](Contract& c) { c.weight_dtype = dtype, c.tile = 16, c.split_keys = 32; });
    add("weights in the dtype, splits", Accumulation::fma, ExpModel::base_two_fused,
        [=](Contract& c) { c.weight_dtype = dtype, c.tile = 16, c.split_keys = 32; });
    add("weights in the dtype", Accumulation::fma, ExpModel::base_two_fused,
        [=](Contract& c) { c.weight_dtype = dtype; });
    add("weights in the dtype, summed rounded", Accumulation::fma, ExpModel::precise,
        [=](Contract& c) { c.weight_dtype = dtype, c.sum_from_rounded = true; });
    add("weights in the dtype, truncating blocks", Accumulation::truncating_block,
        ExpModel::precise, [=](Contract& c) { c.weight_dtype = dtype; });
    // What flash attention computes with the tensor cores of a GPU.
    add("flash attention on tensor cores", Accumulation::truncating_block, ExpModel::base_two_fused,
        [=](Contract& c) { c.weight_dtype = dtype, c.tile = 128; });
    add("scores stored in the dtype", Accumulation::fma, ExpModel::precise,
        [=](Contract& c) { c.weight_dtype = dtype, c.score_dtype = dtype; });
    add("scores stored in the dtype, and before the scale", Accumulation::fma, ExpModel::precise,
        [=](Contract& c) {
          c.weight_dtype = c.score_dtype = dtype;
          c.stores_score_parts = true;
        });
    add("weights in the dtype, dS from them and scaled", Accumulation::fma, ExpModel::precise,
        [=](Contract& c) { c.weight_dtype = dtype, c.score_gradients_late = true; });
    add("dP stored in the dtype", Accumulation::fma, ExpModel::precise, [=](Contract& c) {
      c.weight_dtype = c.dp_dtype = dtype;
      c.score_gradients_late = true;
    });
    add("softmax stored in the dtype", Accumulation::fma, ExpModel::precise,
        [=](Contract& c) { c.divides_first = true, c.ordered = false, c.weight_dtype = dtype; });
    add("weights in e4m3", Accumulation::fma, ExpModel::precise,
        [](Contract& c) { c.weight_dtype = Dtype::f8e4m3; });
    add("fp16 accumulator", Accumulation::half, ExpModel::precise,
        [](Contract& c) { c.ordered = false; });
    add("scaled query in the dtype", Accumulation::fma, ExpModel::precise,
        [=](Contract& c) { c.query_dtype = dtype; });
  }
  return all;
}

void run_emulated(const Emulation& e, const Attention& p, const AttentionOutput& out) {
  for (Index b = 0; b < p.shape.batch; ++b)
    for (Index h = 0; h < p.shape.query_heads; ++h)
      for (Index i = 0; i < p.shape.rows; ++i) Row(e, p, b, h, i).run(out);
}

namespace {

// The sum of a tile starts from zero and is then added to the sum of those before.
float blocked_dot(const Emulation& e, const std::vector<float>& a, const std::vector<float>& b,
                  std::size_t tile) {
  if (tile == 0) return dot(e.accumulation, a, b, 0);
  float sum = 0;
  for (std::size_t k = 0; k < a.size(); k += tile) {
    const auto begin = static_cast<std::ptrdiff_t>(k),
               end = static_cast<std::ptrdiff_t>(std::min(a.size(), k + tile));
    sum += dot(e.accumulation, {a.begin() + begin, a.begin() + end},
               {b.begin() + begin, b.begin() + end}, 0);
  }
  return sum;
}

struct GradientTerms {
  std::vector<Index> who;  // keys of a row, or (head, row) of a key
  std::vector<float> weight, gradient;
};

}  // namespace

void run_emulated_backward(const Emulation& e, const Attention& p, const AttentionBackwardInput& in,
                           const AttentionGradients& out) {
  const AttentionShape& s = p.shape;
  const Contract& c = e.contract;
  const float keep_scale = 1.0f / (1.0f - p.dropout),
              late_scale = c.score_gradients_late ? 1 : p.scale;
  // A half accumulator is used for the sums over keys and rows, as in the forward pass.
  const Accumulation inner =
      e.accumulation == Accumulation::half ? Accumulation::fma : e.accumulation;
  auto row_of = [](const TensorView& t, Index b, Index h, Index i) {
    std::vector<float> row;
    for (Index d = 0; d < t.shape[3]; ++d)
      row.push_back(static_cast<float>(load(t, t.at(b, h, i, d))));
    return row;
  };
  if (out.d_bias)
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.query_heads; ++h)
        for (Index i = 0; i < s.rows; ++i)
          for (Index j = 0; j < s.keys; ++j) store(out.d_bias, out.d_bias.at(b, h, i, j), 0);
  for (Index h = 0; out.d_sink && h < s.query_heads; ++h)
    store(out.d_sink, out.d_sink.at(0, h, 0, 0), 0);
  for (Index b = 0; b < s.batch; ++b)
    for (Index g = 0; g < s.kv_heads; ++g) {
      std::vector<GradientTerms> of_key(usize(s.keys));
      std::vector<std::vector<float>> q_rows, d_o_rows;
      for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h)
        for (Index i = 0; i < s.rows; ++i) {
          const std::vector<float> o = row_of(in.o, b, h, i), d_o = row_of(in.d_o, b, h, i);
          const auto lse = static_cast<float>(load(in.lse, in.lse.at(b, h, i, 0)));
          const float d_lse =
              in.d_lse ? static_cast<float>(load(in.d_lse, in.d_lse.at(b, h, i, 0))) : 0;
          const float delta = dot(Accumulation::fma, d_o, o, 0) - d_lse;
          GradientTerms row;
          const std::vector<Row::Pair> pairs = Row(e, p, b, h, i).backward(lse);
          // R dP of a pair.
          const auto dp_of = [&](const Row::Pair& x) {
            const float dp = dot(inner, d_o, row_of(p.v, b, g, x.key), 0);
            if (p.dropout == 0) return rounded(c.dp_dtype, dp);
            return rounded(c.dp_dtype, keeps_weight(p, b, h, i, x.key) ? dp * keep_scale : dp * 0);
          };
          float subtracted = delta;
          if (c.dp_dtype) {
            subtracted = -d_lse;
            for (const Row::Pair& x : pairs)
              subtracted += rounded(c.weight_dtype, x.weight) * dp_of(x);
          }
          for (const Row::Pair& x : pairs) {
            const bool kept = p.dropout == 0 || keeps_weight(p, b, h, i, x.key);
            const float mine = p.dropout == 0 ? 1 : kept ? keep_scale : 0;
            const float weight =
                rounded(c.weight_dtype, p.dropout == 0 ? x.weight : x.weight * mine);
            const float ds =
                rounded(c.dp_dtype,
                        (c.score_gradients_late ? rounded(c.weight_dtype, x.weight) : x.weight) *
                            (dp_of(x) - subtracted));
            if (out.d_bias) {
              const Index at = out.d_bias.at(b, h, i, x.key);
              store(out.d_bias, at, static_cast<float>(load(out.d_bias, at)) + ds);
            }
            const float exact = p.softcap > 0 ? ds * x.factor : ds,
                        gradient = rounded(c.weight_dtype,
                                           c.score_gradients_late ? exact * p.scale : exact);
            row.who.push_back(x.key);
            row.gradient.push_back(gradient);
            GradientTerms& key = of_key[usize(x.key)];
            key.who.push_back(static_cast<Index>(q_rows.size()));
            key.weight.push_back(weight);
            key.gradient.push_back(gradient);
          }
          if (out.d_sink && !p.sink.empty() && lse > -inf) {
            const float z = p.sink[usize(h)],
                        weight = static_cast<float>(std::exp(static_cast<double>(z - lse)));
            const Index at = out.d_sink.at(0, h, 0, 0);
            store(out.d_sink, at, static_cast<float>(load(out.d_sink, at)) - weight * subtracted);
          }
          q_rows.push_back(row_of(p.q, b, h, i));
          d_o_rows.push_back(d_o);
          for (std::size_t d = 0; d < usize(s.dim); ++d) {
            std::vector<float> k;
            for (Index j : row.who)
              k.push_back(static_cast<float>(load(p.k, p.k.at(b, g, j, static_cast<Index>(d)))));
            store(out.dq, out.dq.at(b, h, i, static_cast<Index>(d)),
                  blocked_dot(e, row.gradient, k, usize(c.backward_tile)) * late_scale);
          }
        }
      for (Index j = 0; j < s.keys; ++j) {
        const GradientTerms& key = of_key[usize(j)];
        auto sum = [&](const std::vector<float>& terms, const std::vector<std::vector<float>>& rows,
                       std::size_t d) {
          std::vector<float> other;
          for (Index who : key.who) other.push_back(rows[usize(who)][d]);
          return blocked_dot(e, terms, other, usize(c.backward_row_tile));
        };
        for (Index d = 0; d < s.dim; ++d)
          store(out.dk, out.dk.at(b, g, j, d), sum(key.gradient, q_rows, usize(d)) * late_scale);
        for (Index d = 0; d < s.value_dim; ++d)
          store(out.dv, out.dv.at(b, g, j, d), sum(key.weight, d_o_rows, usize(d)));
      }
    }
}

}  // namespace assay
