// Inside oracle/: what the forward pass left for a row's gradients, L and D, and how far off a
// kernel is that reads it. Derivation: docs/bounds_backward.md, 1.
#pragma once

#include "oracle/backward_terms.h"
#include "oracle/reference.h"

namespace assay {

// D = sum dO O of a row. Columns in which dO or one of both O is no finite number are left out.
struct Delta {
  double value = 0;
  double error = 0;   // E_D: of the D that a kernel computes from the stored O
  double radius = 0;  // of the oracle's
  double stored = 0;  // sum |dO O|, of the stored O
};

// The row `row` of head h of a block, with dO given as doubles, 0 where it is not finite.
Delta delta_of_row(const Contract& c, const BackwardTerms& terms,
                   const AttentionBackwardInput& input, const Block& block, Index row,
                   const double* d_o);

// E_L of that row.
double lse_error_of_row(const Contract& c, const BackwardTerms& terms, const Attention& p,
                        const AttentionBackwardInput& input, const Block& block, Index row);

}  // namespace assay
