// Packs stored rows of K and V into fp32 panels. The file is compiled once for each SIMD target.
#include <cstdint>
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "kernels/attention/attention_plan.h"
#include "kernels/simd/decode-inl.h"
#include "kernels/simd/register_block-inl.h"
#include "kernels/attention/stages.h"

#if defined(ASSAY_KERNELS_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_PACK_INL_H_
#undef ASSAY_KERNELS_PACK_INL_H_
#else
#define ASSAY_KERNELS_PACK_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// ---- Reading ------------------------------------------------------------------------------------

template <Code code>
HWY_INLINE void decode_groups(const StoredColumns& c, const std::byte* from,
                              const std::uint8_t* scales, float* HWY_RESTRICT to) {
  bool by_halves = converts_f16;
  if constexpr (converts_f16 && code == Code::e4m3) by_halves = !has_nan_of_e4m3(from, c.count);
  for (Index begin = 0; begin < c.count; begin += c.group, ++scales)
    decode_row<code>(from, begin, std::min(c.group, c.count - begin), from_e8m0(*scales), by_halves,
                     to);
}

inline void load_stored_columns(const StoredColumns& c, Index page, Index slot,
                                float* HWY_RESTRICT to) {
  const std::byte* from = c.data + page * c.page_bytes + slot * c.row_bytes;
  if (!c.scales) return load_columns(c.dtype, from, c.stride, c.count, to);
  const std::uint8_t* scales = c.scales + page * c.page_scales + slot * c.row_scales;
  if (c.dtype == Dtype::f4e2m1) decode_groups<Code::e2m1>(c, from, scales, to);
  else if (c.dtype == Dtype::f8e4m3) decode_groups<Code::e4m3>(c, from, scales, to);
  else decode_groups<Code::e5m2>(c, from, scales, to);
}

// Loads row j as fp32.
inline void load_stored_row(const StoredRows& rows, Index j, float* HWY_RESTRICT to) {
  const auto [page, slot] = rows.place_of(j);
  load_stored_columns(rows.columns, page, slot, to);
  if (rows.more.count > 0) load_stored_columns(rows.more, page, slot, to + rows.columns.count);
}

// Returns where the rows [j, j + count) lie, and the bytes from one row to the next, if they are
// f32, f16 or bf16 at even distances. Otherwise returns null.
inline std::pair<const std::byte*, Index> rows_in_place(const StoredRows& rows, Index j,
                                                        Index count) {
  const StoredColumns& c = rows.columns;
  if (c.scales || c.stride != 1 || rows.more.count > 0) return {nullptr, 0};
  const auto [page, slot] = rows.place_of(j);
  if (rows.pages && slot + count > rows.page_size) return {nullptr, 0};
  return {c.data + page * c.page_bytes + slot * c.row_bytes, c.row_bytes};
}

// The first key of a tile; then, relative to it, the keys that are there.
struct TileRows {
  Index key0, begin, end;
};
inline TileRows rows_of_tile(const StoredRows& stored, Index width, Index tile) {
  const Index key0 = tile * width, begin = std::clamp<Index>(stored.begin - key0, 0, width);
  return {key0, begin, std::clamp<Index>(stored.end - key0, begin, width)};
}

// Returns the bytes from row j to the row that is fetched into the cache while row j is read, or 0
// if no such row is left.
inline Index bytes_ahead(const StoredRows& rows, Index j) {
  constexpr Index distance = 32;
  if (j + distance >= rows.end) return 0;
  const auto from = rows.place_of(j), to = rows.place_of(j + distance);
  return (to.page - from.page) * rows.columns.page_bytes +
         (to.slot - from.slot) * rows.columns.row_bytes;
}

// Fetches the codes of a cache that are read some rows after row j. They lie side by side.
inline void prefetch_codes(const StoredRows& rows, Index j) {
  const Index ahead = rows.columns.scales ? bytes_ahead(rows, j) : 0;
  if (ahead == 0) return;
  const auto [page, slot] = rows.place_of(j);
  const std::byte* from =
      rows.columns.data + page * rows.columns.page_bytes + slot * rows.columns.row_bytes + ahead;
  for (Index line = 0; line < rows.columns.row_bytes; line += 64) hwy::Prefetch(from + line);
}

