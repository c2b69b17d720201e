// Decides exactly whether strided views share memory. Interleaved slices of one buffer do not share
// memory, although their ranges cross.
#pragma once

#include <cstdint>
#include <optional>

#include "problem/tensor.h"

namespace assay::kernels {

// The elements (b, h, i, d) below `shape`. Strides and origin count elements of `bits` bits.
struct Footprint {
  const void* data = nullptr;
  int bits = 0;
  Extents shape{}, stride{};
  Index origin = 0;
};
Footprint footprint_of(const TensorView& t, const Extents& shape);

// The bits [begin, end) of the address space, from the first to the last bit of a view; begin = end
// if the view is empty.
struct Reach {
  std::int64_t begin = 0, end = 0;
};
// Returns nothing if the view reaches 2^57 bytes or more away from `data`, because no address space
// holds that.
std::optional<Reach> reach_of(const Footprint& f);

// The question is a bounded linear Diophantine equation, which is solved by search. Layouts that
// people use take a few steps. If 100,000 steps do not decide, the answer is `undecided`, and a
// caller that needs to know must refuse.
enum class Overlap { none, some, undecided };
// Whether two elements of a view share a place. The view must have a reach.
Overlap overlap_with_itself(const Footprint& f);
// Whether two views share a bit. Both must have a reach. An empty view shares nothing.
Overlap overlap(const Footprint& a, const Footprint& b);

}  // namespace assay::kernels
