// Which weights of P are missing in a wrong O, count twice, or belong to keys that the row must not
// see. This is an estimate for a picture, made from O alone. docs/evidence.md, 6.
#pragma once

#include <optional>
#include <vector>

#include "oracle/verdict.h"

namespace assay {

// One head, in cells of row_step rows and key_step keys.
struct WeightMap {
  // One row for each cell of rows, with a share for each cell of keys. A share of 1 says that the
  // weight is missing. -1 says that it counts twice, or that a hidden key has its full weight. The
  // share of a cell is the one of its keys with the largest magnitude.
  struct Row {
    Index index = 0;
    // Whether a few keys, or tiles of keys, explain the errors. If not, there are no shares.
    bool explained = false;
    std::vector<double> shares;
  };
  Index b = 0, h = 0, rows = 0, keys = 0, row_step = 1, key_step = 1;
  std::vector<Row> sampled;
};

// The map of the head that failed, with at most `most_cells` cells in a row or column. None if no
// row is explained by weights: the outputs are wrong in another way, or only LSE is. None for a
// latent cache, or if V has fewer than 8 columns, which are too few to find a key.
std::optional<WeightMap> map_weights(const ProjectedAttention& problem, const AttentionOutput& out,
                                     const Contract& contract, const Verdict& failed,
                                     Index most_cells, int threads);

}  // namespace assay
