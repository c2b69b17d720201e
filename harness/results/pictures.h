// The data that a report draws of one case: how near every element came to its bound, and which
// keys its rows see. An empty cell holds no element that a bound judged.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/results/described.h"
#include "oracle/verdict.h"

namespace assay {

using OptionalRatios = std::vector<std::optional<double>>;

// The largest error/bound of O in every tile of rows. It stands outside of Pictures, because an
// optional of it asks for its default values before those of a nested class are known.
struct TileRatios {
  Index tile = 1;
  OptionalRatios ratios;
  bool operator==(const TileRatios&) const = default;
};

// Of one head, the share of its weight that each key lacks in each row: 1 is missing, -1 is
// twice, or is there although the row must not see the key. The cell of some keys has the share
// of the largest magnitude, in one row of each row_step. Rows that no weights explain are empty.
// It stands outside of Pictures for the reason of TileRatios.
struct LackingWeights {
  Index b = 0, h = 0;
  Index rows = 1, keys = 1, row_step = 1, key_step = 1;
  std::vector<OptionalRatios> cells;
  bool operator==(const LackingWeights&) const = default;
};

struct Pictures {
  // The largest error/bound of one head, in cells of row_step rows and column_step columns.
  struct Map {
    Output output{};
    Index b = 0, h = 0;
    Index rows = 1, columns = 1, row_step = 1, column_step = 1;
    std::string row_axis;  // "query" or "key"
    std::vector<OptionalRatios> cells;
    bool operator==(const Map&) const = default;
  };
  // The largest error/bound of every head, by batch.
  struct Heads {
    Output output{};
    std::vector<OptionalRatios> ratios;
    bool operator==(const Heads&) const = default;
  };
  // The number of elements by their error in ulps: in the bins between the edges, and above the
  // last edge.
  struct Ulps {
    Output output{};
    std::vector<double> edges;
    std::vector<std::int64_t> counts;
    std::int64_t above = 0;
    bool operator==(const Ulps&) const = default;
  };
  // The share of visible pairs in each cell, as a digit. A string holds one row of cells.
  struct Mask {
    Index b = 0, h = 0;
    Index rows = 1, keys = 1, row_step = 1, key_step = 1;
    std::vector<std::string> cells;
    bool operator==(const Mask&) const = default;
  };

  std::vector<Map> maps;
  std::vector<Heads> heads;
  std::optional<TileRatios> tiles;
  std::vector<Ulps> ulps;
  std::vector<Mask> mask;
  std::optional<LackingWeights> weights;
  bool operator==(const Pictures&) const = default;
};

template <class Fields, Described<Pictures::Map> Value>
void describe_fields(Fields& fields, Value& m) {
  fields("output", m.output);
  fields("b", m.b);
  fields("h", m.h);
  fields("rows", m.rows);
  fields("columns", m.columns);
  fields("row_step", m.row_step);
  fields("column_step", m.column_step);
  fields("row_axis", m.row_axis);
  fields("cells", m.cells);
}

template <class Fields, Described<Pictures::Heads> Value>
void describe_fields(Fields& fields, Value& h) {
  fields("output", h.output);
  fields("ratios", h.ratios);
}

template <class Fields, Described<TileRatios> Value>
void describe_fields(Fields& fields, Value& t) {
  fields("tile", t.tile);
  fields("ratios", t.ratios);
}

template <class Fields, Described<Pictures::Ulps> Value>
void describe_fields(Fields& fields, Value& u) {
  fields("output", u.output);
  fields("edges", u.edges);
  fields("counts", u.counts);
  fields("above", u.above);
}

template <class Fields, Described<Pictures::Mask> Value>
void describe_fields(Fields& fields, Value& m) {
  fields("b", m.b);
  fields("h", m.h);
  fields("rows", m.rows);
  fields("keys", m.keys);
  fields("row_step", m.row_step);
  fields("key_step", m.key_step);
  fields("cells", m.cells);
}

template <class Fields, Described<LackingWeights> Value>
void describe_fields(Fields& fields, Value& w) {
  fields("b", w.b);
  fields("h", w.h);
  fields("rows", w.rows);
  fields("keys", w.keys);
  fields("row_step", w.row_step);
  fields("key_step", w.key_step);
  fields("cells", w.cells);
}

// The fields of a result that hold its pictures.
template <class Fields, Described<Pictures> Value>
void describe_fields(Fields& fields, Value& p) {
  fields.unless("maps", p.maps, {});
  fields.unless("heads", p.heads, {});
  fields.optional("tiles", p.tiles);
  fields.unless("ulps", p.ulps, {});
  fields.unless("mask", p.mask, {});
  fields.optional("weights", p.weights);
}

}  // namespace assay
