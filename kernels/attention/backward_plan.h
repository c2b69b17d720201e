// The plan of a backward pass, which is made before any SIMD code runs and is shared by all
// targets.
#pragma once

#include "kernels/attention/attention.h"

namespace assay::kernels {

struct BackwardPlan {
  const Attention* problem = nullptr;
  AttentionBackwardInput in;
  AttentionGradients out;
  BackwardTiling tiling{};
  int threads = 0;
  Index padded_dim = 0, padded_value_dim = 0;
  Index row_tiles = 0, splits = 0;
  float* delta = nullptr;  // sum_c dO O, less dLSE: [B][Hq][Lq]

  // A wave is `wave_groups` (batch, kv head) pairs with all their splits, or one pair with
  // `wave_splits` of its splits.
  Index wave_groups = 0, wave_splits = 0;
  // dQ of each split; null if there is only one split. A tile is [panel of columns]
  // [tile rows][panel width].
  float* partials =
      nullptr;  // [pair of the wave][split of the wave][query head of the pair][row tile][tile]
  // in the same order, one flag for each tile; a tile whose flag is not set is zero
  unsigned char* written = nullptr;
  // the sums of the waves so far, where splits take turns: [query head of the pair][row tile][tile]
  float* totals = nullptr;

  Index tile_floats() const { return tiling.rows * padded_dim; }
};

// Validates the problem, makes the plan, and calls run(plan, stages) once.
using RunBackward = void (*)(const BackwardPlan& plan, const void* stages);
Status plan_and_run_backward(const Attention& problem, const AttentionBackwardInput& in,
                             const AttentionGradients& out, int threads, RunBackward run,
                             const void* stages);

// The kernels that multiply pairs; null if this program holds none.
RunBackward backward_of_pairs();
RunBackward backward_of_amx();

}  // namespace assay::kernels
