// Attention forward in pairs of bf16 (kernels/simd/bf16_pairs.h), as attention_forward computes it
// where it can.
#pragma once

#include "kernels/attention/attention.h"

namespace assay::kernels {

// Whether a call is computed in pairs: the target has VDPBF16PS, Q is bf16, and so are K and V
// where they are stored. Then P is rounded to bf16 before P V, and both products treat subnormal
// numbers as 0 (docs/bounds.md, 14). All else is as attention.h says.
bool computes_in_pairs(const Target& target, Dtype q, Dtype stored_k, Dtype stored_v);

// How such a call is tiled.
ForwardTiling forward_tiling_of_pairs(Index dim, Index value_dim);

}  // namespace assay::kernels