// ---- Transposing --------------------------------------------------------------------------------

inline constexpr Index lanes = panel_width / 2;

#if HWY_TARGET != HWY_SCALAR
// The 128-bit block b of the result is taken from row 4 * b. From the last row to the first,
// because in the other order gcc 12 ends with an internal error where codes are transposed.
HWY_INLINE Vector load_blocks(Lanes d, const std::byte* rows, Index stride) {
  const auto block = [&](Index row) HWY_ATTR {
    return hn::LoadDup128(d, reinterpret_cast<const float*>(rows + row * stride));
  };
  Vector v = block(lanes - 4);
  if constexpr (lanes >= 16) {
    v = hn::IfThenElse(hn::FirstN(d, 12), block(8), v);
    v = hn::IfThenElse(hn::FirstN(d, 8), block(4), v);
  }
  if constexpr (lanes >= 8) v = hn::IfThenElse(hn::FirstN(d, 4), block(0), v);
  return v;
}

// Calls take(column, its elements) for each column that lies in the first 16 bytes of the rows.
// There are as many rows as a vector has lanes.
template <Dtype dtype, class Take>
HWY_INLINE void transpose_block(Lanes d, const std::byte* HWY_RESTRICT rows, Index stride,
                                const Take& take) {
  const Vector r0 = load_blocks(d, rows, stride), r1 = load_blocks(d, rows + stride, stride);
  const Vector r2 = load_blocks(d, rows + 2 * stride, stride),
               r3 = load_blocks(d, rows + 3 * stride, stride);
  const hn::RebindToUnsigned<Lanes> words;
  if constexpr (dtype == Dtype::f16) {
    const hn::Repartition<std::uint16_t, Lanes> codes;
    const hn::Repartition<std::uint64_t, Lanes> quads;
    const hn::Rebind<std::uint16_t, Lanes> half;
    const hn::Rebind<hwy::float16_t, Lanes> half_floats;
    const auto as = [](auto tag, auto v) HWY_ATTR { return hn::BitCast(tag, v); };
    const auto take_four = [&](Index column, auto pairs01, auto pairs23) HWY_ATTR {
      // A quad holds one column of four rows.
      const auto first = as(quads, hn::InterleaveLower(words, pairs01, pairs23)),
                 second = as(quads, hn::InterleaveUpper(words, pairs01, pairs23));
      const auto even = as(codes, hn::ConcatEven(quads, second, first)),
                 odd = as(codes, hn::ConcatOdd(quads, second, first));
      // Halves of vectors are taken as codes, because not every target has halves of float16_t.
      take(column, hn::PromoteTo(d, as(half_floats, hn::LowerHalf(half, even))));
      take(column + 1, hn::PromoteTo(d, as(half_floats, hn::LowerHalf(half, odd))));
      take(column + 2, hn::PromoteTo(d, as(half_floats, hn::UpperHalf(half, even))));
      take(column + 3, hn::PromoteTo(d, as(half_floats, hn::UpperHalf(half, odd))));
    };
    const auto c0 = as(codes, r0), c1 = as(codes, r1), c2 = as(codes, r2), c3 = as(codes, r3);
    take_four(0, as(words, hn::InterleaveLower(codes, c0, c1)),
              as(words, hn::InterleaveLower(codes, c2, c3)));
    take_four(4, as(words, hn::InterleaveUpper(codes, c0, c1)),
              as(words, hn::InterleaveUpper(codes, c2, c3)));
  } else {
    const hn::Repartition<double, Lanes> pairs;
    const auto take_word = [&](Index word, auto v) HWY_ATTR {
      // a pair of bf16 is transposed as one word, and then separated
      if constexpr (dtype == Dtype::bf16) {
        take(2 * word, hn::BitCast(d, hn::ShiftLeft<16>(hn::BitCast(words, v))));
        take(2 * word + 1,
             hn::BitCast(d, hn::And(hn::BitCast(words, v), hn::Set(words, 0xFFFF0000u))));
      } else {
        take(word, hn::BitCast(d, v));
      }
    };
    const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1)),
               high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
    const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3)),
               high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
    take_word(0, hn::InterleaveLower(pairs, low01, low23));
    take_word(1, hn::InterleaveUpper(pairs, low01, low23));
    take_word(2, hn::InterleaveLower(pairs, high01, high23));
    take_word(3, hn::InterleaveUpper(pairs, high01, high23));
  }
}
#endif

