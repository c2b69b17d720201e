// How a case fills its inputs, by name: families of numbers, layouts, patterns of masks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "problem/names.h"

namespace assay {

// How Q and K, and so the scores, are filled. generate.cc says what each family is for.
enum class Scores : std::uint8_t {
  normal,
  uniform,
  tiny,
  huge,
  negative,
  growing,
  falling,
  tile_peaks,
  near_overflow,
  large_scores,
  far_negative,
  far_positive,
  subnormal,
  signed_zeros,
  ramp,
  ties,
  equal,
  cancel,
  heavy_tail,
  key_sink,
  flat,
  subset,
  gather
};
template <>
inline constexpr auto table_of<Scores> = complete<Named<Scores>>({
    {Scores::normal, "normal"},
    {Scores::uniform, "uniform"},
    {Scores::tiny, "tiny"},
    {Scores::huge, "huge"},
    {Scores::negative, "negative"},
    {Scores::growing, "growing"},
    {Scores::falling, "falling"},
    {Scores::tile_peaks, "tile-peaks"},
    {Scores::near_overflow, "near-overflow"},
    {Scores::large_scores, "large-scores"},
    {Scores::far_negative, "far-negative"},
    {Scores::far_positive, "far-positive"},
    {Scores::subnormal, "subnormal"},
    {Scores::signed_zeros, "signed-zeros"},
    {Scores::ramp, "ramp"},
    {Scores::ties, "ties"},
    {Scores::equal, "equal"},
    {Scores::cancel, "cancel"},
    {Scores::heavy_tail, "heavy-tail"},
    {Scores::key_sink, "key-sink"},
    {Scores::flat, "flat"},
    {Scores::subset, "subset"},
    {Scores::gather, "gather"},
});

// How V, dO and A of a product are filled. draw.h defines each family.
enum class Values : std::uint8_t {
  normal,
  uniform,
  tiny,
  huge,
  cancel,
  offset,
  one_hot,
  near_overflow,
  subnormal,
  signed_zeros,
  ramp,
  heavy_tail,
  ones,
  constant,
  biased,
  head_number,
  integers,
  balanced
};
template <>
inline constexpr auto table_of<Values> = complete<Named<Values>>({
    {Values::normal, "normal"},
    {Values::uniform, "uniform"},
    {Values::tiny, "tiny"},
    {Values::huge, "huge"},
    {Values::cancel, "cancel"},
    {Values::offset, "offset"},
    {Values::one_hot, "one-hot"},
    {Values::near_overflow, "near-overflow"},
    {Values::subnormal, "subnormal"},
    {Values::signed_zeros, "signed-zeros"},
    {Values::ramp, "ramp"},
    {Values::heavy_tail, "heavy-tail"},
    {Values::ones, "ones"},
    {Values::constant, "constant"},
    {Values::biased, "biased"},
    {Values::head_number, "head-number"},
    {Values::integers, "integers"},
    {Values::balanced, "balanced"},
});

enum class LayoutKind : std::uint8_t {
  bhsd,
  bshd,
  packed,
  padded,
  strided,
  shared_head,
  shared_batch,
  reversed,
  distant
};
template <>
inline constexpr auto table_of<LayoutKind> = complete<Named<LayoutKind>>({
    {LayoutKind::bhsd, "bhsd"},
    {LayoutKind::bshd, "bshd"},
    {LayoutKind::packed, "packed"},
    {LayoutKind::padded, "padded"},
    {LayoutKind::strided, "strided"},
    {LayoutKind::shared_head, "shared-head"},
    {LayoutKind::shared_batch, "shared-batch"},
    {LayoutKind::reversed, "reversed"},
    {LayoutKind::distant, "distant"},
});

// What K and V hold at keys beyond the lengths and before the starts, which no row may see.
enum class Hidden : std::uint8_t { generated, nan, infinity, huge };
template <>
inline constexpr auto table_of<Hidden> = complete<Named<Hidden>>({
    {Hidden::generated, "generated"},
    {Hidden::nan, "nan"},
    {Hidden::infinity, "inf"},
    {Hidden::huge, "huge"},
});

enum class MaskPattern : std::uint8_t {
  none,
  all,
  random,
  empty_rows,
  tiles,
  future,
  normal,
  minus_infinity,
  blocks,
  minimum,
  minimum_rows,
  large,
  constant
};
enum class MaskKind : std::uint8_t { none, boolean, additive };
struct MaskRow {
  MaskPattern value;
  std::string_view name;
  MaskKind kind;
};
template <>
inline constexpr auto table_of<MaskPattern> = complete<MaskRow>({
    {MaskPattern::none, "none", MaskKind::none},
    {MaskPattern::all, "all", MaskKind::boolean},
    {MaskPattern::random, "random", MaskKind::boolean},
    {MaskPattern::empty_rows, "empty-rows", MaskKind::boolean},
    {MaskPattern::tiles, "tiles", MaskKind::boolean},
    {MaskPattern::future, "future", MaskKind::boolean},  // a causal pattern
    {MaskPattern::normal, "normal", MaskKind::additive},
    {MaskPattern::minus_infinity, "minus-infinity", MaskKind::additive},
    {MaskPattern::blocks, "blocks", MaskKind::additive},  // exactly 0 or -infinity
    {MaskPattern::minimum, "minimum", MaskKind::additive},
    {MaskPattern::minimum_rows, "minimum-rows", MaskKind::additive},
    {MaskPattern::large, "large", MaskKind::additive},
    {MaskPattern::constant, "constant", MaskKind::additive},
});
// The patterns of one kind, in their order.
template <MaskKind kind>
inline constexpr auto patterns_of = [] {
  constexpr auto is_asked = [](const MaskRow& row) { return row.kind == kind; };
  constexpr auto& table = table_of<MaskPattern>;
  std::array<MaskPattern, std::count_if(table.begin(), table.end(), is_asked)> patterns{};
  auto next = patterns.begin();
  for (const MaskRow& row : table)
    if (is_asked(row)) *next++ = row.value;
  return patterns;
}();

// How the codes of W are drawn. quantized: normal numbers are quantized by the declared rules,
// which also give the scales.
enum class Weights : std::uint8_t {
  quantized,
  codes,
  ramp,
  one_hot,
  largest,
  cancel,
  zeros,
  special
};
template <>
inline constexpr auto table_of<Weights> = complete<Named<Weights>>({
    {Weights::quantized, "quantized"},
    {Weights::codes, "codes"},
    {Weights::ramp, "ramp"},
    {Weights::one_hot, "one-hot"},
    {Weights::largest, "largest"},
    {Weights::cancel, "cancel"},
    {Weights::zeros, "zeros"},
    {Weights::special, "special"},
});

// How the scales are drawn, unless W is quantized.
enum class ScaleFamily : std::uint8_t {
  unit,
  distinct,
  random,
  range,
  smallest,
  largest,
  zero,
  nan
};
template <>
inline constexpr auto table_of<ScaleFamily> = complete<Named<ScaleFamily>>({
    {ScaleFamily::unit, "unit"},
    {ScaleFamily::distinct, "distinct"},
    {ScaleFamily::random, "random"},
    {ScaleFamily::range, "range"},  // every code, by columns
    {ScaleFamily::smallest, "smallest"},
    {ScaleFamily::largest, "largest"},
    {ScaleFamily::zero, "zero"},
    {ScaleFamily::nan, "nan"},
});

enum class ZeroFamily : std::uint8_t { random, symmetric, edges };
template <>
inline constexpr auto table_of<ZeroFamily> = complete<Named<ZeroFamily>>({
    {ZeroFamily::random, "random"},
    {ZeroFamily::symmetric, "symmetric"},
    {ZeroFamily::edges, "edges"},
});

}  // namespace assay
