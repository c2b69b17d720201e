// Packs stored rows of K and V in bf16 into panels of words, which are pairs of bf16
// (bf16_pairs.h). The file is compiled once for each SIMD target.
#include <algorithm>
#include <cstdint>

#include "kernels/attention/attention_plan.h"
#include "kernels/attention/pack-inl.h"
#include "kernels/attention/stages.h"
#include "kernels/simd/bf16_pairs.h"

#if defined(ASSAY_KERNELS_PACK_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_PACK_PAIRS_INL_H_
#undef ASSAY_KERNELS_PACK_PAIRS_INL_H_
#else
#define ASSAY_KERNELS_PACK_PAIRS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// Does what Packer does: a word of keys holds two elements of a key, a word of values holds an
// element of two keys. Elements that are not there are 0: in the last word, and for AMX up to whole
// chunks of words.
class PairPacker {
 public:
  PairPacker(const ForwardPlan& plan, const NoStages&)
      : plan_(plan),
        row_elements_((std::max(plan.problem->shape.dim, plan.padded_value_dim) + 31) / 32 * 32),
        rows_(allocate_aligned<std::uint16_t>((bf16::panel_width + 1) * row_elements_)) {
    std::fill_n(rows_.get() + bf16::panel_width * row_elements_, row_elements_, std::uint16_t{0});
  }

  // Returns the keys [j, j + panel_width) of a tile. The result is valid until the next call.
  PanelRows panel(Index group, Index tile, Index j) {
    const StoredRows& stored = plan_.stored[usize(group)].keys;
    const TileRows there = rows_of_tile(stored, plan_.tiling.keys, tile);
    constexpr Index half = bf16::panel_width / 2;
    if (j >= there.begin && j + bf16::panel_width <= there.end) {
      const Index key = there.key0 + j;
      const auto [left, stride] = rows_in_place(stored, key, half);
      const std::byte* right = rows_in_place(stored, key + half, half).first;
      if (left && right)
        return {Dtype::bf16,
                {left, right},
                stride,
                {bytes_ahead(stored, key), bytes_ahead(stored, key + half)}};
    }
    for (Index r = 0; r < bf16::panel_width; ++r)
      copy_row(stored, there, j + r, plan_.problem->shape.dim, r);
    return {Dtype::bf16, {scratch_row(0), scratch_row(half)}, row_elements_ * 2, {0, 0}};
  }

  // Packs the keys of a tile into [panel of keys][word][panel width].
  void keys(Index group, Index tile, float* to) {
    const Index dim = plan_.problem->shape.dim, words = plan_.key_words(),
                filled = bf16::words_of(dim);
    const TileRows there = rows_of_tile(plan_.stored[usize(group)].keys, plan_.tiling.keys, tile);
    for (Index j = there.begin / bf16::panel_width * bf16::panel_width; j < there.end;
         j += bf16::panel_width) {
      const PanelRows rows = panel(group, tile, j);
      bf16::pack_keys({{rows.half[0], rows.half[1]}, rows.stride, {rows.ahead[0], rows.ahead[1]}},
                      dim, to + j * words);
      std::fill_n(to + j * words + filled * bf16::panel_width, (words - filled) * bf16::panel_width,
                  0.0f);
    }
  }

  ValuesInPlace values_in_place(Index group, Index tile, const KeyRange& keys) const {
    if (plan_.problem->shape.value_dim % bf16::panel_width != 0) return {};
    ValuesInPlace values = first_run(plan_.stored[usize(group)].values,
                                     tile * plan_.tiling.keys + keys.begin, keys.end - keys.begin);
    values.zeros = scratch_row(bf16::panel_width);
    return values;
  }

  // Packs the values of a tile into [panel of columns][tile keys / 2][panel width].
  PackedValues values(Index group, Index tile, float* to) {
    const StoredRows& stored = plan_.stored[usize(group)].values;
    const Index width = plan_.tiling.keys;
    const TileRows there = rows_of_tile(stored, width, tile);
    const Index keys = plan_.operands == Operands::amx ? 2 * amx::chunk_words : 2,
                end = (there.end + keys - 1) / keys * keys;
    std::uint16_t largest = 0;
    for (Index j = there.begin / keys * keys; j < end; j += 2)
      largest = std::max(
          largest,
          bf16::pack_values(value_row(stored, there, j, 0), value_row(stored, there, j + 1, 1),
                            plan_.padded_value_dim, to + j / 2 * bf16::panel_width,
                            width / 2 * bf16::panel_width));
    return {to, largest >= 0x7F80};
  }

 private:
  const std::byte* scratch_row(Index r) const {
    return reinterpret_cast<const std::byte*>(rows_.get() + r * row_elements_);
  }

  // Returns the row where it is stored, if it is whole panels, and otherwise copies it to the
  // scratch row r.
  const std::byte* value_row(const StoredRows& stored, const TileRows& there, Index j, Index r) {
    const Index columns = plan_.problem->shape.value_dim;
    if (columns == plan_.padded_value_dim && j >= there.begin && j < there.end)
      if (const std::byte* row = rows_in_place(stored, there.key0 + j, 1).first) return row;
    copy_row(stored, there, j, columns, r);
    return scratch_row(r);
  }

  void copy_row(const StoredRows& stored, const TileRows& there, Index j, Index columns, Index r) {
    std::uint16_t* to = rows_.get() + r * row_elements_;
    std::fill_n(to, row_elements_, std::uint16_t{0});
    if (j < there.begin || j >= there.end) return;
    const StoredColumns& c = stored.columns;
    const auto [page, slot] = stored.place_of(there.key0 + j);
    const auto* from =
        reinterpret_cast<const std::uint16_t*>(c.data + page * c.page_bytes + slot * c.row_bytes);
    for (Index i = 0; i < columns; ++i) to[i] = from[i * c.stride];
  }

  const ForwardPlan& plan_;
  const Index row_elements_;
  hwy::AlignedFreeUniquePtr<std::uint16_t[]> rows_;  // those of a panel, and one of zeros
};

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
