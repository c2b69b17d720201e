// For files that instantiate kernels for every SIMD target: picks the function of the target that a call asks for.
#pragma once

#include <hwy/highway.h>

#include <cstddef>
#include <iterator>

#include "kernels/targets.h"

namespace assay::kernels {

// The entry of a table of HWY_EXPORT that holds the function of a target. A file that is not compiled for the target has
// its baseline there. Highway's table is indexed as its own dispatch does it, but by the target of the call and not by the
// one that Highway keeps for the process. Where one target is compiled, the table has one entry.
// Internal linkage: files are compiled for different sets of targets, and the index depends on the set.
static inline std::size_t entry_of(Target target, std::size_t entries) {
  if (entries == 1) return 0;
  hwy::ChosenTarget chosen;
  chosen.Update(target.bit());
  return chosen.GetIndex();
}

}  // namespace assay::kernels

// The function that HWY_EXPORT(FUNCTION) has exported, of a target.
#define ASSAY_OF_TARGET(FUNCTION, TARGET) \
  (HWY_DISPATCH_TABLE(FUNCTION)[::assay::kernels::entry_of(TARGET, std::size(HWY_DISPATCH_TABLE(FUNCTION)))])
