// The lanes that the cases of a suite have tested, for every kind of tile, by dtype and tile width.
// They are the union of the power certificates of the cases.
#pragma once

#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "harness/results/result.h"

namespace assay {

// A cell is a kind of tile, a lane and a change.
struct AdequacyCells {
  Index shown = 0, cells = 0;
  // The number of cells that are not shown, by kind of tile and change. Kinds and changes without
  // such cells are left out.
  std::map<TileKind, std::map<Change, Index>> missing;
  bool operator==(const AdequacyCells&) const = default;
};

template <class Fields, Described<AdequacyCells> Value>
void describe_fields(Fields& fields, Value& a) {
  fields("shown", a.shown);
  fields("cells", a.cells);
  fields.unless("missing", a.missing, {});
}

class Adequacy {
 public:
  // Counts a result only if it passed.
  void add(const CaseResult& result);
  // The cells of each dtype and tile width, by the key "dtype tile".
  std::map<std::string, AdequacyCells> summary() const;

 private:
  struct Cells {
    Index tail_lanes = 0;
    std::array<std::array<std::bitset<max_tile>, change_count>, tile_kind_count> lanes;
  };
  std::map<std::pair<std::string, Index>, Cells> cells_;  // by dtype and tile width
};

}  // namespace assay
