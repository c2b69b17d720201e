// A case run through the production caches.
#pragma once

#include "kernels/cache/cache.h"
#include "problem/generate.h"

namespace assay {

// Rows of a case that come in one call.
struct Chunk {
  Index first, count;
};
std::vector<Chunk> chunks_of(const Case& c);
// The problem and the outputs of those rows, over the first `keys` tokens; without K and V,
// lengths, starts and offsets, which a cache says.
Attention rows_of(const Attention& whole, Chunk rows, Index keys);
AttentionOutput rows_of(const AttentionOutput& whole, Chunk rows);

// The calls of a cache that a case makes.
class CacheCalls {
 public:
  virtual ~CacheCalls() = default;
  virtual kernels::Status append(kernels::Cache& cache, Index sequence, const TensorView& k,
                                 const TensorView& v);
  virtual kernels::Status attend(const Attention& problem, const kernels::Cache& cache,
                                 const kernels::UpProjection& projection,
                                 const AttentionOutput& out, const kernels::Execution& how);
};

// Appends the tokens before the first row, evicts what the case's starts say, then for every chunk
// of rows appends its tokens and attends. Writes the rows of O and LSE as it goes.
kernels::Status run_through_cache(const Case& c, const Inputs& inputs, const AttentionOutput& out,
                                  const kernels::Execution& how, CacheCalls&& calls = {});

}  // namespace assay
