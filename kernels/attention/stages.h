// The stage policy: the one place where a trace or a planted fault enters a production kernel.
//
// A kernel is a template over a stage policy. The default policy below observes nothing and decides
// what is right; it is empty and compiles away. A trace derives from it and sees every stage. A
// planted fault derives from it and decides wrongly, or changes what it sees.
#pragma once

#include <algorithm>
#include <limits>

#include "problem/attention.h"

namespace assay::kernels {

enum class Stage {
  query,
  key,
  value,
  scores,
  masked,
  row_max,
  rescale,
  weights,
  row_sum,
  accumulated,
  output,
  lse,
  // The following stages belong to the backward pass. There, weights are P before dropout.
  output_gradient,
  delta,             // D
  weight_gradients,  // dP
  score_gradients,   // dS as it is used for dQ and dK
  query_gradient,
  key_gradient,
  value_gradient
};

// What one stage has just produced: `rows` rows of `columns` floats. Row r is query row0 + r; for
// key and value, and for their gradients, it is key key0 + r. The columns are keys from key0 on in
// scores, masked, weights, and the gradients of weights and scores; in all other stages they are
// head dimensions.
struct StageView {
  Index b = 0, head = 0;
  Index row0 = 0, key0 = 0;
  Index rows = 0, columns = 0;
  float* data = nullptr;
  Index row_stride = 0, column_stride = 1;
  // For running maxima, sums and accumulators: the first key that they include, and how many keys
  // the tile at key0 has.
  Index first_key = 0, keys = 0;
};

// The keys [begin, end) that the intervals of a problem (causality, window, lengths, starts) leave
// to a row.
struct KeyRange {
  Index begin, end;
};
inline KeyRange visible_keys(const Attention& p, Index b, Index row) {
  const Index keys = p.shape.keys, diagonal = row + p.offset_of(b);
  const auto batch = usize(b);
  Index begin = 0, end = keys;
  if (p.causal) end = std::min(end, diagonal + 1);
  constexpr Index widest = 4 * largest_extent;  // such a window hides nothing
  if (p.window_left >= 0) begin = std::max(begin, diagonal - std::min(p.window_left, widest));
  if (p.window_right >= 0) end = std::min(end, diagonal + std::min(p.window_right, widest) + 1);
  if (!p.key_lengths.empty()) end = std::min(end, p.key_lengths[batch]);
  if (!p.key_starts.empty()) begin = std::max(begin, p.key_starts[batch]);
  begin = std::clamp<Index>(begin, 0, keys);
  return {begin, std::clamp(end, begin, keys)};
}

// The maximum of a row before a tile, of the row in that tile, and after the tile. Each has a type
// of its own and no other number becomes one, so that exchanged arguments do not compile.
struct RunningMax {
  float value;
};
struct TileMax {
  float value;
};
struct NextMax {
  float value;
};

struct NoStages {
  static constexpr bool observes = false;  // true: at() is called
  void at(Stage, const StageView&) const {}

  Index kv_head(Index head, Index group) const { return head / group; }
  float scale(float declared) const { return declared; }
  KeyRange visible(const Attention&, Index /*b*/, Index /*row*/, KeyRange range) const {
    return range;
  }
  Index key_tiles(Index keys, Index tile) const { return (keys + tile - 1) / tile; }
  float initial_max() const { return -std::numeric_limits<float>::infinity(); }
  NextMax new_max(RunningMax running, TileMax of_tile) const {
    return {running.value < of_tile.value ? of_tile.value : running.value};
  }
  float sum_correction(float correction) const { return correction; }
  float accumulator_correction(float correction) const { return correction; }
  float row_sum(float of_tile, float /*max*/, Index /*tile_keys*/, Index /*tile*/) const {
    return of_tile;
  }

  // These functions merge the splits of the keys; in the backward pass, they add up the dQ of the
  // splits.
  Index merged_splits(Index count) const { return count; }
  float merged_max(float total, float of_split) const {
    return total < of_split ? of_split : total;
  }
  float merged_sum_correction(float correction) const { return correction; }
  float merged_accumulator_correction(float correction) const { return correction; }

  // The functions of the backward pass. starts_key_sums: whether dK and dV of a group begin at this
  // query head.
  bool starts_key_sums(Index member) const { return member == 0; }
  Index query_head(Index kv_head, Index member, Index group) const {
    return kv_head * group + member;
  }
  Index row_tiles(Index rows, Index tile) const { return (rows + tile - 1) / tile; }
  float row_delta(float delta) const { return delta; }
  // the factor x in 1 - x tanh^2, the slope of the softcap
  float softcap_curvature() const { return 1; }
  float query_gradient_scale(float declared) const { return declared; }
  float key_gradient_scale(float declared) const { return declared; }
};

}  // namespace assay::kernels
