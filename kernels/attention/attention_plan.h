// The plan of a forward pass, which is made before any SIMD code runs and is shared by all targets.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/simd/amx.h"
#include "kernels/simd/panels.h"

namespace assay::kernels {

// A run of columns of stored rows. The rows lie in pages: row j is at slot j % page_size of page
// pages[j / page_size].
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

// K or V of one (batch, kv head) pair, wherever it is stored. Rows outside [begin, end) are never
// read.
struct StoredRows {
  // `more` are the columns behind `columns`; there are none if its count is 0
  StoredColumns columns, more;
  const Index* pages = nullptr;  // null: everything is in page 0
  Index page_size = 1;
  Index begin = 0, end = 0;

  struct Place {
    Index page, slot;
  };
  Place place_of(Index j) const {
    return pages ? Place{pages[j / page_size], j % page_size} : Place{0, j};
  }
};

struct StoredKeyValues {
  StoredRows keys, values;
};

StoredKeyValues stored_key_values(const Attention& problem, Index b, Index g);

// What the products multiply: fp32 numbers, or pairs of bf16, by VDPBF16PS
// (kernels/simd/bf16_pairs.h) or by AMX (kernels/simd/amx.h).
enum class Operands { floats, pairs, amx };
constexpr Index elements_of_a_word(Operands operands) {
  return operands == Operands::floats ? 1 : 2;
}

// K and V of `groups` consecutive (batch, kv head) pairs, packed in fp32. If the operands are
// pairs, D and the tile keys of V are counted in words of two. For AMX, D is filled up to whole
// chunks of words with zeros.
struct PackedKeyValues {
  float* keys = nullptr;    // [group][tile][panel of keys][D][panel width]
  float* values = nullptr;  // [group][tile][panel of columns][tile keys][panel width]
  unsigned char* values_not_finite = nullptr;  // [group][tile]
};

// For each row and split: the maximum, the sum and the accumulator of that split alone.
struct PartialRows {
  float* max = nullptr;          // [group][split][query head of the group][row]
  float* sum = nullptr;          // in the same order
  float* accumulator = nullptr;  // in the same order, then [padded value dim]
};

struct ForwardPlan {
  const Attention* problem = nullptr;
  AttentionOutput out;
  Operands operands = Operands::floats;
  ForwardTiling tiling{};
  int threads = 0;
  std::vector<StoredKeyValues> stored;  // for every (batch, kv head) pair
  // True if a kv head has few rows: each of its splits is then a task, which reads or packs its
  // keys itself. Otherwise K and V are packed once, and a task computes a block of rows.
  bool by_split = false;
  PackedKeyValues packed;
  PartialRows partial;
  Index wave_groups = 0;              // (batch, kv head) pairs for which there is a workspace
  Index first_group = 0, groups = 0;  // the pairs of this wave
  Index tiles = 0, splits = 0;        // of the keys
  Index padded_value_dim = 0;

  // How many floats, or words, a packed key and a packed tile have.
  Index key_words() const {
    const Index n = elements_of_a_word(operands), words = (problem->shape.dim + n - 1) / n;
    return operands == Operands::amx ? amx::whole_chunks(words) : words;
  }
  Index tile_keys() const { return tiling.keys * key_words(); }
  Index tile_values() const {
    return tiling.keys / elements_of_a_word(operands) * padded_value_dim;
  }
  // How many rows of all query heads read one (batch, kv head) pair.
  Index stacked_rows() const { return problem->shape.group() * problem->shape.rows; }
};

// The kernel: forward() of a target, of operands and of a policy.
using RunForward = void (*)(ForwardPlan& plan, const void* stages);
// Validates the problem, makes the plan, and runs a kernel that multiplies floats.
Status plan_and_run(const Attention& problem, const AttentionOutput& out, int threads,
                    RunForward run, const void* stages);
// Makes the plan for a problem that is valid and whose K and V are `stored`, and runs the kernel.
Status run_stored(const Attention& problem, std::vector<StoredKeyValues> stored,
                  const AttentionOutput& out, int threads, RunForward run, const void* stages,
                  Operands operands = Operands::floats);
// The kernels that multiply pairs; null if this program holds none.
RunForward forward_of_pairs();
RunForward forward_of_amx();

// Computes attention over a valid problem whose K and V are `stored`, wherever a cache keeps them.
// The production kernel ignores `context`.
using AttendStored = Status (*)(const Attention& problem, std::vector<StoredKeyValues> stored,
                                const AttentionOutput& out, const Execution& how,
                                const void* context);
Status forward_stored(const Attention& problem, std::vector<StoredKeyValues> stored,
                      const AttentionOutput& out, const Execution& how, const void*);

}  // namespace assay::kernels
