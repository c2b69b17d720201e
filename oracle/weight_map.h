// Which weights of P a wrong O lacks, has twice, or has although its rows do not see the keys: an
// estimate for a picture, from O alone. docs/evidence.md, 6.
#pragma once

#include <optional>
#include <vector>

#include "oracle/verdict.h"

namespace assay {

// One head, in cells of row_step rows and key_step keys.
struct WeightMap {
  // What one row of a cell of rows lacks. A share of 1 says that the weight is missing, -1 that it
  // is there twice, or that a hidden key has its full weight; of the keys of a cell, it is that of
  // the largest magnitude.
  struct Row {
    Index index = 0;
    // Whether a few keys, or tiles of keys, explain the errors. If not, there are no shares.
    bool explained = false;
    std::vector<double> shares;
  };
  Index b = 0, h = 0, rows = 0, keys = 0, row_step = 1, key_step = 1;
  std::vector<Row> sampled;
};

// The map of the head that failed, of at most `most_cells` cells in a row or column. Nothing if no
// row is explained by a weight: the outputs are wrong in another way, or in LSE alone; and for a
// latent cache, and heads of fewer than 8 columns of V, which cannot tell keys apart.
std::optional<WeightMap> map_weights(const ProjectedAttention& problem, const AttentionOutput& out,
                                     const Contract& contract, const Verdict& failed,
                                     Index most_cells, int threads);

}  // namespace assay
