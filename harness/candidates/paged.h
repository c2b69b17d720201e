// A cached case as a kernel with pages gets it: keys and values in pages, behind a block table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/candidates/cached.h"

namespace assay {

// The problem of a chunk of rows as the last tokens of a cache. K and V have shapes only; key
// lengths, offsets and starts are those of the sequences at that time.
Attention paged_problem(const Case& c, const Attention& whole, Chunk rows);

// K or V in pages [pages, Hkv, size, columns]: elements, or codes and the E8M0 scales
// [pages, Hkv, size, groups] of `group` columns each. The layouts are those that the case gives to
// K and V, with a page in the place of a sequence.
struct PagedTensor {
  Tensor elements, scales;  // without scales, the second tensor is empty
  Index group = 0;          // 0: one scale for all columns
};

// Pages as views, which have no data where only the shapes are asked for.
struct PageViews {
  TensorView k, v, k_scales, v_scales;
  Index size = 0, each = 0, group = 0;
};

// The tokens that the sequences have at the time of `problem`. Token j of sequence b is the slot
// j % size of the page table[b * each + j / size].
struct PagedTokens {
  PagedTensor k, v;
  Index size = 0, each = 0;
  std::vector<std::int32_t> table;  // -1: the page holds no token of the sequence

  PageViews views() const {
    return {k.elements.view(),
            v.elements.view(),
            k.scales.view(),
            v.scales.view(),
            size,
            each,
            k.group};
  }
  // Where a token goes: page * size + slot.
  Index slot_of(Index b, Index j) const {
    return Index{table[usize(b * each + j / size)]} * size + j % size;
  }
};
// Why such a case has no pages; empty if it has.
std::string without_pages(const Case& c);
PageViews page_shapes(const Case& c);
// Pages without tokens, all of whose bytes are `filling`. They lie in an order of their own: those
// of one sequence are apart, with falling numbers. The table is for all tokens from `starts` on,
// and wider than any sequence needs.
PagedTokens empty_pages(const Case& c, std::byte filling);
// Stores the tokens [first, last) of every sequence, as the rule of caches says, and leaves out
// those before the starts of the case.
void store_tokens(const Case& c, const Inputs& in, Index first, Index last, PagedTokens& to);
// The tokens of `problem`. Slots that no token fills hold NaN, and so do their scales.
PagedTokens paged_tokens(const Case& c, const Inputs& in, const Attention& problem);

}  // namespace assay
