// A cached case as a kernel that decodes gets it: keys and values in pages, behind a block table.
#pragma once

#include <vector>

#include "harness/candidates/cached.h"

namespace assay {

// The problem of a chunk of rows as the last tokens of a cache. K and V have shapes only; key
// lengths, offsets and starts are those of the sequences at that time.
Attention paged_problem(const Case& c, const Attention& whole, Chunk rows);

// The tokens that the sequences have at the time of `problem`. Token j of sequence b is the slot
// j % size of the page table[b * each + j / size].
struct PagedTokens {
  Tensor k, v;  // [pages, Hkv, size, D] and [pages, Hkv, size, Dv]
  Index size = 0, each = 0;
  std::vector<std::int32_t> table;  // -1: the page holds no token of the sequence
};
// Lays the pages in an order of their own: those of one sequence are apart, with falling numbers.
// Slots that no token fills hold NaN.
PagedTokens paged_tokens(const Case& c, const Inputs& in, const Attention& problem);

}  // namespace assay
