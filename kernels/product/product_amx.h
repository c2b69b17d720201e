// Low-bit products with AMX (kernels/simd/amx.h), as product() computes them where it can.
#pragma once

#include "kernels/simd/targets.h"
#include "problem/tensor.h"

namespace assay::kernels {

// Whether a product is computed with AMX: the target has it, and A is a tensor of bf16. Every code
// of a weight, with its zero point subtracted, is a bf16. A group is summed as kernels/simd/amx.h
// says, in chunks of 32 and with subnormal numbers as 0; all else is as product.h says.
bool multiplies_with_amx(const Target& target, Dtype a);

}  // namespace assay::kernels
