// What a report draws of one case: how near every element came to its bound, and which keys its rows see.
#pragma once

#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <tuple>
#include <vector>

#include "oracle/verdict.h"

namespace assay {

class Pictures {
 public:
  // Of attention, whose masks are drawn; of a product.
  explicit Pictures(const Attention& problem);
  Pictures(Index rows, Index columns);

  // Of any thread.
  void add(const Element& e);

  // Fields `maps`, `heads`, `tiles`, `ulps` and `mask` of a result: docs/results.md.
  nlohmann::json json(Index row_tile) const;

 private:
  static constexpr Index most_cells = 64, most_mask_cells = 96;

  // The largest error/bound in each cell of so many rows and columns; -1: none.
  struct Grid {
    Index rows = 1, columns = 1, row_step = 1, column_step = 1;
    std::vector<double> cells;
    double worst = -1;
  };
  Grid make_grid(Output output) const;

  AttentionShape shape_;
  nlohmann::json mask_;
  Index product_rows_ = 0, product_columns_ = 0;
  mutable std::mutex mutex_;
  std::map<std::tuple<Output, Index, Index>, Grid> grids_;  // of an output, b, h
  std::map<Index, double> tiles_;                           // of O, by row
  std::map<Output, std::vector<std::int64_t>> ulps_;
};

}  // namespace assay
