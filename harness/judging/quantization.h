// Inside harness/: a candidate's quantizer, held to the declared rules bit for bit.
#pragma once

#include <string>

#include "harness/candidates/candidate.h"

namespace assay {

// The candidate's own bytes for the weights of a quantized case against those of the reference
// encoder: what differs, or empty.
std::string compare_quantization(const Case& c, Candidate& candidate, const ProductInputs& in);

}  // namespace assay
