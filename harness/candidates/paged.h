// Inside harness/: a cached case as a kernel with pages gets it: keys and values in pages, behind a
// block table.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "harness/candidates/cached.h"

namespace assay {

// The problem of a chunk of rows as the last tokens of a cache. K and V have shapes only; key
// lengths, offsets and starts are those of the sequences at that time.
Attention paged_problem(const Case& c, const Attention& whole, Chunk rows);

// K or V in pages [pages, Hkv, size, columns]: elements, or codes and the scales
// [pages, Hkv, size, groups] of `group` columns each, E8M0 or f32. Strides of scales are 0 along
// what shares a scale. The layouts are those that the case gives to K and V, with a page in the
// place of a sequence, or those of its page order.
struct PagedTensor {
  TensorView elements, scales;
  Index group = 0;  // 0: one scale for all columns
};

// Pages as views, which have no data where only the shapes are asked for.
struct PageViews {
  TensorView k, v, k_scales, v_scales;
  Index size = 0, each = 0, group = 0;
  bool together = false;    // K and V lie in one buffer
  std::vector<Index> used;  // of a pool with holes: the pages that may hold tokens; empty: all
};

// A part of the memory of pages that may hold tokens.
struct PagedBytes {
  const char* of;
  std::span<std::byte> bytes;
};

// The tokens that the sequences have at the time of `problem`. Token j of sequence b is the slot
// j % size of the page table[b * each + j / size].
struct PagedTokens {
  PagedTensor k, v;
  Index size = 0, each = 0;
  std::vector<std::int32_t> table;  // -1: the page holds no token of the sequence
  Index spare = -1;                 // a page of a paged cache that belongs to no sequence
  bool together = false;
  std::vector<Index> used;
  // What the views point into: K and V, or both in one, and their scales.
  std::vector<Tensor> storage;

  PageViews views() const {
    return {k.elements, v.elements, k.scales, v.scales, size, each, k.group, together, used};
  }
  // All that may hold tokens, in the same order for pages of the same case.
  std::vector<PagedBytes> parts() const;
  bool guards_intact() const;
  // Copies all tokens of a page. A server does so before it writes to a page that is shared.
  void copy_page(Index from, Index to) const;
  // Where a token goes: page * size + slot.
  Index slot_of(Index b, Index j) const {
    return Index{table[usize(b * each + j / size)]} * size + j % size;
  }
};
// Why such a case has no pages; empty if it has.
std::string without_pages(const Case& c);
PageViews page_shapes(const Case& c);
// Pages without tokens, all of whose bytes are `filling`, but for scales that are given. They lie
// in an order of their own: those of one sequence are apart, with falling numbers; with
// layout=distant they are spread over a pool of 3 * 2^16 + 1 pages and more than 2^32 elements,
// whose other pages take no memory. The table is for all tokens from `starts` on, and wider than
// any sequence needs.
PagedTokens empty_pages(const Case& c, const Inputs& in, std::byte filling);
// Stores the tokens [first, last) of every sequence in slots[b * (last - first) + i], as the rule
// of caches says. Nothing is stored where that is -1.
void store_tokens(const Case& c, const Inputs& in, Index first, Index last,
                  std::span<const Index> slots, PagedTokens& to);
// The slots of these tokens by the table; -1 before the starts of the case and behind the end of a
// sequence.
std::vector<Index> slots_of(const Case& c, const PagedTokens& pages, Index first, Index last);
// Takes the pages behind the first `keys` tokens out of the table.
void cut_table(PagedTokens& tokens, Index keys);
// The tokens of `problem`. Slots that no token fills hold NaN, and so do their scales.
PagedTokens paged_tokens(const Case& c, const Inputs& in, const Attention& problem);
// Gives to every sequence the pages of sequence 0 that hold the same as its own, which hold NaN
// then.
void share_pages(PagedTokens& tokens);
// The tokens [first, last) of a tensor [B, H, L, D].
TensorView tokens_between(const TensorView& t, Index first, Index last);

}  // namespace assay
