// Inside harness/: relations about what the bits of a row do not depend on. A kernel may promise
// them, and a run may require them.
#pragma once

#include <span>

#include "harness/judging/step.h"

namespace assay {

// For O and LSE without a cache. The other steps have theirs among their own relations.
std::span<const RelationOf<ForwardStep>> invariances_of_rows();

template <class Step>
std::span<const RelationOf<Step>> invariances_of(const Step&) {
  return {};
}
template <>
inline std::span<const RelationOf<ForwardStep>> invariances_of(const ForwardStep& step) {
  if (step.c.cache) return {};
  return invariances_of_rows();
}

}  // namespace assay
