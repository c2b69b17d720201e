// Tiled attention on the host, forward and backward, with fp32 accumulation. Where the target
// multiplies pairs of bf16, P and dS of bf16 inputs are rounded to bf16, and subnormal numbers are
// read as 0 (attention_pairs.h).
#pragma once

#include <string>

#include "kernels/simd/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// Computes O and LSE as docs/semantics.md defines them.
// - Q, K, V and the bias are f32, f16 or bf16, with any strides. Q, K and V have one dtype; the
//   bias may have any of the three. O is f32, f16 or bf16; LSE is f32 or absent. An output must not
//   overlap any other tensor.
// - The result is bitwise the same for any number of threads.
// - The bits of a row are the same in any batch, chunk and position. If there are few rows
//   (decode), the splits of their keys are shared among the threads.
// - If there are many rows, the kernel needs a workspace of the size of K and V in fp32. Where that
//   exceeds 512 MiB, heads take turns.
Status attention_forward(const Attention& problem, const AttentionOutput& out,
                         const Execution& how = {});

// Computes the gradients of <dO, O>, as docs/semantics.md defines them, from O and LSE as
// attention_forward stored them.
// - Dtypes are as in the forward pass; dQ, dK and dV may each be f32, f16 or bf16. All sums are
//   fp32.
// - Every output element is written, with exact zeros where no gradient passes. The result is
//   bitwise the same for any number of threads.
// - dBias may be asked for without a bias, but dSink only with a sink. A gradient must not overlap
//   any other tensor.
// - The kernel needs a workspace of dQ in fp32 for each split of the keys. Where that exceeds 256
//   MiB, heads and splits take turns.
Status attention_backward(const Attention& problem, const AttentionBackwardInput& in,
                          const AttentionGradients& out, const Execution& how = {});

// How the kernel tiles a problem. Key tiles and splits begin at key 0 and depend on D and Dv alone.
// So the result of a row depends neither on what else is in the call, nor on how the work is shared
// among threads.
struct ForwardTiling {
  Index rows;
  Index keys;        // of a tile
  Index split_keys;  // of a split, which consists of whole tiles
};
ForwardTiling forward_tiling(Index dim, Index value_dim);

// The same for the backward pass. dK and dV are sums over the rows of a tile, and dQ is a sum over
// its keys; each of these sums begins at zero. The sums of tiles are then added in order (for dK
// and dV: by query heads of the group, then by rows), and after that, for dQ, the splits of the
// keys. Row tiles begin at row 0.
struct BackwardTiling {
  Index rows;
  Index keys;
  Index split_keys;  // a multiple of `keys`
};
BackwardTiling backward_tiling(Index dim, Index value_dim);

// Returns the name of the SIMD target whose code attention_forward runs when it is called with this
// target.
std::string attention_forward_target(const Target& target);

}  // namespace assay::kernels
