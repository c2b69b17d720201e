// A case run through the production caches.
#pragma once

#include "kernels/cache.h"
#include "problem/generate.h"

namespace assay {

// The calls of a cache that a case makes.
class CacheCalls {
 public:
  virtual ~CacheCalls() = default;
  virtual kernels::Status append(kernels::Cache& cache, Index sequence, const TensorView& k, const TensorView& v);
  virtual kernels::Status attend(const Attention& problem, const kernels::Cache& cache, const kernels::UpProjection& projection, const AttentionOutput& out,
                                 int threads);
};

// Appends the tokens before the first row, evicts what the case's starts say, then for every chunk of rows appends its
// tokens and attends. Writes the rows of O and LSE as it goes.
kernels::Status run_through_cache(const Case& c, const Inputs& inputs, const AttentionOutput& out, int threads, CacheCalls&& calls = {});

}  // namespace assay
