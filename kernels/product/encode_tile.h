// Inside kernels/product/: the extremes and the codes of a tile of weights, compiled for every SIMD
// target.
#pragma once

#include <cstdint>

#include "kernels/simd/targets.h"
#include "problem/low_bit.h"

namespace assay::kernels {

// Rows of 64 weights, which belong to 64 columns of W. Each weight is divided by the number of its
// column in binary64 and rounded once, ties to even. A code takes a byte.
struct WeightTile {
  static constexpr Index columns = 64;
  const float* x;         // [rows][columns]
  const double* divisor;  // [columns]
  const double* zero;     // [columns], for integers: is added to the rounded quotient
  std::uint8_t* codes;    // [rows][columns]
  Index rows;
};

using EncodeTile = void (*)(const WeightTile& tile);
EncodeTile encode_tile(LowBit format, const Target& target);

// The smallest and the largest number of each of 64 columns, and 0. Returns whether every number is
// finite.
using TileExtremes = bool (*)(const float* x, Index rows, float* low, float* high);
TileExtremes tile_extremes(const Target& target);

}  // namespace assay::kernels