// Whether codes are transposed as they are stored.
inline constexpr bool transposes_codes = converts_f16 && HWY_TARGET != HWY_SCALAR;

#if HWY_TARGET != HWY_SCALAR
// The elements of codes that lie in the first 16 bytes of a row.
template <Code code>
inline constexpr Index code_block = is_nibble<code> ? 32 : 16;

// Does what transpose_block does for codes, which are transposed as they are stored. The elements
// lack their scales; those of E4M3 are divided by `held` too.
template <Code code, class Take>
HWY_INLINE void transpose_code_block(Lanes d, const std::byte* HWY_RESTRICT rows, Index stride,
                                     const Take& take) {
  const hn::Repartition<std::uint8_t, Lanes> d8;
  const Halves d16;
  const hn::RebindToUnsigned<Lanes> d32;
  const hn::Half<decltype(d8)> half8;
  // The 128-bit block b of `words` holds four bytes of each of the rows 4 b to 4 b + 3: the words
  // are columns.
  // Always inlined, as below, so that sums stay in registers.
  const auto take_words = [&](Index byte, auto words) HWY_ATTR __attribute__((always_inline)) {
    auto bytes = hn::BitCast(d8, words);
    if constexpr (lanes > 4) {
      alignas(64) static constexpr auto columns_together = [] {
        std::array<std::int32_t, lanes> from{};
        for (std::size_t i = 0; i < from.size(); ++i)
          from[i] = static_cast<std::int32_t>(i % (lanes / 4) * 4 + i / (lanes / 4));
        return from;
      }();
      bytes =
          hn::BitCast(d8, hn::TableLookupLanes(hn::BitCast(d32, words),
                                               hn::SetTableIndices(d32, columns_together.data())));
    }
    const auto take_two = [&](Index column, auto two) HWY_ATTR __attribute__((always_inline)) {
      if constexpr (is_nibble<code>) {
        const auto nibbles = [&](auto v) HWY_ATTR {
          return halves_of<code>(d16, bytes_of_nibbles(half8, v));
        };
        const auto first = nibbles(hn::And(two, hn::Set(half8, std::uint8_t{0xF}))),
                   second = nibbles(hn::ShiftRight<4>(two));
        take(2 * column, lower_floats(first));
        take(2 * column + 1, lower_floats(second));
        take(2 * column + 2, upper_floats(first));
        take(2 * column + 3, upper_floats(second));
      } else {
        const auto h = halves_of<code>(d16, two);
        take(column, lower_floats(h));
        take(column + 1, upper_floats(h));
      }
    };
    take_two(byte, hn::LowerHalf(half8, bytes));
    take_two(byte + 2, hn::UpperHalf(half8, bytes));
  };
  const auto r0 = hn::BitCast(d8, load_blocks(d, rows, stride)),
             r1 = hn::BitCast(d8, load_blocks(d, rows + stride, stride)),
             r2 = hn::BitCast(d8, load_blocks(d, rows + 2 * stride, stride)),
             r3 = hn::BitCast(d8, load_blocks(d, rows + 3 * stride, stride));
  const auto low01 = hn::BitCast(d16, hn::InterleaveLower(d8, r0, r1)),
             high01 = hn::BitCast(d16, hn::InterleaveUpper(d8, r0, r1)),
             low23 = hn::BitCast(d16, hn::InterleaveLower(d8, r2, r3)),
             high23 = hn::BitCast(d16, hn::InterleaveUpper(d8, r2, r3));
  take_words(0, hn::InterleaveLower(d16, low01, low23));
  take_words(4, hn::InterleaveUpper(d16, low01, low23));
  take_words(8, hn::InterleaveLower(d16, high01, high23));
  take_words(12, hn::InterleaveUpper(d16, high01, high23));
}
#endif

