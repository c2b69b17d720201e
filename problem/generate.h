// Inputs of a case, made from its seed.
//
// Element (tensor, position) of a seed is a function of those alone: Philox4x32-10 (Random123) with
// the position as its counter, then integer arithmetic, additions and products of doubles, and one
// rounding to the dtype. No math library, so the same bits come out on any machine, thread count
// and build; and a case with smaller extents keeps the elements it still has, which is what makes
// shrinking work.
#pragma once

#include "problem/case.h"

namespace assay {

// Owns the inputs; `problem` views them, so the object does not move once made.
struct Inputs {
  explicit Inputs(const Case& c, Surroundings around = Surroundings::bands);
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  const Surroundings around;  // of every tensor
  Tensor q, k, v, bias;
  Tensor d_o;  // backward only
  // A cache's tokens as they are appended: K and V (latent: c [B, 1, Lk, rank] and the rotary part
  // [B, 1, Lk, rotary]), with the up-projections of a latent cache. problem.k and problem.v then
  // hold, in f64, what the cache means after its rounding.
  Tensor token_k, token_v, up_k, up_v, k_absolute, v_absolute;
  std::vector<std::uint8_t> keep;
  ProjectedAttention problem;
};

// Inputs of a product; does not move once made, as above.
struct ProductInputs {
  explicit ProductInputs(const Case& c, Surroundings around = Surroundings::bands);
  ProductInputs(const ProductInputs&) = delete;
  ProductInputs& operator=(const ProductInputs&) = delete;

  const Surroundings around;  // of every tensor
  Tensor a;
  LowBitMatrix a_low, w;
  Product problem;
};

// What quantized weights were quantized from: f32.
double original_weight(const Case& c, Index k, Index n);

// Storage of a tensor of this shape laid out so; `heads_in_pack` is the width of a packed QKV in
// heads.
Layout make_layout(LayoutKind kind, const Extents& shape, Index heads_in_pack);

}  // namespace assay
