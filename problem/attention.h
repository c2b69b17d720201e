// The attention problem as data, which is given to kernels and to the oracle alike. Meaning:
// docs/semantics.md.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <tuple>
#include <vector>

#include "problem/tensor.h"

namespace assay {

struct AttentionShape {
  Index batch = 1;
  Index query_heads = 1;
  Index kv_heads = 1;  // divides query_heads; query head h reads head h / (query_heads / kv_heads)
  Index rows = 64;     // query positions
  Index keys = 64;
  Index dim = 64;        // of Q and K
  Index value_dim = 64;  // of V and O

  Index group() const { return query_heads / kv_heads; }
  // Of the tensors: Q, K, V, O, LSE and what has an element for each pair of a row and a key.
  Extents q_extents() const { return {batch, query_heads, rows, dim}; }
  Extents k_extents() const { return {batch, kv_heads, keys, dim}; }
  Extents v_extents() const { return {batch, kv_heads, keys, value_dim}; }
  Extents o_extents() const { return {batch, query_heads, rows, value_dim}; }
  Extents lse_extents() const { return {batch, query_heads, rows, 1}; }
  Extents pair_extents() const { return {batch, query_heads, rows, keys}; }
  bool operator==(const AttentionShape&) const = default;
};

inline constexpr Index max_head_dim = 1024;
// The largest batch, number of heads, rows or keys, and offset. Windows wider than a few times this
// hide no key.
inline constexpr Index largest_extent = Index{1} << 40;

// A boolean mask [B, Hq, Lq, Lk]: non-zero keeps a pair, zero masks it. Strides count elements; a
// stride of 0 broadcasts.
struct BoolView {
  const std::uint8_t* data = nullptr;
  Extents stride{};
  bool at(Index b, Index h, Index i, Index j) const {
    return data[b * stride[0] + h * stride[1] + i * stride[2] + j * stride[3]] != 0;
  }
  explicit operator bool() const { return data != nullptr; }
};

// Q [B, Hq, Lq, D], K [B, Hkv, Lk, D], V [B, Hkv, Lk, Dv]. All masks can be combined.
struct Attention {
  AttentionShape shape;
  TensorView q, k, v;
  float scale = 1;
  float softcap = 0;  // 0: none
  bool causal = false;
  std::vector<Index> offset;  // per batch; empty means 0; used by causal, window and ALiBi
  Index window_left = -1, window_right = -1;  // -1: open
  BoolView keep;
  TensorView bias;                // [B, Hq, Lq, Lk], strides may be 0
  bool finite_min_masks = false;  // the bias dtype's most negative finite number means -inf
  std::vector<Index> key_lengths, key_starts;            // per batch; empty: all keys
  std::vector<float> alibi_slopes;                       // per query head; empty: none
  std::vector<std::int32_t> query_segment, key_segment;  // [B * Lq], [B * Lk]; empty: none
  std::vector<float> sink;                               // logit per query head; empty: none
  float dropout = 0;                                     // probability of dropping a weight
  std::uint64_t dropout_seed = 0;

  Index offset_of(Index b) const { return offset.empty() ? 0 : offset[usize(b)]; }
};

// Describes K and V that a kernel computes itself from a latent cache: their elements are sums of
// products. Kernels do not see this; the oracle uses it to bound the errors of these elements.
struct Projection {
  // The sums of the products' absolute values, in f64 and in the shapes of K and V.
  TensorView k_absolute, v_absolute;
  Index length = 0;  // number of products in a sum; 0: K and V are given
  // The number of columns of K, from the first, that are computed. The rotary part behind them is
  // stored.
  Index columns = 0;

  explicit operator bool() const { return length > 0; }
};

// A problem as the oracle gets it.
struct ProjectedAttention : Attention {
  ProjectedAttention() = default;
  // A problem whose K and V are given.
  ProjectedAttention(const Attention& given)  // NOLINT(google-explicit-constructor)
      : Attention(given) {}

