// What every entry point refuses before it writes anything.
#pragma once

#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// The message names the argument, its value and the limit. With `cached`, K and V are not tensors and not looked at.
Status validate_attention(const Attention& problem, const AttentionOutput& out, bool cached = false);
Status validate_backward(const Attention& problem, const AttentionBackwardInput& in, const AttentionGradients& out);

}  // namespace assay::kernels
