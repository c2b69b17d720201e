// What the dispatcher of the backward pass has decided before any SIMD code runs; shared by all targets.
#pragma once

#include "kernels/attention.h"

namespace assay::kernels {

struct BackwardPlan {
  const Attention* problem = nullptr;
  AttentionBackwardInput in;
  AttentionGradients out;
  BackwardTiling tiling{};
  int threads = 0;
  Index padded_dim = 0, padded_value_dim = 0;
  Index row_tiles = 0, splits = 0;
  float* delta = nullptr;  // sum_c dO O: [B][Hq][Lq]

  // A wave is `wave_groups` (batch, kv head) pairs with all their splits, or one pair with `wave_splits` of them.
  Index wave_groups = 0, wave_splits = 0;
  // dQ of each split; absent where there is one split. A tile is [panel of columns][tile rows][panel width].
  float* partials = nullptr;         // [pair of the wave][split of the wave][query head of the pair][row tile][tile]
  unsigned char* written = nullptr;  // the same, one flag a tile: the others are zero
  float* totals = nullptr;           // of the waves so far: [query head of the pair][row tile][tile]; where splits take turns

  Index tile_floats() const { return tiling.rows * padded_dim; }
};

// Validates, plans, and calls run(plan, stages) once.
using RunBackward = void (*)(const BackwardPlan& plan, const void* stages);
Status plan_and_run_backward(const Attention& problem, const AttentionBackwardInput& in, const AttentionGradients& out, int threads, RunBackward run,
                             const void* stages);

}  // namespace assay::kernels
