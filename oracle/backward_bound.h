// The backward error bound of a row of a tiled kernel that recomputes P from LSE. Derivation:
// docs/bounds_backward.md.
//
// dQ, dK, dV and dBias are sums of products of a weight of the pair (i, j) with an input, so their
// bounds are matrix products of |input| with weights that this file gives. LSE and O are what the
// forward pass stored: their distance from the exact ones is known, not bounded.
#pragma once

#include "oracle/backward_terms.h"
#include "oracle/bound.h"

namespace assay {

// What all rows of a problem have in common. A length is the number of terms that a sum adds in one
// chain.
struct BackwardContext {
  BoundContext forward;
  Index value_dim = 0;
  double keep_scale = 1;  // 1 / (1 - dropout)
  // Lengths of the sums over keys (dQ), and of those over rows and heads (dK, dV).
  double keys_length = 0, rows_length = 0;
  // The numbers of all terms of those sums. Each product can underflow, however the sums are split
  // into chains.
  double keys_terms = 0, rows_terms = 0;
  double bias_length = 0;  // of the sum over broadcast dimensions; 1: there is no such sum
  BackwardTerms terms;
};
// The context of a problem, but for the lengths and numbers of the sums.
BackwardContext backward_context(const Attention& p);

// The exact quantities of a row, rounded to double. The arrays cover the keys of a block.
struct GradientTruth {
  Index count = 0;
  const double* gap = nullptr;           // M - s_j; +inf where masked
  const double* weight = nullptr;        // p_j
  const double* dot = nullptr;           // q.k_j
  const double* score_error = nullptr;   // E_j
  const double* capped_error = nullptr;  // of the score before the biases; null: no softcap
  const double* dp = nullptr;            // R_j dO.v_j
  const double* dp_absolute = nullptr;   // R_j sum |dO||v_j|
  // The part of dp_absolute that is lost where a contract reads small operands as 0; null: none.
  const double* dp_lost = nullptr;
  const char* kept = nullptr;       // whether dropout keeps the pair; null: all are kept
  bool weights_from_balls = false;  // p_j and LSE come from balls, and are right to the last bit
  double max = 0, lse = 0;
  double lse_error = 0, lse_radius = 0;  // of the stored LSE; of the oracle's LSE
  double delta = 0;                      // D = sum dO O
  // The error of the D that a kernel computes from the stored O, and that of the oracle's D.
  double delta_error = 0, delta_radius = 0;
  double d_lse = 0;  // dLSE, a term of D
};

// Arrays of GradientTruth::count entries, which the caller owns. Masked keys have 0.
struct GradientWeights {
  double* kept_weight;   // R p: dV = sum kept_weight dO
  double* ds;            // dS before the softcap's factor: gives dBias
  double* dot_gradient;  // after that factor: dQ = scale sum dot_gradient K, dK = scale sum
                         // dot_gradient Q
  double *to_dq, *to_dk, *to_dv, *to_bias;  // weights of the sums that bound each gradient
};

struct GradientRow {
  double ratio = 0;             // the oracle's own error is at most this times the bound
  double slack = 0;             // relative error of the weights themselves
  bool may_overflow = false;    // a product or a weight of the row could leave the range
  bool vacuous = false;         // no weight of the row is determined
  double delta_of_weights = 0;  // what D errs further if it is the sum of P dP as they are stored
};

// Exact quantities of a row for the gradient of a sink, dSink = -sum e^(z - L) D.
struct SinkTruth {
  double sink = 0, lse = 0;              // z and L
  double delta = 0;                      // D
  double lse_error = 0, lse_radius = 0;  // as in GradientTruth
  double delta_error = 0, delta_radius = 0;
  double rows = 0;  // number of rows in the sum
};

// What one row adds to the sum of e^(z - L) D.
struct SinkTerm {
  double value = 0;
  double bound = 0;     // of |computed - exact|
  double absolute = 0;  // the largest that a kernel's term can be
  double own = 0;       // the oracle's own error
};

SinkTerm derive_sink_term(const Contract& c, const BackwardContext& x, const SinkTruth& t);

GradientRow derive_gradient_row(const Contract& c, const BackwardContext& x, const GradientTruth& t,
                                const GradientWeights& out);

// Computes, for each key, the error of a kernel's P after its cast, and the oracle's own error of
// P.
void derive_weight_errors(const Contract& c, const BackwardContext& x, const GradientTruth& t,
                          double* error);

// The bound of |computed sum - sum|, from the weighted sum of absolute values. If `scaled`, the sum
// is multiplied by the scale, which rounds once more. `terms` is the number of terms of the sum
// that can underflow.
double gradient_bound(const Contract& c, const BackwardTerms& counts, double terms, double scale,
                      double value, double sum);

}  // namespace assay
