// The sums of a bound over all pairs of a row and a key, for a block of rows. Upper bounds of these
// sums are enough. Most sums are therefore taken in fp32, sixteen at a time, and enlarged by what
// fp32 may have lost (docs/bounds.md, section 9).
#pragma once

#include <algorithm>
#include <vector>

#include "oracle/bound_terms.h"
#include "oracle/contract.h"
#include "oracle/key_values.h"
#include "oracle/safety_factors.h"

namespace assay {

// The factors of what is counted in the sum over partial sums, in units of an addition's roundoff.
// `tile_end` belongs to the partial sum at the end of every tile, except the last tile of a split.
// `merge` belongs to the three numbers that a merge of splits rounds.
struct PartialSums {
  Index tile = 1, split = 0;  // split 0: there is one split
  double tile_end = 0, merge = 0;

  explicit PartialSums(const Contract& c, const BoundTerms& terms = {})
      : tile(c.tile),
        split(c.split_keys),
        tile_end(terms[BoundTerm::tile_ends] * safety::one_rounding * c.roundoff / c.dot_roundoff),
        merge(terms[BoundTerm::split_merges] * safety::one_rounding *
              std::max(1.0, c.roundoff / c.dot_roundoff)) {}
  bool ends_split(Index key) const { return split > 0 && key % split == 0; }
};

// The keys that a row sees lie in [begin, end), relative to key0 of the block. `visible` is null
// where the row sees all of them.
struct SeenKeys {
  Index begin = 0, end = 0;
  const char* visible = nullptr;
};

// Computes upper bounds of the sum over d of |partial sums of q.k_j|, rows x count.
void prefix_sums(const KeyValues& kv, const RowMajor& q, Index key0, Index count, RowMajor& out);

// Computes upper bounds of the sum over d of |q_d k_jd|, rows x count.
void absolute_products(const KeyValues& kv, const RowMajor& q, Index key0, Index count,
                       RowMajor& out);

// Computes upper bounds of the sum over keys of weights |v|, rows x padded value_dim. Weights above
// 1e30 count as 1e30.
void absolute_values(const KeyValues& kv, const RowMajor& weights, Index key0, RowMajor& out);

// Upper bounds for each column c: of the sum over keys of centred_j |v_jc - o_c| and, where
// `partial_sums` is given, of the sum of the absolute partial sums of weight_j v_jc. Weights above
// 1e30 count as 1e30.
struct ColumnWeights {
  const RowMajor& centred;
  const RowMajor& kept;
  const RowMajor& o;
};
void column_sums(const KeyValues& kv, Index key0, const std::vector<SeenKeys>& seen,
                 const PartialSums* partial_sums, const ColumnWeights& weights,
                 RowMajor& out_centred, RowMajor& out_prefix);

}  // namespace assay
