// Inside judge/: functions of callers as candidates.
#pragma once

#include <cstdint>

#include "harness/candidates/named_candidate.h"
#include "judge/answers.h"

namespace assay::judging {

// Answers by the function. Throws Refused if there is none.
NamedCandidate::Answer answer_by(assay_function function, void* user);

// What a caller says of a function. Throws Refused for an empty name (NULL: "function"), for a
// no_lse that is neither 0 nor 1, and for a feature that there is not.
NamedCandidate::Facts facts_of(const char* name, std::int32_t no_lse,
                               const assay_features* features);

}  // namespace assay::judging