// Gathers element `column` of as many rows as a vector has lanes.
template <Dtype dtype>
HWY_INLINE Vector gather_column(Lanes d, const std::byte* rows, Index stride, Index column) {
  float elements[lanes];
  for (Index r = 0; r < lanes; ++r) {
    if constexpr (dtype == Dtype::bf16)
      elements[r] = from_bf16(reinterpret_cast<const std::uint16_t*>(rows + r * stride)[column]);
    else if constexpr (dtype == Dtype::f16)
      elements[r] = from_f16(reinterpret_cast<const std::uint16_t*>(rows + r * stride)[column]);
    else elements[r] = reinterpret_cast<const float*>(rows + r * stride)[column];
  }
  return hn::LoadU(d, elements);
}

// The rows of a panel of keys, in two halves. Each half has as many rows as a vector has lanes,
// where they are stored or in scratch.
struct PanelRows {
  Dtype dtype;
  const std::byte* half[2];
  Index stride;  // bytes from one row to the next
  // for each half: bytes from a row to the row that is fetched into the cache meanwhile; 0 if none
  Index ahead[2];
  // of codes, which are read where they are stored: [group of columns][row], `held` included
  const float* scales = nullptr;
  Index group = 0;
};

// Each block of 16 bytes of the rows fetches its share of their cache lines.
HWY_INLINE void prefetch_rows(const PanelRows& rows, Index block) {
  const Index first = block % 4 * (lanes / 4);
  for (Index half = 0; half < 2; ++half)
    if (rows.ahead[half] != 0)
      for (Index r = first; r < first + lanes / 4; ++r)
        hwy::Prefetch(rows.half[half] + rows.ahead[half] + r * rows.stride + block / 4 * 64);
}

// Calls take(half, column, its elements) for every column in order.
template <Dtype dtype, class Take>
HWY_INLINE void transpose_rows(Lanes d, const PanelRows& rows, Index columns, const Take& take) {
  static_assert(lanes == 1 || lanes == 4 || lanes == 8 || lanes == 16);
  Index c = 0;
#if HWY_TARGET != HWY_SCALAR
  constexpr Index bytes = bytes_of<dtype>, block = 16 / bytes;
  for (; c + block <= columns; c += block) {
    prefetch_rows(rows, c / block);
    transpose_block<dtype>(d, rows.half[0] + c * bytes, rows.stride,
                           [&](Index i, Vector v) HWY_ATTR { take(0, c + i, v); });
    transpose_block<dtype>(d, rows.half[1] + c * bytes, rows.stride,
                           [&](Index i, Vector v) HWY_ATTR { take(1, c + i, v); });
  }
#endif
  for (; c < columns; ++c) {
    take(0, c, gather_column<dtype>(d, rows.half[0], rows.stride, c));
    take(1, c, gather_column<dtype>(d, rows.half[1], rows.stride, c));
  }
}

#if HWY_TARGET != HWY_SCALAR
// Does the same for codes. Groups of columns that share a scale are whole blocks.
template <Code code, class Take>
HWY_INLINE void transpose_codes(Lanes d, const PanelRows& rows, Index columns, const Take& take) {
  constexpr Index block = code_block<code>;
  const float* values = decoded_values(rows.dtype);
  for (Index c = 0; c < columns; c += block) {
    const float* scales = rows.scales + c / rows.group * panel_width;
    if (c + block <= columns) prefetch_rows(rows, c / block);
    const auto take_half = [&](auto half) HWY_ATTR __attribute__((always_inline)) {
      const Vector scale = hn::Load(d, scales + half() * lanes);
      const std::byte* from = rows.half[half()] + c * 16 / block;
      const auto scaled = [&](Index i, Vector v) HWY_ATTR
          __attribute__((always_inline)) { take(half(), c + i, hn::Mul(v, scale)); };
      if (c + block <= columns) return transpose_code_block<code>(d, from, rows.stride, scaled);
      for (Index i = 0; c + i < columns; ++i) {
        float elements[lanes];
        for (Index r = 0; r < lanes; ++r) {
          const auto byte = static_cast<std::uint32_t>(from[r * rows.stride + i * 16 / block]);
          elements[r] =
              values[is_nibble<code> ? byte >> (i % 2 * 4) & 0xF : byte] * (1 / held<code>);
        }
        scaled(i, hn::LoadU(d, elements));
      }
    };
    take_half(std::integral_constant<Index, 0>());
    take_half(std::integral_constant<Index, 1>());
  }
}

