// The power certificate: which faults of a key this case could have shown.
#pragma once

#include <array>
#include <bitset>

#include "oracle/reference.h"
#include "problem/names.h"

namespace assay {

// Changes of one visible (row, key) pair: the key deleted, counted twice, its V exchanged with the
// next key's, its weight off by 1%. Of products: of one term of a sum (oracle/product.h).
enum class Change { deleted, duplicated, exchanged, misweighted };
template <>
inline constexpr auto table_of<Change> = complete<Named<Change>>({
    {Change::deleted, "deleted"},
    {Change::duplicated, "duplicated"},
    {Change::exchanged, "exchanged"},
    {Change::misweighted, "misweighted"},
});
inline constexpr int change_count = count_of<Change>;
// Where in the tiling a key stands.
enum class TileKind { only, first, interior, last_full, tail };
template <>
inline constexpr auto table_of<TileKind> = complete<Named<TileKind>>({
    {TileKind::only, "only"},
    {TileKind::first, "first"},
    {TileKind::interior, "interior"},
    {TileKind::last_full, "last_full"},
    {TileKind::tail, "tail"},
});
inline constexpr int tile_kind_count = count_of<TileKind>;
inline constexpr int max_tile = 256;

struct Power {
  std::int64_t pairs = 0;  // visible (row, key) pairs looked at
  // Shown: the exact value moves by more than twice its bound.
  std::array<std::int64_t, change_count> by_output{}, by_lse{}, by_either{};
  // Lanes (key modulo tile) of which some pair was shown: through O, the 1% change through O or
  // LSE.
  std::array<std::array<std::bitset<max_tile>, change_count>, tile_kind_count> lanes{};

  void add(const Power& other);
};

// `full_bound` is the bound of O, the output rounding included, rows x value_dim; `row` selects one
// row.
void certify_row(const KeyValues& kv, const Block& block, Index row, const double* full_bound,
                 double lse_bound, Index keys, Index tile, Power& power);

}  // namespace assay
