// Attention on the host, forward and backward: tiled, fp32 accumulation.
#pragma once

#include <string>

#include "kernels/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// Computes O and LSE as docs/semantics.md defines them.
// - Q, K, V and the bias are f32, f16 or bf16 (one dtype for Q, K and V), with any strides; the bias may
//   have any of the three. O is f32, f16 or bf16, LSE f32 or absent. Outputs may not overlap anything.
// - The result is bitwise the same for any number of threads.
// - A row's bits are the same in any batch, chunk and position; few rows (decode) are spread over the splits of their keys.
// - With many rows, needs a workspace of the size of K and V in fp32; where that exceeds 512 MiB, heads take turns.
Status attention_forward(const Attention& problem, const AttentionOutput& out, const Execution& how = {});

// Gradients of <dO, O>, as docs/semantics.md defines them, from O and LSE as attention_forward stored them.
// - Dtypes as in the forward pass; dQ, dK and dV may be f32, f16 or bf16 each. All sums are fp32.
// - Every output element is written, exact zeros where no gradient passes. The result is bitwise the same for any
//   number of threads.
// - dBias may be asked for without a bias; dSink only with a sink. Gradients may not overlap anything.
// - Needs a workspace of dQ in fp32 for each split of the keys; where that exceeds 256 MiB, heads and splits take turns.
Status attention_backward(const Attention& problem, const AttentionBackwardInput& in, const AttentionGradients& out, const Execution& how = {});

// How the kernel tiles a problem. Key tiles and splits are anchored at key 0 and depend on D and Dv alone, so that a
// row's result does not depend on what else is in the call, nor on how the work is shared out.
struct ForwardTiling {
  Index rows;
  Index keys;        // of a tile
  Index split_keys;  // of a split, which is whole tiles
};
ForwardTiling forward_tiling(Index dim, Index value_dim);

// The same for the backward pass. dK and dV sum over the rows of a tile, dQ over its keys, each tile from zero; then tiles are
// added in order (for dK and dV: query heads of the group, then rows), and splits of keys, for dQ, after that. Row tiles are
// anchored at row 0.
struct BackwardTiling {
  Index rows;
  Index keys;
  Index split_keys;  // a multiple of `keys`
};
BackwardTiling backward_tiling(Index dim, Index value_dim);

// Name of the SIMD target that the code of attention_forward was compiled for which a call on this target runs.
std::string attention_forward_target(const Target& target);

}  // namespace assay::kernels