// Rows of codes as an operand of register blocks (register_block-inl.h), each with one scale.
template <Code code>
struct CodeOperand {
  const std::byte* HWY_RESTRICT row;
  Index row_bytes, ahead;
  const float* scale;
  HWY_INLINE Vector load(Lanes d, std::size_t panel, std::size_t half) const {
    const hn::Rebind<std::uint16_t, Lanes> d16;
    const auto column = static_cast<Index>((2 * panel + half) * hn::Lanes(d));
    if (half == 0) hwy::Prefetch(row + ahead + column * 16 / code_block<code>);
    const auto codes = load_bytes<code>(hn::Rebind<std::uint8_t, Lanes>(),
                                        reinterpret_cast<const std::uint8_t*>(row), column);
    const hn::Rebind<hwy::float16_t, Lanes> half_floats;
    return hn::Mul(hn::PromoteTo(d, hn::BitCast(half_floats, halves_of<code>(d16, codes))),
                   hn::Set(d, *scale));
  }
  HWY_INLINE void next() {
    row += row_bytes;
    ++scale;
  }
};
#endif

// ---- Packing ------------------------------------------------------------------------------------

struct PackedValues {
  const float* data;  // [panel of columns][tile keys][panel width]
  bool not_finite;
};

// Rows of values that are read where they are stored, at even distances.
struct ValuesInPlace {
  const std::byte* data = nullptr;
  Index count = 0;
  Dtype dtype = Dtype::f32;
  Index stride = 0, ahead = 0;       // as in PanelRows
  const float* scales = nullptr;     // of codes: one for each value, `held` included
  const std::byte* zeros = nullptr;  // of pairs: a row of zeros
};

// ---- A few rows with keys and values where they are stored ------------------------------------

// Does for each of the rows what score_panel does, on a panel of keys that is not packed: floats
// (stored_rows.cc) or codes (stored_codes.cc).
void score_stored_keys(const float* q, Index rows, Index dim, const PanelRows& keys, float scale,
                       float* scores);
void score_stored_codes(const float* q, Index rows, Index dim, const PanelRows& keys, float scale,
                        float* scores);
// Does it for a block of rows. transpose(take) calls take as transpose_rows() does.
template <std::size_t... R, class Transpose>
HWY_INLINE void score_transposed(std::index_sequence<R...>, const float* q, float scale,
                                 float* scores, const Transpose& transpose) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  Vector left[] = {((void)R, hn::Zero(d))...}, right[] = {((void)R, hn::Zero(d))...};
  transpose([&](Index half, Index c, Vector column) HWY_ATTR __attribute__((always_inline)) {
    const float* row = q + c * static_cast<Index>(sizeof...(R));
    if (half == 0) ((left[R] = hn::MulAdd(hn::Set(d, row[R]), column, left[R])), ...);
    else ((right[R] = hn::MulAdd(hn::Set(d, row[R]), column, right[R])), ...);
  });
  const Vector s = hn::Set(d, scale);
  ((hn::Store(hn::Mul(left[R], s), d, scores + R * score_stride),
    hn::Store(hn::Mul(right[R], s), d, scores + R * score_stride + n)),
   ...);
}

// accumulator = correction * accumulator + P V for each of the rows. weights points to the weight
// of the first of the `count` values; dim is a multiple of a panel's columns.
void add_stored_values(const float* weights, Index rows, Index dim, const ValuesInPlace& values,
                       const float* correction, float* accumulator, Index accumulator_stride);
