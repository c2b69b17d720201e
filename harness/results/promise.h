// What the bits of a row may not depend on, and which relations ask it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "problem/names.h"

namespace assay {

enum class Promise : std::uint8_t {
  batch,     // whether other sequences are in the call
  position,  // the place of its sequence in the batch
  padding,   // how many keys lie behind the length of its sequence
  chunks,    // how many rows are in the call
  splits,    // whether it is the only row, as in decoding, where kernels split the keys
  pages,     // the pages of a cache, or none
  layout,    // the strides of the tensors
  threads,
  runs,  // anything that differs from one run to the next
};
template <>
inline constexpr auto table_of<Promise> = complete<Named<Promise>>({
    {Promise::batch, "batch"},
    {Promise::position, "position"},
    {Promise::padding, "padding"},
    {Promise::chunks, "chunks"},
    {Promise::splits, "splits"},
    {Promise::pages, "pages"},
    {Promise::layout, "layout"},
    {Promise::threads, "threads"},
    {Promise::runs, "runs"},
});

// A set of promises: ASSAY_INVARIANT_TO_* of kernel.h.
using Promises = std::uint64_t;
constexpr Promises bit_of(Promise p) { return Promises{1} << static_cast<int>(p); }
inline constexpr Promises all_promises = (Promises{1} << count_of<Promise>)-1;

// "batch-invariant", "deterministic": what a run may require.
std::string requirement_of(Promise p);

struct AsksPromise {
  std::string_view relation;
  Promise promise;
  bool always = false;  // the relation is asked without a promise, too
};
inline constexpr AsksPromise relations_of_promises[] = {
    {"batch-alone", Promise::batch},   {"batch-reversed", Promise::position},
    {"longer-keys", Promise::padding}, {"row-chunks", Promise::chunks},
    {"row-alone", Promise::splits},    {"other-layout", Promise::layout},
    {"chunks", Promise::chunks},       {"pages", Promise::pages},
    {"no-cache", Promise::pages},      {"single-rows", Promise::splits},
    {"many-rows", Promise::chunks},    {"threads", Promise::threads, true},
};
// Null for a relation that asks nothing of the kind.
constexpr const AsksPromise* promise_of(std::string_view relation) {
  for (const AsksPromise& row : relations_of_promises)
    if (row.relation == relation) return &row;
  return nullptr;
}

}  // namespace assay
