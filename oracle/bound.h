// The forward error bound of a row of tiled attention, for any contract. Derivation:
// docs/bounds.md.
//
// The computed output is a quotient of perturbed sums. With the exact weights p, its error is
// exactly
//   Ohat - O = [ sum p (e^eta - 1)(v - O) + (casts and accumulation, against |v|) + (row sum,
//   against O) ] / (1 + ...)
// The bound of a row therefore consists of a few weighted sums over V. This file gives the weights.
// The caller computes the sums (by matrix products for a block of rows, one by one for a row in
// ball arithmetic) and passes them back.
#pragma once

#include <vector>

#include "oracle/bound_terms.h"
#include "oracle/contract.h"

namespace assay {

// What all rows of a problem have in common.
struct BoundContext {
  Index dim = 0;
  double scale = 1;  // its magnitude: a negative scale is a positive one of -Q
  double softcap = 0;
  bool dropout = false;
  double keep_scale = 1;  // 1 / (1 - p) under dropout
  Index projection = 0;   // products in each sum that gives an element of K or V
  BoundTerms terms = {};
};

// The exact quantities of a row, rounded to double. The arrays cover the keys [key0, key0 + count).
struct RowTruth {
  Index key0 = 0, count = 0;
  Index live = 0;               // visible keys
  const double* gap = nullptr;  // M - s_j >= 0; +inf where masked
  const double* dot = nullptr;  // q.k_j, before the scale
  // sum |q||k_j| or an upper bound of it. Null: it was not computed, because absolute_limit shows
  // that no score overflows.
  const double* absolute = nullptr;
  double absolute_limit = 0;          // an upper bound of all sums |q||k_j|
  double key_norm = 0;                // an upper bound of the norms of all k_j
  double query_norm = 0;              // an upper bound of the norm of q
  const double* prefix = nullptr;     // sum over d of |partial sums of q.k_j|; null: not computed
  const double* weight = nullptr;     // p_j
  const double* magnitude = nullptr;  // sum of |biases|; null: no bias
  const double* product = nullptr;    // |ALiBi product|
  const double* kept = nullptr;       // 1 or 0 by dropout; null: all kept
  int additions = 0;                  // number of biases that are added
  double max = 0, lse = 0;            // M and L, with the sink
  bool has_sink = false;
  double sink_gap = 0, sink_weight = 0;
};

// Everything of the bound that does not involve V.
struct RowBound {
  double zero_centred = 0;          // centred weight of the sink and of dropped keys, against |O|
  double sum_weight = 0;            // sum p e^H, times gamma_L against |O|
  double gamma_l = 0, gamma_n = 0;  // for the row sum; for the sum over V
  double denominator = 1;
  double centred_total = 0;
  // The factor by which centred weights bound tail weights where tails are of second order; 0: they
  // do not bound them.
  double tail_per_centred = 0;
  double lse = 0;               // bound of LSE
  double largest_exponent = 0;  // max H_j: the largest relative error of a weight
  double gap_error = 0;         // the largest error of the computed gap of a visible key
  Index keys = 0, tiles = 1;
  Index merges = 0;  // number of merges of key splits
  bool has_sink = false;
  // The bound of the denominator leaves nothing to divide by, so only the hull of V can be asked.
  bool vacuous = false;
  // A score could leave the range in some order of summation. Such a row is vacuous as well,
  // because a score that becomes -inf drops its key without a trace.
  bool may_overflow = false;
  bool must_overflow = false;
};

// The weights of the sums over V: arrays of RowTruth::count entries, which the caller owns. Null:
// this weight is not wanted.
struct SumWeights {
  double* centred;   // against |v_j - O|
  double* absolute;  // against |v_j|, for any order of the sums
  double* tail;      // against |v_j|, for a declared order of the sums
};

// Whether dot products are charged by their partial sums: their order is declared, and products are
// added one at a time. A block FMA drops bits of every product of a block.
bool adds_in_order(const Contract& c);
// dot_roundings of contract.h; `blocks` is the factor of the term that charges blocks.
double dot_roundings(const Contract& c, double length, double blocks);
// Whether the bound of an element uses the sums `prefix` and `tail`. If not, it uses `absolute`.
bool uses_order(const Contract& c);
// gamma(P, eps): the relative error, in units of its gauge, of an element of K or V that is a sum
// of P products. 0 where K and V are given.
double projection_error(const Contract& c, const BoundContext& x);
// Whether all tail weights are products of two roundoffs. If so, they need no sum of their own.
bool tail_is_second_order(const Contract& c, const BoundContext& x);
// Whether sum |q||k_j| enters the bound of scores to first order.
bool needs_absolute(const Contract& c, const BoundContext& x);

// Whether no score can leave the range, if no sum |q||k_j| exceeds `absolute` and no sum of
// |biases| exceeds `magnitude`.
bool excludes_overflow(const Contract& c, const BoundContext& x, double absolute, double magnitude);

// Sets may_overflow and must_overflow of `out`.
void find_overflow(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out);

void derive_row_bound(const Contract& c, const BoundContext& x, const RowTruth& t, RowBound& out,
                      const SumWeights& weights);

// Computes E_j, the bound of |computed score - s_j|. Entries of masked keys are finite and have no
// meaning.
void score_errors(const Contract& c, const BoundContext& x, const RowTruth& t, double* error);

// An upper bound of e^h - 1 for h >= 0, which calls no library function where h is small.
double expm1_above(double h);

// The exponent errors H_j of reference.cc are at most this factor times those of a contract.
// reference.cc computes in fp64 without rescaling. Its exp and tanh are assumed to err by up to 64
// ulp, so that nothing has to be claimed about any library. Every term of H_j is linear in a
// roundoff, and sum |q||k| <= 2 sum of |partial sums| (docs/bounds.md, section 6).
double exponent_ratio(const Contract& c, Index dim);

struct ColumnSums {
  // The sums of centred |v - O| and, unless the order is used, of absolute |v|.
  double centred = 0, absolute = 0;
  // Only where the order is used: dot_roundoff times the sum of |partial sums of p v|, and the sum
  // of tail |v|, which is of first order.
  double prefix = 0, tail = 0;
};

// The bound of |Ohat - O| before the rounding to the output dtype. `hull` is the largest |v - O|
// over the hull of the values that the row sees.
double element_bound(const Contract& c, const BoundContext& x, const RowBound& b, double o,
                     const ColumnSums& sums, double hull, double largest_value);

}  // namespace assay
