// What the dispatcher has decided before any SIMD code runs; shared by all targets.
#pragma once

#include <vector>

#include "kernels/attention.h"
#include "kernels/panels.h"

namespace assay::kernels {

// A run of columns of stored rows. Rows lie in pages: row j at slot j % page_size of page pages[j / page_size].
struct StoredColumns {
  const std::byte* data = nullptr;  // slot 0 of page 0
  Dtype dtype = Dtype::f32;
  Index count = 0;
  Index stride = 1;  // elements from one column to the next
  Index row_bytes = 0, page_bytes = 0;
  // f8 and f4: an E8M0 scale for each `group` columns.
  const std::uint8_t* scales = nullptr;
  Index group = 0, row_scales = 0, page_scales = 0;
};

// K or V of one (batch, kv head) pair, wherever it is kept. Rows outside [begin, end) are never read.
struct StoredRows {
  StoredColumns columns, more;   // `more` stand behind `columns`; none where its count is 0
  const Index* pages = nullptr;  // null: everything is page 0
  Index page_size = 1;
  Index begin = 0, end = 0;

  struct Place {
    Index page, slot;
  };
  Place place_of(Index j) const { return pages ? Place{pages[j / page_size], j % page_size} : Place{0, j}; }
};

struct StoredKeyValues {
  StoredRows keys, values;
};

StoredKeyValues stored_key_values(const Attention& problem, Index b, Index g);

// K and V of `groups` consecutive (batch, kv head) pairs, packed in fp32.
struct PackedKeyValues {
  float* keys = nullptr;                       // [group][tile][panel of keys][D][panel width]
  float* values = nullptr;                     // [group][tile][panel of columns][tile keys][panel width]
  unsigned char* values_not_finite = nullptr;  // [group][tile]
};

// Of each row and split: the maximum, the sum and the accumulator that the split alone gives.
struct PartialRows {
  float* max = nullptr;          // [group][split][query head of the group][row]
  float* sum = nullptr;          // likewise
  float* accumulator = nullptr;  // likewise, and [padded value dim]
};

struct ForwardPlan {
  const Attention* problem = nullptr;
  AttentionOutput out;
  ForwardTiling tiling{};
  int threads = 0;
  std::vector<StoredKeyValues> stored;  // of every (batch, kv head) pair
  // Few rows a kv head: a task for each of its splits, which reads or packs its keys for itself. Otherwise K and V
  // are packed once, and a task computes a block of rows.
  bool by_split = false;
  PackedKeyValues packed;
  PartialRows partial;
  Index wave_groups = 0;              // (batch, kv head) pairs that there is a workspace for
  Index first_group = 0, groups = 0;  // those of this wave
  Index tiles = 0, splits = 0;        // of keys
  Index padded_value_dim = 0;

  // Floats of a packed tile.
  Index tile_keys() const { return tiling.keys * problem->shape.dim; }
  Index tile_values() const { return tiling.keys * padded_value_dim; }
  // Rows of all query heads that read one (batch, kv head) pair.
  Index stacked_rows() const { return problem->shape.group() * problem->shape.rows; }
};

// The kernel: forward() of a target and a policy.
using RunForward = void (*)(ForwardPlan& plan, const void* stages);
// Validates and plans first.
Status plan_and_run(const Attention& problem, const AttentionOutput& out, int threads, RunForward run, const void* stages);
// The problem is valid already, and its K and V are `stored`.
Status run_stored(const Attention& problem, std::vector<StoredKeyValues> stored, const AttentionOutput& out, int threads, RunForward run, const void* stages);

// Attention over a valid problem whose K and V are `stored`, wherever a cache keeps them; the production kernel has no context.
using AttendStored = Status (*)(const Attention& problem, std::vector<StoredKeyValues> stored, const AttentionOutput& out, const Execution& how, const void* context);
Status forward_stored(const Attention& problem, std::vector<StoredKeyValues> stored, const AttentionOutput& out, const Execution& how, const void*);

}  // namespace assay::kernels