void add_stored_codes(const float* weights, Index rows, Index dim, const ValuesInPlace& values,
                      const float* correction, float* accumulator, Index accumulator_stride);
// Does it for values that operand_of(first column) gives.
template <class OperandOf>
HWY_INLINE void add_values(const float* weights, Index rows, Index dim, Index count,
                           const float* correction, float* accumulator, Index accumulator_stride,
                           const OperandOf& operand_of) {
  if (rows == 1)
    return for_panels(0, dim, [&](auto panels, Index c) HWY_ATTR {
      value_row(panels, weights, operand_of(c), count, correction[0], accumulator + c);
    });
  for_small_blocks(0, rows, [&](auto block, Index r) HWY_ATTR {
    for (Index c = 0; c < dim; c += panel_width)
      value_panel(block, weights + r * score_stride, operand_of(c), count, correction + r,
                  accumulator + r * accumulator_stride + c, accumulator_stride);
  });
}

// As many of the values [j, j + count) as lie in one page, where they are stored; without data if
// they cannot be read there.
inline ValuesInPlace first_run(const StoredRows& stored, Index j, Index count) {
  const Index run =
      stored.pages ? std::min(count, stored.page_size - stored.place_of(j).slot) : count;
  const auto [data, stride] = rows_in_place(stored, j, run);
  return {data, run, stored.columns.dtype, stride, bytes_ahead(stored, j)};
}

// Packs tiles of K and V. Keys that are not there become 0, up to the end of the panel; nothing
// reads beyond that.
template <class Stages>
class Packer {
 public:
  Packer(const ForwardPlan& plan, const Stages& stages)
      : plan_(plan),
        stages_(stages),
        rows_(allocate_floats(panel_width * plan.problem->shape.dim)),
        value_row_(allocate_floats(plan.padded_value_dim)),
        decoded_(allocate_floats(decoded_rows * plan.padded_value_dim)) {
    std::fill_n(value_row_.get(), plan.padded_value_dim, 0.0f);
  }

  // Returns the keys [j, j + panel_width) of a tile, where they are stored if they can be read
  // there. The result is valid until the next call.
  PanelRows panel(Index group, Index tile, Index j) {
    if (const PanelRows codes = codes_in_place(group, tile, j); codes.scales) return codes;
    return panel_of_floats(group, tile, j);
  }

  // The same, but codes are decoded.
  PanelRows panel_of_floats(Index group, Index tile, Index j) {
    const StoredRows& stored = plan_.stored[usize(group)].keys;
    const Index dim = plan_.problem->shape.dim;
    const Dtype dtype = stored.columns.dtype;
    const auto [key0, begin, end] = place(stored, group, tile);
    if (j >= begin && j + panel_width <= end && reads_in_place(dtype)) {
      const auto [left, stride] = rows_in_place(stored, key0 + j, lanes);
      const std::byte* right = rows_in_place(stored, key0 + j + lanes, lanes).first;
      if (left && right)
        return {dtype,
                {left, right},
                stride,
                {bytes_ahead(stored, key0 + j), bytes_ahead(stored, key0 + j + lanes)}};
    }
    for (Index r = 0; r < panel_width; ++r) {
      float* row = rows_.get() + r * dim;
      if (j + r < begin || j + r >= end) {
        std::fill_n(row, dim, 0.0f);
      } else {
        prefetch_codes(stored, key0 + j + r);
        load_stored_row(stored, key0 + j + r, row);
      }
      if constexpr (Stages::observes)
        stages_.at(Stage::key, {b_, g_, key0 + j + r, 0, 1, dim, row, dim});
    }
    const auto* rows = reinterpret_cast<const std::byte*>(rows_.get());
    return {Dtype::f32, {rows, rows + lanes * dim * 4}, dim * 4, {0, 0}};
  }

