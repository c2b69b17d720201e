// Attention forward without tiles: all scores of a row, their softmax, then P V. It runs where the
// tiled kernel is refused, so it does everything that docs/semantics.md defines.
#pragma once

#include "kernels/simd/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// Dtypes, strides, refusals and threads are as for attention_forward. The workspace is 8 rows of
// scores for each thread; if it cannot be allocated, nothing is written.
Status attention_unfused(const Attention& problem, const AttentionOutput& out,
                         const Execution& how = {});

}  // namespace assay::kernels
