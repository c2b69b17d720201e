// What is known of the cache that K and V lie in, for the faults of caches.
#pragma once

#include <vector>

#include "oracle/diagnosis.h"

namespace assay {

// How a cache holds K and V. Codes of 8 and 4 bits have scales. `k` and `v` are the tokens before
// they were rounded to codes; the scales follow from these tokens.
struct StoredTokens {
  Dtype dtype = Dtype::f32;
  Index group = 0;  // columns that share a scale; 0: all of a token's
  Index page = 0;   // tokens of a page; 0: there are no pages
  TensorView k, v;
  std::vector<Index> appends;  // the first token of each append, and the end of the last
};

// diagnose() of oracle/diagnosis.h, for K and V from a cache. `stored` is null if nothing is known.
Diagnosis diagnose(const ProjectedAttention& problem, const AttentionOutput& out,
                   const Contract* contract, const Verdict& failed, const JudgeOptions& options,
                   const StoredTokens* stored);

}  // namespace assay
