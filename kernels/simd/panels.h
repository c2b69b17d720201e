// The largest width of a panel of packed columns. Memory and tiles are planned for it before any
// SIMD code runs.
#pragma once

#include "problem/tensor.h"

namespace assay::kernels {

// The widest panel of any target, in floats: two AVX-512 vectors. Tile widths are multiples of it.
inline constexpr Index panel_alignment = 32;

}  // namespace assay::kernels
