// Inside oracle/: the errors of a row's weights. Derivation: docs/bounds.md, section 2.
#pragma once

#include <algorithm>

#include "oracle/bound.h"

namespace assay {

// A tile of a row: the keys [first, last), counted from key0. The numbers of tiles and splits are
// counted from the tile and the split that hold key0.
struct Tile {
  Index index, split, first, last;
};
template <class Body>
void for_each_tile(const Contract& c, const RowTruth& t, const Body& body) {
  for (Index j = 0; j < t.count;) {
    const Index key = t.key0 + j, tile = key / c.tile;
    const Index end = std::min(t.count, (tile + 1) * c.tile - t.key0);
    const Index split = c.split_keys > 0 ? key / c.split_keys - t.key0 / c.split_keys : 0;
    body(Tile{tile - t.key0 / c.tile, split, j, end});
    j = end;
  }
}

inline Index tiles_of_a_split(const Contract& c, Index tiles) {
  return c.split_keys > 0 ? std::min(tiles, c.split_keys / c.tile) : tiles;
}

struct WeightErrors {
  double delta = 0;          // Delta
  double largest_score = 0;  // max E_j
  double largest = 0;        // max H_j
  double most_rescales = 0;  // max R_j
};

// Computes R_j (`rescales`) and H_j (`exponent`, 0 for masked keys) from E_j (`error`).
WeightErrors weight_errors(const Contract& c, const BoundContext& x, const RowTruth& t,
                           const RowBound& row, const double* error, double* rescales,
                           double* exponent);

// Computes H of the sink.
double sink_exponent(const Contract& c, const BoundContext& x, const RowTruth& t,
                     const WeightErrors& e);

}  // namespace assay
