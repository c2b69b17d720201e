// A case run through the production caches.
#pragma once

#include "kernels/status.h"
#include "problem/generate.h"

namespace assay {

// Appends the tokens before the first row, evicts what the case's starts say, then for every chunk of rows appends its
// tokens and attends. Writes the rows of O and LSE as it goes.
kernels::Status run_through_cache(const Case& c, const Inputs& inputs, const AttentionOutput& out, int threads);

}  // namespace assay
