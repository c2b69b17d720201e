// Where a policy can look into the low-bit product, or change it: planted faults. The default does nothing and costs nothing; with it, the
// kernel decodes in vectors instead of asking element by element.
#pragma once

#include "kernels/packed_weights.h"

namespace assay::kernels {

struct NoProductStages {
  static constexpr bool observes = false;  // true: the functions that take weights or floats are called

  Index depth_blocks(const PackedWeights& w) const { return w.blocks(); }  // of eight k
  Index stored_rows(Index rows) const { return rows; }                     // by the kernel for few rows
  Index stored_columns(Index columns) const { return columns; }   // of a panel
  float padding() const { return 0; }                             // of rows of A, up to whole blocks
  float tensor_scale(float declared) const { return declared; }

  float weight(const PackedWeights& w, Index k, Index n) const { return w.value(k, n); }
  // `rows` is that of the whole product.
  float scale(const PackedWeights& w, Index t, Index n, Index /*rows*/) const { return w.scale(t, n); }
  // What the sum of an element begins with, and what it is after each group.
  float initial(Index /*row*/, Index /*column*/, Index /*rows*/) const { return 0; }
  float after_group(float total) const { return total; }
  float output(float value, Index /*row*/, Index /*column*/) const { return value; }
};

}  // namespace assay::kernels
