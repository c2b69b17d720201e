// The power certificate: which faults at a key this case could have shown.
#pragma once

#include <cstdint>
#include <array>
#include <bitset>

#include "oracle/reference.h"
#include "problem/names.h"

namespace assay {

// Changes of one visible (row, key) pair: the key is deleted, it is counted twice, its V is
// exchanged with the next key's, or its weight is off by 1%. For products, the change is made
// to a term of a sum (oracle/product.h).
enum class Change { deleted, duplicated, exchanged, misweighted };
template <>
inline constexpr auto table_of<Change> = complete<Named<Change>>({
    {Change::deleted, "deleted"},
    {Change::duplicated, "duplicated"},
    {Change::exchanged, "exchanged"},
    {Change::misweighted, "misweighted"},
});
inline constexpr int change_count = count_of<Change>;
// The kind of tile in which a key lies.
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
  std::int64_t pairs = 0;  // number of visible (row, key) pairs that were examined
  // The numbers of pairs whose change would be shown, which means that the exact value moves by
  // more than twice its bound.
  std::array<std::int64_t, change_count> by_output{}, by_lse{}, by_either{};
  // The lanes (key modulo tile) in which the change of some pair would be shown. Most changes count
  // if they show in O; the change of 1% counts if it shows in O or in LSE.
  std::array<std::array<std::bitset<max_tile>, change_count>, tile_kind_count> lanes{};

  void add(const Power& other);
};

// `full_bound` is the bound of O with the output rounding included, rows x value_dim; `row` is the
// row to certify. `lse_bound` is infinite if LSE is not compared.
void certify_row(const KeyValues& kv, const Block& block, Index row, const double* full_bound,
                 double lse_bound, Index keys, Index tile, Power& power);

}  // namespace assay
