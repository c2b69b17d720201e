// The targets that multiply bf16: AVX3_BF16 is AVX3 and, for attention in bf16, VDPBF16PS. AVX3_AMX
// is AVX3 and, for attention in bf16 and products whose A is bf16, TDPBF16PS.
#pragma once

#include "kernels/simd/targets.h"

namespace assay::kernels {

// Whether this is one of the two, or the second; and the target without them, or without it.
bool has_bf16_dots(const Target& target);
bool has_amx(const Target& target);
Target without_bf16_dots(const Target& target);
Target without_amx(const Target& target);

}  // namespace assay::kernels
