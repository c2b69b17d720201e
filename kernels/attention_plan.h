// What the dispatcher has decided before any SIMD code runs; shared by all targets.
#pragma once

#include "kernels/attention.h"

namespace assay::kernels {

// K and V of `groups` consecutive (batch, kv head) pairs, packed in fp32.
struct PackedKeyValues {
  float* keys = nullptr;                       // [group][tile][panel of keys][D][panel width]
  float* values = nullptr;                     // [group][tile][panel of columns][tile keys][panel width]
  unsigned char* values_not_finite = nullptr;  // [group][tile]
};

struct ForwardPlan {
  const Attention* problem = nullptr;
  AttentionOutput out;
  ForwardTiling tiling{};
  int threads = 0;
  PackedKeyValues packed;
  Index first_group = 0, groups = 0;  // (batch, kv head) pairs of this wave
  Index tiles = 0;                    // key tiles
  Index padded_value_dim = 0;
};

// Widest panel of any target, in floats: two AVX-512 vectors. Tile widths are multiples of it.
inline constexpr Index panel_alignment = 32;

// Validates, plans, and calls run(plan) once per wave of groups.
using RunWave = void (*)(const ForwardPlan& plan, const void* stages);
Status plan_and_run(const Attention& problem, const AttentionOutput& out, int threads, RunWave run, const void* stages);

}  // namespace assay::kernels
