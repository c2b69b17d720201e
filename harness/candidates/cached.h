// Inside harness/: runs a case through the production caches.
#pragma once

#include "kernels/cache/cache.h"
#include "problem/generate.h"

namespace assay {

// How many tokens a sequence of a cached case has, and how many of them were evicted before its
// first row.
Index length_of(const Case& c, Index b);
Index start_of(const Case& c, Index b);

// The rows of a case that one call computes.
struct Chunk {
  Index first, count;
};
std::vector<Chunk> chunks_of(const Case& c);
// The problem and the outputs of those rows, over the first `keys` tokens. K and V, lengths, starts
// and offsets are left out, because a cache gives them.
Attention rows_of(const Attention& whole, Chunk rows, Index keys);
AttentionOutput rows_of(const AttentionOutput& whole, Chunk rows);

// The calls to a cache that a case makes.
class CacheCalls {
 public:
  virtual ~CacheCalls() = default;
  virtual kernels::Status append(kernels::Cache& cache, Index sequence, const TensorView& k,
                                 const TensorView& v);
  virtual kernels::Status attend(const Attention& problem, const kernels::Cache& cache,
                                 const kernels::UpProjection& projection,
                                 const AttentionOutput& out, const kernels::Execution& how);
};

// Appends the tokens before the first row and evicts what the case's starts say. Then, for every
// chunk of rows, appends its tokens, attends, and writes the rows of O and LSE.
kernels::Status run_through_cache(const Case& c, const Inputs& inputs, const AttentionOutput& out,
                                  const kernels::Execution& how, CacheCalls&& calls = {});

}  // namespace assay