  Projection projection;
};

// What each entry of a list belongs to. Rows and keys are those of all batches.
enum class Along : std::uint8_t { batches, query_heads, rows, keys };

// A list of a problem: it is empty, or has one entry for each batch, query head, row or key.
template <class T>
struct ListField {
  std::string_view name;      // name of the field in Attention
  std::string_view recorded;  // name in case lines and in records
  std::vector<T> Attention::* list;
  Along along;
};
inline constexpr std::tuple attention_lists{
    ListField<Index>{"offset", "offset", &Attention::offset, Along::batches},
    ListField<Index>{"key_lengths", "lengths", &Attention::key_lengths, Along::batches},
    ListField<Index>{"key_starts", "starts", &Attention::key_starts, Along::batches},
    ListField<float>{"alibi_slopes", "alibi_slopes", &Attention::alibi_slopes, Along::query_heads},
    ListField<float>{"sink", "sink", &Attention::sink, Along::query_heads},
    ListField<std::int32_t>{"query_segment", "query_segment", &Attention::query_segment,
                            Along::rows},
    ListField<std::int32_t>{"key_segment", "key_segment", &Attention::key_segment, Along::keys},
};
// Calls visit(field) for every list.
template <class Visit>
constexpr void for_each_list(const Visit& visit) {
  std::apply([&](const auto&... field) { (visit(field), ...); }, attention_lists);
}

// A number of a problem.
template <class T>
struct NumberField {
  std::string_view name;  // name of the field in Attention
  T Attention::* number;
};
inline constexpr std::tuple attention_numbers{
    NumberField<float>{"scale", &Attention::scale},
    NumberField<float>{"softcap", &Attention::softcap},
    NumberField<float>{"dropout", &Attention::dropout},
    NumberField<std::uint64_t>{"dropout_seed", &Attention::dropout_seed},
    NumberField<Index>{"window_left", &Attention::window_left},
    NumberField<Index>{"window_right", &Attention::window_right},
};

// A flag of a problem.
struct FlagField {
  std::string_view name;      // name of the field in Attention
  std::string_view recorded;  // name in case lines and in records
  bool Attention::* flag;
};
inline constexpr std::array attention_flags{
    FlagField{"causal", "causal", &Attention::causal},
    FlagField{"finite_min_masks", "finite-min-masks", &Attention::finite_min_masks},
};

// A tensor of a problem. The bias may be absent, and may broadcast.
struct TensorField {
  std::string_view name;  // name of the field in Attention, and in records
  TensorView Attention::* tensor;
  Extents (AttentionShape::*extents)() const;
};
inline constexpr std::array attention_tensors{
    TensorField{"q", &Attention::q, &AttentionShape::q_extents},
    TensorField{"k", &Attention::k, &AttentionShape::k_extents},
    TensorField{"v", &Attention::v, &AttentionShape::v_extents},
    TensorField{"bias", &Attention::bias, &AttentionShape::pair_extents},
};
// The only field that stands in none of these tables, besides the shape, is `keep`.

// Calls visit(field) for every number.
template <class Visit>
constexpr void for_each_number(const Visit& visit) {
  std::apply([&](const auto&... field) { (visit(field), ...); }, attention_numbers);
}

// A list has outer * inner entries.
struct ListExtent {
  Index outer, inner;
};
constexpr ListExtent extent_of(Along along, const AttentionShape& s) {
  switch (along) {
    case Along::batches: return {s.batch, 1};
    case Along::query_heads: return {s.query_heads, 1};
    case Along::rows: return {s.batch, s.rows};
    default: return {s.batch, s.keys};
  }
}

// O [B, Hq, Lq, Dv] and LSE [B, Hq, Lq, 1], f32.
struct AttentionOutput {
  TensorView o, lse;
};

// What the backward pass reads besides the problem: dO, and O and LSE as the forward pass stored
// them. Shapes are as in AttentionOutput; LSE is f32, dO has the dtype of Q.
struct AttentionBackwardInput {
  TensorView o, lse, d_o;
  TensorView d_lse{};  // the gradient of LSE, f32; absent where the loss does not depend on LSE
};

// dQ, dK and dV have the shapes of Q, K and V. dBias is f32 [B, Hq, Lq, Lk], with strides of 0
// where the bias broadcasts; elements there hold sums. dSink is f32 [1, Hq, 1, 1]. dBias and dSink
// may be absent.
struct AttentionGradients {
  TensorView dq, dk, dv, d_bias, d_sink;
};

// 1/sqrt(D), rounded to binary32.
float default_scale(Index dim);

// The published ALiBi slopes, rounded once to binary32. For n heads they are 2^(-8k/n) if n is a
// power of two. Otherwise they are those of the power of two below, followed by every other slope
// of the power of two above.
std::vector<float> default_alibi_slopes(Index heads);

}  // namespace assay
