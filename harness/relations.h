// Metamorphic relations: a second problem whose outputs follow bit for bit from those of the first, whatever
// they are. They need no bound, so they see what a bound cannot; docs/verdict.md lists them.
#pragma once

#include <map>
#include <string>

#include "harness/run.h"

namespace assay {

// Of a relation that asks for a promise which the candidate does not make (Candidate::bits_are_promised).
inline constexpr const char* other_order = "not applicable: the candidate may add up in another order there";

// `base` holds the outputs of the case itself. Relation name -> "held", "violated: ..." or "not applicable: ...".
std::map<std::string, std::string> check_relations(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base);

// The same for a case that goes through a cache.
std::map<std::string, std::string> check_cache_relations(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base);

// The same for the backward pass; `forward` holds O and LSE, `base` their gradients.
std::map<std::string, std::string> check_backward_relations(const Case& c, const Inputs& inputs, const Outputs& forward, Candidate& candidate,
                                                            const GradientOutputs& base);

}  // namespace assay
