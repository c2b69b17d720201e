// Inside oracle/: what needs no bound, section 8 of docs/bounds.md: rows whose answer is exact,
// NaN and infinities.
#pragma once

#include "oracle/key_values.h"
#include "oracle/reference.h"

namespace assay {

// NaN and infinities among what a row sees, by extended-real arithmetic; the sums count them as 0.
// A visible key whose score is -inf keeps no weight. `score` covers the block's keys.
void classify_scores(const Attention& p, const KeyValues& kv, Block& block, Index r,
                     const RowVisibility& seen, double* score);

// The same of V. Weights smaller than e^-largest_gap may underflow to 0 in the kernel.
void classify_values(const Attention& p, const KeyValues& kv, Block& block, Index r,
                     const RowVisibility& seen, const double* gap, double largest_gap);

// Whether equal scores of exactly 0 are all that keeps weight, in sums that no order rounds.
bool is_exact_row(const Attention& p, const KeyValues& kv, const double* q, const RowTruth& t);

// Whether such a row may be judged without tolerance under a contract.
bool allows_exact_rows(const Contract& c, const ProjectedAttention& p);

// The value, radius and bound of an element of an exact row: `sum` of the values that count.
struct ExactElement {
  double o, radius, bound;
};
ExactElement exact_element(const Contract& c, double sum, double count, double n_live,
                           double largest_value);

}  // namespace assay
