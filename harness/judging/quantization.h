// Inside harness/judging/: judges quantizers and dequantizers bit for bit by the declared rules.
#pragma once

#include "harness/candidates/candidate.h"
#include "harness/judging/judged_bits.h"

namespace assay {

// Asks the candidate's quantizer for the weights of a quantized case, and for every tie of the
// format, and compares codes, scales, zero points and the tensor scale with those of the reference
// encoder under the rule that the candidate declares. Nothing is asked of a candidate without a
// quantizer, and of a case whose weights are drawn as codes. The one call of the operation is that
// for the weights of the case.
BitsOperation quantizing();

// Asks the candidate's dequantizer for the weights of a case, and for every code of the format.
// Every element has to be the number that is nearest to the exact one, or nearest to the exact one
// after one rounding to binary32; a tensor scale may be multiplied into the scale or into the code
// first. The one call of the operation is that for the weights of the case. The inputs are those of
// the case, and must live as long.
BitsOperation dequantizing(const ProductInputs& in);

}  // namespace assay
