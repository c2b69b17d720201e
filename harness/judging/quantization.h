// Inside harness/: checks that a candidate's quantizer follows the declared rules bit for bit.
#pragma once

#include <string>

#include "harness/candidates/candidate.h"

namespace assay {

// Compares the candidate's bytes for the weights of a quantized case with those of the reference
// encoder. Returns what differs, or an empty text.
std::string compare_quantization(const Case& c, Candidate& candidate, const ProductInputs& in);

}  // namespace assay
