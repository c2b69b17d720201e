// Whether strided views share memory, decided exactly: interleaved slices of one buffer do not, though their ranges cross.
#pragma once

#include <optional>

#include "problem/tensor.h"

namespace assay::kernels {

// The elements (b, h, i, d) below `shape`; strides and origin count elements of `bits` bits.
struct Footprint {
  const void* data = nullptr;
  int bits = 0;
  Extents shape{}, stride{};
  Index origin = 0;
};
Footprint footprint_of(const TensorView& t, const Extents& shape);

// Bits of the address space [begin, end) from the first to the last that a view has; begin = end where it has none.
struct Reach {
  std::int64_t begin = 0, end = 0;
};
// Nothing if it lies 2^57 bytes or more away from `data`, which no address space holds.
std::optional<Reach> reach_of(const Footprint& f);

// The question is a bounded linear Diophantine equation, solved by search. Layouts that people use take a few steps;
// where 100,000 do not decide, the answer is `undecided`, and who needs to know must refuse.
enum class Overlap { none, some, undecided };
// Of views that have a reach. Whether two elements of a view share a place.
Overlap overlap_with_itself(const Footprint& f);
// Whether two views share a bit. An empty view shares nothing.
Overlap overlap(const Footprint& a, const Footprint& b);

}  // namespace assay::kernels
