// Picks the function of the target that a call asks for, in files that compile kernels for every
// SIMD target.
#pragma once

#include <hwy/highway.h>

#include <cstddef>
#include <iterator>

#include "kernels/simd/targets.h"

namespace assay::kernels {

// Returns the entry of a table of HWY_EXPORT that holds the function of a target. If a file is not
// compiled for the target, the entry holds its baseline. The table is indexed as Highway's own
// dispatch indexes it, but by the target of the call and not by the one that Highway keeps for the
// process. If only one target is compiled, the table has one entry. The function has internal
// linkage, because files are compiled for different sets of targets, and the index depends on the
// set.
static inline std::size_t entry_of(Target target, std::size_t entries) {
  if (entries == 1) return 0;
  hwy::ChosenTarget chosen;
  chosen.Update(target.bit());
  return chosen.GetIndex();
}

}  // namespace assay::kernels

// The function of a target that HWY_EXPORT(FUNCTION) has exported.
#define ASSAY_OF_TARGET(FUNCTION, TARGET) \
  (HWY_DISPATCH_TABLE(                    \
      FUNCTION)[::assay::kernels::entry_of(TARGET, std::size(HWY_DISPATCH_TABLE(FUNCTION)))])
