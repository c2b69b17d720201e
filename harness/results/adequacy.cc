#include "harness/results/adequacy.h"

#include <fmt/format.h>

#include <algorithm>

namespace assay {

void Adequacy::add(const CaseResult& r) {
  if (!r.was_compared() || r.outcome != Outcome::pass) return;
  if (r.verdict.rows_judged == 0) return;  // what was only compared bit for bit has no power
  const Index tile = std::min<Index>(r.verdict.tile, max_tile);
  Cells& cells = cells_[{r.dtype, tile}];
  cells.tail_lanes = tile - r.tail_step;
  for (std::size_t kind = 0; kind < tile_kind_count; ++kind)
    for (std::size_t change = 0; change < change_count; ++change)
      cells.lanes[kind][change] |= r.verdict.power.lanes[kind][change];
}

std::map<std::string, AdequacyCells> Adequacy::summary() const {
  std::map<std::string, AdequacyCells> all;
  for (const auto& [key, cells] : cells_) {
    const auto& [dtype, tile] = key;
    AdequacyCells& entry = all[fmt::format("{} tile {}", dtype, tile)];
    for (std::size_t kind = 0; kind < tile_kind_count; ++kind)
      for (std::size_t change = 0; change < change_count; ++change) {
        const auto of_tile = static_cast<TileKind>(kind);
        const Index lanes = of_tile == TileKind::tail ? cells.tail_lanes : tile;
        Index here = 0;
        for (Index lane = 0; lane < lanes; ++lane) here += cells.lanes[kind][change][usize(lane)];
        entry.shown += here;
        entry.cells += lanes;
        if (here < lanes) entry.missing[of_tile][static_cast<Change>(change)] = lanes - here;
      }
  }
  return all;
}

}  // namespace assay
