// Inside oracle/: what a row's gradients are computed from. These are its pairs, and the L and D
// that the forward pass left, with the error of a kernel that reads them. Derivation:
// docs/bounds_backward.md, 1.
#pragma once

#include "oracle/backward_bound.h"
#include "oracle/reference.h"

namespace assay {

// D = sum dO O of a row, less dLSE where the loss depends on LSE. Columns in which dO, or one of
// the two O, is not a finite number are left out, and so is a dLSE that is not.
struct Delta {
  double value = 0;
  double error = 0;   // E_D: the error of the D that a kernel computes from the stored O
  double radius = 0;  // the error of the oracle's D
  double stored = 0;  // sum |dO O| over the stored O, and |dLSE|
};

// The exact quantities of the row `row` of a block with scores, but for D, dP and the errors of L.
GradientTruth truth_of_row(const Attention& p, const Block& block, Index row);

// dLSE of a row; 0 where there is none.
double lse_gradient_of_row(const AttentionBackwardInput& input, Index b, Index h, Index i);

// Computes D of the row `row` of head h in a block. dO is given as doubles, with 0 where it is not
// finite.
Delta delta_of_row(const Contract& c, const BackwardTerms& terms,
                   const AttentionBackwardInput& input, const Block& block, Index row,
                   const double* d_o);

// Computes E_L of the same row.
double lse_error_of_row(const Contract& c, const BackwardTerms& terms, const Attention& p,
                        const AttentionBackwardInput& input, const Block& block, Index row);

}  // namespace assay
