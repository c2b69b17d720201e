// Inside harness/: judges quantizers and dequantizers bit for bit by the declared rules.
#pragma once

#include "harness/candidates/candidate.h"
#include "harness/judging/judged_bits.h"

namespace assay {

// Asks the candidate's quantizer for the weights of a quantized case, and for every tie of the
// format, and compares codes, scales, zero points and the tensor scale with those of the reference
// encoder under the rule that the candidate declares. Nothing is asked of a candidate without a
// quantizer, and of a case whose weights are drawn as codes.
JudgedBits judge_quantizer(const Case& c, Candidate& candidate);

// Asks the candidate's dequantizer for the weights of a case, and for every code of the format.
// Every element has to be the number that is nearest to the exact one, or nearest to the exact one
// after one rounding to binary32; a tensor scale may be multiplied into the scale or into the code
// first.
JudgedBits judge_dequantizer(const Case& c, Candidate& candidate, const ProductInputs& in);

// The same as operations of which more is asked. Their one call is that for the weights of the
// case.
BitsOperation quantizing();
BitsOperation dequantizing(Surroundings around);

}  // namespace assay
