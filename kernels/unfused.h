// Attention forward without tiles: all scores of a row, their softmax, then P V. What runs where the tiled kernel is
// refused, so it does everything that docs/semantics.md defines.
#pragma once

#include "kernels/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// Dtypes, strides, refusals and threads as attention_forward. Nothing is written unless all memory was had: the
// workspace is 8 rows of scores for each thread.
Status attention_unfused(const Attention& problem, const AttentionOutput& out, const Execution& how = {});

}  // namespace assay::kernels
