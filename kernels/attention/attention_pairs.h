// Attention in pairs of bf16 (kernels/simd/bf16_pairs.h), as attention_forward and
// attention_backward compute it where they can.
#pragma once

#include "kernels/attention/attention.h"

namespace assay::kernels {

// Whether a call is computed in pairs: the target has VDPBF16PS, Q is bf16, and so are K and V
// where they are stored. Then P is rounded to bf16 before P V, and both products treat subnormal
// numbers as 0 (docs/bounds.md, 14). All else is as attention.h says. If the target has AMX, sums
// have the order of kernels/simd/amx.h.
bool computes_in_pairs(const Target& target, Dtype q, Dtype stored_k, Dtype stored_v);

// How such a call is tiled.
ForwardTiling forward_tiling_of_pairs(Index dim, Index value_dim);

// Whether gradients are computed in pairs: Q, K, V and dO are bf16. Then P and dS are rounded to
// bf16 before they are multiplied, and all five products treat subnormal numbers as 0
// (docs/bounds_backward.md, 3). The tiles are those of backward_tiling, except that sums have the
// order of kernels/simd/amx.h if the target has AMX.
bool computes_gradients_in_pairs(const Target& target, const Attention& problem, Dtype d_o);

}  // namespace assay::kernels
