// The policy through which planted faults look into the low-bit product, or change it. The default
// policy does nothing and costs nothing: with it, the kernel decodes in vectors instead of asking
// element by element.
#pragma once

#include "kernels/product/packed_weights.h"

namespace assay::kernels {

struct NoProductStages {
  // true: the functions that take weights or floats are called
  static constexpr bool observes = false;

  Index depth_blocks(const PackedWeights& w) const { return w.blocks(); }  // blocks of eight k
  Index stored_rows(Index rows) const { return rows; }  // rows that the kernel for few rows stores
  // columns of a panel that are stored
  Index stored_columns(Index columns) const { return columns; }
  float padding() const { return 0; }  // fills rows of A up to whole blocks
  float tensor_scale(float declared) const { return declared; }

  float weight(const PackedWeights& w, Index k, Index n) const { return w.value(k, n); }
  // `rows` is the number of rows of the whole product.
  float scale(const PackedWeights& w, Index t, Index n, Index /*rows*/) const {
    return w.scale(t, n);
  }
  // The number with which the sum of an element begins, and the sum after each group.
  float initial(Index /*row*/, Index /*column*/, Index /*rows*/) const { return 0; }
  float after_group(float total) const { return total; }
  float output(float value, Index /*row*/, Index /*column*/) const { return value; }
};

}  // namespace assay::kernels