  // Packs the keys of a tile into [panel of keys][D][panel width].
  void keys(Index group, Index tile, float* to) {
    const Lanes d;
    const Index dim = plan_.problem->shape.dim;
    const auto [key0, begin, end] = place(plan_.stored[usize(group)].keys, group, tile);
    for (Index j = begin / panel_width * panel_width; j < end; j += panel_width) {
      const auto store = [&](Index half, Index c, Vector column) HWY_ATTR {
        hn::Store(column, d, to + j * dim + c * panel_width + half * lanes);
      };
      const PanelRows rows = panel_of_floats(group, tile, j);
      with_dtype(rows.dtype,
                 [&](auto dtype) HWY_ATTR { transpose_rows<dtype()>(d, rows, dim, store); });
    }
  }

  // Returns where the values of the given keys of a tile lie, beginning with the first key, if they
  // can be read row by row, one panel of columns at a time: where they are stored, or, of codes, in
  // scratch, where they are valid until the next call. Otherwise returns null.
  ValuesInPlace values_in_place(Index group, Index tile, const KeyRange& keys) {
    const StoredRows& stored = plan_.stored[usize(group)].values;
    const Index dim = plan_.problem->shape.value_dim;
    if (!reads_in_place(stored.columns.dtype) || dim % panel_width != 0) return {};
    const Index first = tile * plan_.tiling.keys + keys.begin;
    if (!stored.columns.scales) return first_run(stored, first, keys.end - keys.begin);
    if (const ValuesInPlace codes = codes_of_values(stored, first, keys.end - keys.begin);
        codes.count > 0)
      return codes;
    const Index run = std::min<Index>(decoded_rows, keys.end - keys.begin);
    for (Index j = 0; j < run; ++j) {
      prefetch_codes(stored, first + j);
      load_stored_row(stored, first + j, decoded_.get() + j * dim);
    }
    return {reinterpret_cast<const std::byte*>(decoded_.get()), run, Dtype::f32, dim * 4, 0};
  }

  PackedValues values(Index group, Index tile, float* to) {
    const Lanes d;
    const hn::RebindToSigned<Lanes> bits;
    const StoredRows& stored = plan_.stored[usize(group)].values;
    const Index dim = plan_.problem->shape.value_dim, width = plan_.tiling.keys;
    const auto [key0, begin, end] = place(stored, group, tile);
    // compared as integers, the magnitudes of infinities and NaN are above all others
    auto largest = hn::Zero(bits);
    const auto pack_row = [&](Dtype dtype, const std::byte* row, float* panel) HWY_ATTR {
      for (Index c = 0; c < plan_.padded_value_dim; c += panel_width) {
        if (c + panel_width > dim && row != reinterpret_cast<const std::byte*>(value_row_.get())) {
          load_columns(dtype, row + c * (dtype == Dtype::f32 ? 4 : 2), 1, dim - c,
                       value_row_.get() + c);
          dtype = Dtype::f32;
          row = reinterpret_cast<const std::byte*>(value_row_.get());  // it is 0 behind the columns
        }
        const Vector left = load_vector(d, dtype, row, c),
                     right = load_vector(d, dtype, row, c + lanes);
        largest = hn::Max(
            largest, hn::Max(hn::BitCast(bits, hn::Abs(left)), hn::BitCast(bits, hn::Abs(right))));
        hn::Store(left, d, panel + c * width);
        hn::Store(right, d, panel + c * width + lanes);
      }
    };
    for (Index j = begin; j < end; ++j) {
      const std::byte* row = Stages::observes ? nullptr : rows_in_place(stored, key0 + j, 1).first;
      if (row && stored.columns.dtype == Dtype::f32)
        pack_row(Dtype::f32, row, to + j * panel_width);
      else if (row && stored.columns.dtype == Dtype::bf16)
        pack_row(Dtype::bf16, row, to + j * panel_width);
      else if (row) pack_row(Dtype::f16, row, to + j * panel_width);
      else {
        load_stored_row(stored, key0 + j, value_row_.get());
        if constexpr (Stages::observes)
          stages_.at(Stage::value, {b_, g_, key0 + j, 0, 1, dim, value_row_.get(), dim});
        pack_row(Dtype::f32, reinterpret_cast<const std::byte*>(value_row_.get()),
                 to + j * panel_width);
      }
    }
    return {to, hn::GetLane(hn::MaxOfLanes(bits, largest)) >= 0x7F800000};
  }

