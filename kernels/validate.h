// The checks that every entry point of the kernels makes before it writes anything.
#pragma once

#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// The message names the argument, its value and the limit. If `cached` is true, K and V are not
// tensors and are not checked.
Status validate_attention(const Attention& problem, const AttentionOutput& out,
                          bool cached = false);
Status validate_backward(const Attention& problem, const AttentionBackwardInput& in,
                         const AttentionGradients& out);

}  // namespace assay::kernels
