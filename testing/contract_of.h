// The contract that a candidate declares for a problem.
#pragma once

#include "harness/candidates/candidate.h"

namespace assay {

// Throws std::bad_optional_access for a candidate that declares nothing.
inline Contract contract_of(const Candidate& candidate, const Attention& problem,
                            const kernels::Execution& how = 1) {
  return declared<Contract>(candidate, ForwardCall{problem, {}}, how).value();
}

}  // namespace assay
