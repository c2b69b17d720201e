// The inputs of a case, made from its seed.
//
// An element is a function of the seed, the tensor and its position alone. It is drawn by
// Philox4x32-10 (Random123) with the position as the counter. Then come integer arithmetic,
// additions and products of doubles, and one rounding to the dtype. No math library is called, so
// the bits are the same on any machine and in any build, for any number of threads. A case with
// smaller extents keeps the elements that it still has; shrinking depends on this.
#pragma once

#include <cstdint>

#include "problem/case.h"

namespace assay {

// Owns the inputs. `problem` holds views of them, so the object must not move once it is made.
struct Inputs {
  explicit Inputs(const Case& c, Surroundings around = Surroundings::bands);
  // The same inputs again, for a step that changes some of them: generating takes several times as
  // long as copying.
  explicit Inputs(const Inputs& other);
  Inputs& operator=(const Inputs&) = delete;

  const Surroundings around;  // around every tensor
  Tensor q, k, v, bias;
  Tensor d_o, d_lse;  // backward only; dLSE only where the case has it
  // Only for a cache: the tokens as they are appended. They are K and V or, for a latent cache, c
  // [B, 1, Lk, rank], the rotary part [B, 1, Lk, rotary] and the up-projections. problem.k and
  // problem.v then hold, in f64, what the cache means after its rounding.
  Tensor token_k, token_v, up_k, up_v, k_absolute, v_absolute;
  // The scales of the tokens of a cache with 8- or 4-bit floats: f64 [B, H, Lk, groups].
  Tensor k_scales, v_scales;
  std::vector<std::uint8_t> keep;
  ProjectedAttention problem;
};

// The problem of a case without its elements: views have extents, strides and dtypes, and a pointer
// that nobody may follow. K and V of a cache have the dtype of Q.
Attention described(const Case& c);

// The inputs of a product. This object must not move either.
struct ProductInputs {
  explicit ProductInputs(const Case& c, Surroundings around = Surroundings::bands);
  explicit ProductInputs(const ProductInputs& other);
  ProductInputs& operator=(const ProductInputs&) = delete;

  const Surroundings around;  // around every tensor
  Tensor a;
  LowBitMatrix a_low, w;
  Product problem;
};

// The f32 number from which a quantized weight was quantized.
double original_weight(const Case& c, Index k, Index n);

// The layout of this kind for a tensor of this shape. `heads_in_pack` is the width of a packed QKV
// in heads.
Layout make_layout(LayoutKind kind, const Extents& shape, Index heads_in_pack);

}  // namespace assay
