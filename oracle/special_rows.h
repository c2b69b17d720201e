// Inside oracle/: elements that need no bound, which are rows whose answer is exact, NaN and
// infinities. Derivation: docs/bounds.md, section 8.
#pragma once

#include "oracle/key_values.h"
#include "oracle/reference.h"

namespace assay {

// Finds what NaN and infinities in Q and K make of a row's scores, by extended-real arithmetic; the
// sums count such inputs as 0. A visible key whose score is -inf keeps no weight. `score` covers
// the block's keys.
void classify_scores(const Attention& p, const KeyValues& kv, Block& block, Index r,
                     const RowVisibility& seen, double* score);

// Does the same for NaN and infinities in V. Weights smaller than e^-largest_gap may underflow to 0
// in the kernel.
void classify_values(const Attention& p, const KeyValues& kv, Block& block, Index r,
                     const RowVisibility& seen, const double* gap, double largest_gap);

// Whether a visible score multiplies an infinity by a number that the contract reads as 0.
bool reads_factor_as_zero(const Contract& c, const Attention& p, const KeyValues& kv,
                          const Block& block, Index row, const RowVisibility& seen);

// Whether all keys that keep weight have a score of exactly 0, and no sum of the row is rounded in
// any order.
bool is_exact_row(const Contract& c, const Attention& p, const KeyValues& kv, const double* q,
                  const RowTruth& t);

// Whether such a row may be judged without tolerance under a contract.
bool allows_exact_rows(const Contract& c, const ProjectedAttention& p);

// The value, radius and bound of an element of an exact row. `sum` is the sum of the values that
// count.
struct ExactElement {
  double o, radius, bound;
};
ExactElement exact_element(const Contract& c, double sum, double count, double n_live,
                           double largest_value);

}  // namespace assay
