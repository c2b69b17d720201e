// How wide a panel of packed columns can be, which memory and tiles are laid out for before any
// SIMD code runs.
#pragma once

#include "problem/tensor.h"

namespace assay::kernels {

// Widest panel of any target, in floats: two AVX-512 vectors. Tile widths are multiples of it.
inline constexpr Index panel_alignment = 32;

}  // namespace assay::kernels