 private:
  // Whether what a row of codes means can be had by way of f16, and what f16 is then multiplied by.
  static bool by_halves(const StoredColumns& c, const std::byte* row) {
    return c.dtype != Dtype::f8e4m3 || !has_nan_of_e4m3(row, c.count);
  }
  static std::optional<float> scale_of_halves(const StoredColumns& c, std::uint8_t code) {
    const float scale = from_e8m0(code), of_e4m3 = c.dtype == Dtype::f8e4m3 ? held<Code::e4m3> : 1;
    if (!(scale <= 0x1p127f / of_e4m3)) return std::nullopt;
    return scale * of_e4m3;
  }

  // As many of the values [j, j + count) as are codes that can be read where they are.
  ValuesInPlace codes_of_values(const StoredRows& stored, Index j, Index count) {
    const StoredColumns& c = stored.columns;
    if (!transposes_codes || stored.more.count > 0 || c.group < c.count) return {};
    const auto [page, slot] = stored.place_of(j);
    ValuesInPlace values{c.data + page * c.page_bytes + slot * c.row_bytes};
    values.dtype = c.dtype;
    values.stride = c.row_bytes;
    values.ahead = bytes_ahead(stored, j);
    values.scales = decoded_.get();
    count = std::min(count, decoded_rows);
    if (stored.pages) count = std::min(count, stored.page_size - slot);
    for (; values.count < count; ++values.count) {
      const std::optional<float> scale =
          scale_of_halves(c, c.scales[page * c.page_scales + (slot + values.count) * c.row_scales]);
      if (!scale || !by_halves(c, values.data + values.count * c.row_bytes)) break;
      decoded_[values.count] = *scale;
    }
    return values;
  }

  // The codes of a panel of keys, if all of its rows are there, and what they mean can be had by
  // way of f16.
  PanelRows codes_in_place(Index group, Index tile, Index j) {
    const StoredRows& stored = plan_.stored[usize(group)].keys;
    const StoredColumns& c = stored.columns;
    const auto [key0, begin, end] = place(stored, group, tile);
    const Index block = c.dtype == Dtype::f4e2m1 ? 32 : 16;
    if (!c.scales || !transposes_codes || Stages::observes || stored.more.count > 0 || j < begin ||
        j + panel_width > end || (c.group % block != 0 && c.group < c.count))
      return {};
    PanelRows rows{c.dtype, {}, c.row_bytes, {}, rows_.get(), c.group};
    for (Index half = 0; half < 2; ++half) {
      const Index key = key0 + j + half * lanes;
      const auto [page, slot] = stored.place_of(key);
      if (stored.pages && slot + lanes > stored.page_size) return {};
      rows.half[half] = c.data + page * c.page_bytes + slot * c.row_bytes;
      rows.ahead[half] = bytes_ahead(stored, key);
      for (Index r = 0; r < lanes; ++r) {
        if (!by_halves(c, rows.half[half] + r * c.row_bytes)) return {};
        const std::uint8_t* scales = c.scales + page * c.page_scales + (slot + r) * c.row_scales;
        for (Index g = 0; g * c.group < c.count; ++g) {
          const std::optional<float> scale = scale_of_halves(c, scales[g]);
          if (!scale) return {};
          rows_[g * panel_width + half * lanes + r] = *scale;
        }
      }
    }
    return rows;
  }

  static constexpr bool reads_in_place(Dtype dtype) {
    return !Stages::observes && (dtype != Dtype::f16 || converts_f16);
  }

  TileRows place(const StoredRows& stored, Index group, Index tile) {
    b_ = group / plan_.problem->shape.kv_heads;
    g_ = group % plan_.problem->shape.kv_heads;
    return rows_of_tile(stored, plan_.tiling.keys, tile);
  }

  const ForwardPlan& plan_;
  const Stages& stages_;
  // So few values are decoded at once that they stay in a near cache until they are multiplied.
  static constexpr Index decoded_rows = 16;
  hwy::AlignedFreeUniquePtr<float[]> rows_, value_row_, decoded_;
  Index b_ = 0, g_ = 0;
};

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
