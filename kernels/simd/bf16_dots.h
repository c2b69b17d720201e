// AVX3_BF16: the target that has the code of AVX3 and, for attention forward in bf16, VDPBF16PS.
#pragma once

#include "kernels/simd/targets.h"

namespace assay::kernels {

// Whether this is that target; and the target without the instruction.
bool has_bf16_dots(const Target& target);
Target without_bf16_dots(const Target& target);

}  // namespace assay::kernels
