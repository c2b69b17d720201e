// Inside harness/judging/: what a wrong quantizer does, told from the bytes that it wrote.
#pragma once

#include <optional>

#include "oracle/diagnosis.h"
#include "problem/low_bit.h"
#include "problem/weight_sets.h"

namespace assay {

// The numbers that were quantized, [1, 1, K, N], and the bytes that the rule and the quantizer made
// of them.
struct Quantized {
  TensorView w;
  GroupScale scales;
  LowBitView rule, got;
};

// The fault that explains every scale and every code. The scales are those of the rule for other
// numbers, or under another rule, or the codes are those of the numbers divided by these scales and
// rounded otherwise. Where nothing explains all codes, the place of the wrong ones may: beyond the
// largest code, below the normal ones, or in the last, shorter group. Nothing is told of
// fp4_sparse.
std::optional<Explanation> fault_of_quantizer(const Quantized& q);

}  // namespace assay
