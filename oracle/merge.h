// The verdict on a merge of partial results: O = sum w_s O_s / sum w_s and LSE = M + log sum w_s,
// w_s = e^(LSE_s - M), M the largest LSE_s. The stored numbers O_s and LSE_s are exact inputs here.
// Derivation of the bound: docs/bounds.md, section 10.
#pragma once

#include <span>

#include "oracle/contract.h"
#include "oracle/merge_terms.h"
#include "oracle/verdict.h"

namespace assay {

struct MergeProblem {
  std::span<const AttentionOutput>
      parts;              // O_s [B, H, L, Dv] and LSE_s [B, H, L, 1], one shape, any dtypes
  bool base_two = false;  // the LSEs of the parts and of the result are logarithms to base 2
};

// One row of the result. A part with LSE_s = -inf saw no key and counts nothing, whatever its O_s
// holds. If no other part is left, O is 0 and LSE is -inf. If some LSE_s is NaN or +inf, the row is
// NaN. NaN and infinities in O_s follow the extended reals, column by column.
struct MergedRow {
  bool empty = false, nan = false;
  double lse = 0, lse_low = 0, lse_radius = 0, lse_bound = 0;
  // |O - (o + o_low)| <= o_radius, where NaN and infinities of O_s count as 0.
  std::vector<double> o, o_low, o_radius;
  std::vector<double> o_bound;   // of |Ohat - O| before the output rounding
  std::vector<double> extended;  // 0, or the NaN or infinity that belongs there
  std::vector<char> underflow;  // O is infinite, but the weight of that infinity may underflow to 0
  std::vector<char> may_overflow;  // the sum could leave the range
};

// Computes a row in fp64 with a proved radius or, if bits > 0, in balls of `bits` bits. `terms` are
// the terms of the bound that count. These are all of them, except in the test that leaves out one.
MergedRow merge_row(const MergeProblem& problem, const Contract& contract, Index b, Index h,
                    Index i, long bits, const MergeTerms& terms = {});

// The fields of the contract that count are `roundoff`, those of exp and log, `division_roundings`,
// `product_floor` and `largest`. If out.lse is null, LSE is not judged.
Verdict judge_merge(const MergeProblem& problem, const AttentionOutput& out,
                    const Contract& contract);

}  // namespace assay
