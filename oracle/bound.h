// The forward error bound of a row of tiled attention, for any contract. Derivation:
// docs/bounds.md.
//
// With p the exact weights, the computed output is a quotient of perturbed sums, and exactly
//   Ohat - O = [ sum p (e^eta - 1)(v - O) + (casts and accumulation, against |v|) + (row sum,
//   against O) ] / (1 + ...)
// so the bound of a row is a handful of weighted sums over V. This file gives the weights; the
// caller sums (by matrix products for a block of rows, one by one for a row in ball arithmetic) and
// hands the sums back.
#pragma once

#include <vector>

#include "oracle/bound_terms.h"
#include "oracle/contract.h"

namespace assay {

// What is common to the rows of a problem.
struct BoundContext {
  Index dim = 0;
  double scale = 1;
  double softcap = 0;
  bool dropout = false;
  Index projection = 0;  // products in a sum that makes an element of K or V
  BoundTerms terms = {};
};

// Exact quantities of a row, up to double. Arrays cover the keys [key0, key0 + count).
struct RowTruth {
  Index key0 = 0, count = 0;
  Index live = 0;                     // visible keys
  const double* gap = nullptr;        // M - s_j >= 0; +inf where masked
  const double* dot = nullptr;        // q.k_j, before the scale
  const double* absolute = nullptr;   // sum |q||k_j|, or more; null: not computed, absolute_limit
                                      // excludes overflow of scores
  double absolute_limit = 0;          // at least every sum |q||k_j|
  const double* prefix = nullptr;     // sum over d of |partial sums of q.k_j|; null: not computed
  const double* weight = nullptr;     // p_j
  const double* magnitude = nullptr;  // sum of |biases|; null: no bias
  const double* product = nullptr;    // |ALiBi product|
  const double* kept = nullptr;       // 1 or 0 by dropout; null: all kept
  int additions = 0;                  // biases added
  double max = 0, lse = 0;            // M and L, the sink included
  bool has_sink = false;
  double sink_gap = 0, sink_weight = 0;
};

// Everything of the bound that does not involve V.
struct RowBound {
  double zero_centred = 0;          // centred weight of the sink and of dropped keys: against |O|
  double sum_weight = 0;            // sum p e^H, times gamma_L against |O|
  double gamma_l = 0, gamma_n = 0;  // of the row sum, of the sum over V
  double denominator = 1;
  double centred_total = 0;
  double tail_per_centred =
      0;  // bounds tail weights by centred ones where tails are of second order; 0: they are not
  double lse = 0;               // bound of LSE
  double largest_exponent = 0;  // max H_j: the largest relative error of a weight
  double gap_error = 0;         // of the computed gap of any visible key
  Index keys = 0, tiles = 1;
  Index merges = 0;  // of key splits
  bool has_sink = false;
  bool vacuous = false;       // nothing is left to divide by: only the hull of V remains
  bool may_overflow = false;  // a score could leave the range in some order of summation: vacuous
                              // too, for a score that becomes -inf drops its key without a trace
  bool must_overflow = false;
};

// Weights of the sums over V, arrays of RowTruth::count entries that the caller owns; null: not
// wanted.
struct SumWeights {
  double* centred;   // against |v_j - O|
  double* absolute;  // against |v_j|, whatever the order of the sums
  double* tail;      // against |v_j|, where the order is declared
};

// Whether the bound of an element rests on prefix and tail, or else on absolute.
bool uses_order(const Contract& c);
// Whether tails hold nothing but products of two roundoffs: then they need no sum of their own.
bool tail_is_second_order(const Contract& c, const BoundContext& x);
// Whether sum |q||k_j| enters the bound of scores to first order.
bool needs_absolute(const Contract& c, const BoundContext& x);

// Whether no score can leave the range, given that no sum |q||k_j| exceeds `absolute` and no sum of
// |biases| `magnitude`.
bool excludes_overflow(const Contract& c, const BoundContext& x, double absolute, double magnitude);

// Sets may_overflow and must_overflow.
void find_overflow(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out);

void derive_row_bound(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out,
                      const SumWeights& weights);

// E_j: |computed score - s_j|. Entries of masked keys are finite and mean nothing.
void score_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error);

// At least e^h - 1 for h >= 0, without a library call where h is small.
double expm1_above(double h);

// The exponent errors H_j of reference.cc are at most this times those of a contract. It computes
// in fp64 without rescaling, and its exp and tanh are taken to err by up to 64 ulp, which needs no
// claim about any library. Every term of H_j is linear in a roundoff, and sum |q||k| <= 2 sum of
// |partial sums| (docs/bounds.md, section 6).
double exponent_ratio(const Contract& c, Index dim);

struct ColumnSums {
  double centred = 0,
         absolute = 0;  // sums of centred |v - O| and, unless the order is used, of absolute |v|
  double prefix = 0, tail = 0;  // ordered: dot_roundoff times the sum of |partial sums of p v|; sum
                                // of tail |v|, of first order
};

// Bound of |Ohat - O| before the rounding to the output dtype; `hull` is the largest |v - O| of the
// row's hull.
double element_bound(const Contract& c, const BoundContext& x, const RowBound& b, double o,
                     const ColumnSums& sums, double hull, double largest_value);

}  // namespace assay
