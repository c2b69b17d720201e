// Inside harness/: gathers what a report draws of a case while its elements are judged.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "harness/results/pictures.h"

namespace assay {

class Painter {
 public:
  // The first constructor is for attention, whose masks are drawn; the second is for a product.
  explicit Painter(const Attention& problem);
  Painter(Index rows, Index columns);

  // Any thread may call this.
  void add(const Element& e);

  Pictures pictures(Index row_tile) const;

 private:
  static constexpr Index most_cells = 64, most_mask_cells = 96, most_maps = 4;

  // The largest error/bound in each cell of row_step rows and column_step columns; -1: none.
  struct Grid {
    Index rows = 1, columns = 1, row_step = 1, column_step = 1;
    std::vector<double> cells;
    double worst = -1;

    Index cell_columns() const { return (columns + column_step - 1) / column_step; }
  };
  using Place = std::tuple<Output, Index, Index>;  // an output, b and h
  Grid make_grid(Output output) const;
  static Pictures::Map map_of(const Place& place, const Grid& grid);

  AttentionShape shape_;
  std::vector<Pictures::Mask> mask_;
  Index product_rows_ = 0, product_columns_ = 0;
  mutable std::mutex mutex_;
  std::map<Place, Grid> grids_;
  std::map<Index, double> tiles_;  // the largest error/bound of O, by row
  std::map<Output, std::vector<std::int64_t>> ulps_;
};

// The share of its weight that each key lacks in a failing O, if wrong weights explain it.
// `declared` is the contract of the candidate; null: it declares none.
std::optional<LackingWeights> weights_of(const ProjectedAttention& problem,
                                         const AttentionOutput& out, const Contract* declared,
                                         const Verdict& failed, int threads);

}  // namespace assay
