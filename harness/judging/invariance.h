// Inside harness/judging/: relations about what the bits of a row do not depend on. A kernel may
// promise them, and a run may require them.
#pragma once

#include <span>

#include "harness/judging/step.h"

namespace assay {

// For O and LSE, from tensors or through a cache, and for gradients. A product has its own among
// its relations.
template <class Step>
std::span<const RelationOf<Step>> invariances_of(const Step&) {
  return {};
}
template <>
std::span<const RelationOf<ForwardStep>> invariances_of(const ForwardStep& step);
template <>
std::span<const RelationOf<BackwardStep>> invariances_of(const BackwardStep& step);

}  // namespace assay
