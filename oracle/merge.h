// The verdict on a merge of partial results: O = sum w_s O_s / sum w_s and LSE = M + log sum w_s,
// w_s = e^(LSE_s - M), M the largest LSE_s. The stored numbers O_s and LSE_s are exact inputs here.
// Derivation of the bound: docs/bounds.md, section 10.
#pragma once

#include <span>

#include "oracle/contract.h"
#include "oracle/verdict.h"

namespace assay {

struct MergeProblem {
  std::span<const AttentionOutput>
      parts;              // O_s [B, H, L, Dv] and LSE_s [B, H, L, 1], one shape, any dtypes
  bool base_two = false;  // LSEs, those of the parts and of the result, are logarithms to base 2
};

// One row. Parts with LSE_s = -inf saw nothing and count nothing, whatever their O_s holds. Where
// none is left, O is 0 and LSE -inf. NaN or +inf in some LSE_s makes the row NaN; NaN and
// infinities in O_s follow the extended reals by column.
struct MergedRow {
  bool empty = false, nan = false;
  double lse = 0, lse_low = 0, lse_radius = 0, lse_bound = 0;
  std::vector<double> o, o_low,
      o_radius;  // |O - (o + o_low)| <= radius, NaN and infinities of O_s counted as 0
  std::vector<double> o_bound;     // of |Ohat - O| before the output rounding
  std::vector<double> extended;    // 0, or the NaN or infinity that belongs there
  std::vector<char> underflow;     // an infinity whose weight may underflow to 0
  std::vector<char> may_overflow;  // the sum could leave the range
};

// In fp64 with a proved radius; in balls of `bits` bits where bits > 0.
MergedRow merge_row(const MergeProblem& problem, const Contract& contract, Index b, Index h,
                    Index i, long bits);

// Of the contract, `roundoff`, the fields of exp and log, `division_roundings`, `product_floor` and
// `largest` count. A null out.lse is not judged.
Verdict judge_merge(const MergeProblem& problem, const AttentionOutput& out,
                    const Contract& contract);

}  // namespace assay
