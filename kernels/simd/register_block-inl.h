// Products of a few rows with a panel of packed columns, kept in registers. The file is compiled
// once for each SIMD target.
#include <cstdint>
#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/simd/convert.h"
#include "kernels/simd/elementary-inl.h"
#include "kernels/simd/panels.h"
#include "kernels/simd/scratch.h"

#if defined(ASSAY_KERNELS_REGISTER_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_REGISTER_BLOCK_INL_H_
#undef ASSAY_KERNELS_REGISTER_BLOCK_INL_H_
#else
#define ASSAY_KERNELS_REGISTER_BLOCK_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// Whether there are 32 vector registers, and not 16: AVX-512 in all its versions (a better target
// has a smaller number), and Arm.
inline constexpr bool has_many_registers = (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM;
inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
// A panel is two vectors wide. A register block has so many rows that all accumulators, two
// operands and a broadcast fit into the registers.
inline constexpr Index panel_width = 2 * static_cast<Index>(hn::MaxLanes(Lanes()));
inline constexpr std::size_t block_rows = has_many_registers ? 12 : 6;
// Floats from one row of a tile of scores to the next: the width of the widest tile, and one vector
// more, so that the rows of a register block do not fall onto the same cache sets.
inline constexpr Index score_stride = 128 + 16;
static_assert(panel_alignment % panel_width == 0, "a tile must be whole panels on every target");

template <Dtype dtype>
inline constexpr Index bytes_of = dtype == Dtype::f32 ? 4 : 2;

// Calls body with f32, f16 or bf16 as an integral constant.
template <class Body>
HWY_INLINE void with_dtype(Dtype dtype, const Body& body) {
  if (dtype == Dtype::f32) body(std::integral_constant<Dtype, Dtype::f32>());
  else if (dtype == Dtype::bf16) body(std::integral_constant<Dtype, Dtype::bf16>());
  else body(std::integral_constant<Dtype, Dtype::f16>());
}

// Loads a vector of f16 or bf16 as fp32. Before AVX2 there is no instruction for f16, and Highway's
// substitute takes infinities for finite numbers.
inline constexpr bool converts_f16 = HWY_TARGET <= HWY_AVX2 || HWY_ARCH_ARM;
HWY_INLINE Vector load_narrow(Lanes d, Dtype dtype, const std::uint16_t* from) {
#if HWY_TARGET != HWY_SCALAR
  const hn::Rebind<std::uint16_t, Lanes> codes;
  if (dtype == Dtype::bf16)
    return hn::BitCast(
        d, hn::ShiftLeft<16>(hn::PromoteTo(hn::RebindToUnsigned<Lanes>(), hn::LoadU(codes, from))));
  if constexpr (converts_f16)
    return hn::PromoteTo(d,
                         hn::BitCast(hn::Rebind<hwy::float16_t, Lanes>(), hn::LoadU(codes, from)));
#endif
  float lanes[hn::MaxLanes(Lanes())];
  for (std::size_t i = 0; i < hn::Lanes(d); ++i)
    lanes[i] = dtype == Dtype::bf16 ? from_bf16(from[i]) : from_f16(from[i]);
  return hn::LoadU(d, lanes);
}

HWY_INLINE Vector load_vector(Lanes d, Dtype dtype, const std::byte* row, Index column) {
  if (dtype == Dtype::f32) return hn::LoadU(d, reinterpret_cast<const float*>(row) + column);
  return load_narrow(d, dtype, reinterpret_cast<const std::uint16_t*>(row) + column);
}

// One kind of the operand B in A B, which is read row after row: packed panels, with `panel_step`
// floats from one panel to the next.
struct PackedOperand {
  const float* HWY_RESTRICT row;
  Index panel_step = 0;
  HWY_INLINE Vector load(Lanes d, std::size_t panel, std::size_t half) const {
    return hn::Load(d, row + static_cast<Index>(panel) * panel_step + half * hn::Lanes(d));
  }
  HWY_INLINE void next() { row += panel_width; }
};

// The other kind: rows where they are stored. While a row is read, the row `ahead` bytes further on
// is fetched into the cache.
template <Dtype dtype>
struct StoredOperand {
  const std::byte* HWY_RESTRICT row;
  Index row_bytes, ahead;
  HWY_INLINE Vector load(Lanes d, std::size_t panel, std::size_t half) const {
    const auto column = static_cast<Index>((2 * panel + half) * hn::Lanes(d));
    hwy::Prefetch(row + ahead + column * bytes_of<dtype>);
    return load_vector(d, dtype, row, column);
  }
  HWY_INLINE void next() { row += row_bytes; }
};

// Adds A B to the accumulators. Element (r, k) of A lies at a[r * row_step + k * depth_step]. The
// steps are constants, so that the loop computes no addresses.
template <std::size_t row_step, std::size_t depth_step, class Rows, std::size_t... R>
HWY_INLINE void multiply_add(Lanes d, std::index_sequence<R...>, const float* HWY_RESTRICT a,
                             Rows b, Index depth, Vector (&left)[sizeof...(R)],
                             Vector (&right)[sizeof...(R)]) {
  for (Index k = 0; k < depth; ++k, a += depth_step, b.next()) {
    const Vector b0 = b.load(d, 0, 0), b1 = b.load(d, 0, 1);
    ((left[R] = hn::MulAdd(hn::Set(d, a[R * row_step]), b0, left[R]),
      right[R] = hn::MulAdd(hn::Set(d, a[R * row_step]), b1, right[R])),
     ...);
  }
}

// Computes a * b + c, rounded as the register blocks round it on this target: once with FMA,
// otherwise twice.
HWY_INLINE float multiply_add_one(float a, float b, float c) {
  const hn::CappedTag<float, 1> d;
  return hn::GetLane(hn::MulAdd(hn::Set(d, a), hn::Set(d, b), hn::Set(d, c)));
}

// Computes scores = scale * Q K^T for one panel of keys. Q is interleaved: for each d, the elements
// of the block's rows lie side by side.
template <std::size_t... R>
HWY_INLINE void score_panel(std::index_sequence<R...> rows, const float* q, Index dim,
                            const float* keys, float scale, float* scores) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  Vector left[] = {((void)R, hn::Zero(d))...}, right[] = {((void)R, hn::Zero(d))...};
  multiply_add<1, sizeof...(R)>(d, rows, q, PackedOperand{keys}, dim, left, right);
  const Vector s = hn::Set(d, scale);
  ((hn::Store(hn::Mul(left[R], s), d, scores + R * score_stride),
    hn::Store(hn::Mul(right[R], s), d, scores + R * score_stride + n)),
   ...);
}

// Computes accumulator = correction * accumulator + P V for one panel of value columns.
template <class Rows, std::size_t... R>
HWY_INLINE void value_panel(std::index_sequence<R...> rows, const float* weights, Rows values,
                            Index keys, const float* correction, float* accumulator,
                            Index accumulator_stride) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  const auto corrected = [&](std::size_t r, std::size_t half) HWY_ATTR {
    return hn::Mul(hn::Load(d, accumulator + static_cast<Index>(r) * accumulator_stride + half * n),
                   hn::Set(d, correction[r]));
  };
  Vector left[] = {corrected(R, 0)...}, right[] = {corrected(R, 1)...};
  multiply_add<score_stride, 1>(d, rows, weights, values, keys, left, right);
  ((hn::Store(left[R], d, accumulator + static_cast<Index>(R) * accumulator_stride),
    hn::Store(right[R], d, accumulator + static_cast<Index>(R) * accumulator_stride + n)),
   ...);
}

// Computes A B^T for one panel of rows of B, times `scale`. The rows of A begin at `a` and lie in
// panels of columns, with `a_panel` floats from one panel to the next. B is a panel in which the
// elements of its rows lie side by side for each column.
template <std::size_t out_stride, std::size_t... R>
HWY_INLINE void dot_panel(std::index_sequence<R...> rows, const float* a, Index a_panel,
                          const float* b, Index columns, float scale, float* out) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  Vector left[] = {((void)R, hn::Zero(d))...}, right[] = {((void)R, hn::Zero(d))...};
  for (Index c = 0; c < columns; c += panel_width, a += a_panel, b += panel_width * panel_width)
    multiply_add<panel_width, 1>(d, rows, a, PackedOperand{b}, std::min(panel_width, columns - c),
                                 left, right);
  const Vector s = hn::Set(d, scale);
  ((hn::Store(hn::Mul(left[R], s), d, out + R * out_stride),
    hn::Store(hn::Mul(right[R], s), d, out + R * out_stride + n)),
   ...);
}

// Computes total += A B for one panel of columns, where the product is summed on its own first. The
// rows of the total lie side by side, as those of B do.
template <std::size_t row_step, std::size_t depth_step, std::size_t... R>
HWY_INLINE void add_product(std::index_sequence<R...> rows, const float* a, const float* b,
                            Index depth, float* total) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  Vector left[] = {((void)R, hn::Zero(d))...}, right[] = {((void)R, hn::Zero(d))...};
  multiply_add<row_step, depth_step>(d, rows, a, PackedOperand{b}, depth, left, right);
  ((hn::Store(hn::Add(hn::Load(d, total + R * panel_width), left[R]), d, total + R * panel_width),
    hn::Store(hn::Add(hn::Load(d, total + R * panel_width + n), right[R]), d,
              total + R * panel_width + n)),
   ...);
}

// A single row has one chain of sums for each panel, so several panels are computed side by side to
// hide the latency of an addition. The sums are the same as above, for the row a[0], a[1], ...; P
// counts the panels.
template <class Rows, std::size_t... P>
HWY_INLINE void multiply_add_row(Lanes d, std::index_sequence<P...>, const float* HWY_RESTRICT a,
                                 Rows b, Index depth, Vector (&left)[sizeof...(P)],
                                 Vector (&right)[sizeof...(P)]) {
  for (Index k = 0; k < depth; ++k, b.next()) {
    const Vector x = hn::Set(d, a[k]);
    ((left[P] = hn::MulAdd(x, b.load(d, P, 0), left[P]),
      right[P] = hn::MulAdd(x, b.load(d, P, 1), right[P])),
     ...);
  }
}

// Does what score_panel does, for one row and several panels.
template <std::size_t... P>
HWY_INLINE void score_row(std::index_sequence<P...> panels, const float* q, Index dim,
                          const float* keys, float scale, float* scores) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  Vector left[] = {((void)P, hn::Zero(d))...}, right[] = {((void)P, hn::Zero(d))...};
  multiply_add_row(d, panels, q, PackedOperand{keys, panel_width * dim}, dim, left, right);
  const Vector s = hn::Set(d, scale);
  ((hn::Store(hn::Mul(left[P], s), d, scores + P * panel_width),
    hn::Store(hn::Mul(right[P], s), d, scores + P * panel_width + n)),
   ...);
}

// Does what value_panel does, for one row and several panels.
template <class Rows, std::size_t... P>
HWY_INLINE void value_row(std::index_sequence<P...> panels, const float* weights, Rows values,
                          Index keys, float correction, float* accumulator) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  const Vector c = hn::Set(d, correction);
  Vector left[] = {hn::Mul(hn::Load(d, accumulator + P * panel_width), c)...},
         right[] = {hn::Mul(hn::Load(d, accumulator + P * panel_width + n), c)...};
  multiply_add_row(d, panels, weights, values, keys, left, right);
  ((hn::Store(left[P], d, accumulator + P * panel_width),
    hn::Store(right[P], d, accumulator + P * panel_width + n)),
   ...);
}

// Calls body(index_sequence, first column) over the panels of [begin, end): by fours, then by twos,
// then by ones.
template <class Body>
HWY_INLINE void for_panels(Index begin, Index end, const Body& body) {
  for (; begin + 4 * panel_width <= end; begin += 4 * panel_width)
    body(std::make_index_sequence<4>(), begin);
  for (; begin + 2 * panel_width <= end; begin += 2 * panel_width)
    body(std::make_index_sequence<2>(), begin);
  for (; begin < end; begin += panel_width) body(std::make_index_sequence<1>(), begin);
}

// Calls body(index_sequence, first row) over [r, rows): for register blocks of four rows, and then
// for one block with the rows that are left.
template <class Body>
HWY_INLINE void for_small_blocks(Index r, Index rows, const Body& body) {
  for (; r + 4 <= rows; r += 4) body(std::make_index_sequence<4>(), r);
  if (rows - r == 3) body(std::make_index_sequence<3>(), r);
  if (rows - r == 2) body(std::make_index_sequence<2>(), r);
  if (rows - r == 1) body(std::make_index_sequence<1>(), r);
}

// Does the same over [0, rows), with full register blocks first.
template <class Body>
HWY_INLINE void for_row_blocks(Index rows, const Body& body) {
  Index r = 0;
  for (; r + static_cast<Index>(block_rows) <= rows; r += static_cast<Index>(block_rows))
    body(std::make_index_sequence<block_rows>(), r);
  for_small_blocks(r, rows, body);
}

// Loads `count` elements of dtype f32, f16 or bf16 as fp32, whatever the stride between them is.
inline void load_columns(Dtype dtype, const void* data, Index stride, Index count,
                         float* HWY_RESTRICT to) {
  if (dtype == Dtype::f32) {
    const float* from = static_cast<const float*>(data);
    for (Index i = 0; i < count; ++i) to[i] = from[i * stride];
    return;
  }
  const std::uint16_t* from = static_cast<const std::uint16_t*>(data);
  const Lanes d;
  const auto n = static_cast<Index>(hn::Lanes(d));
  Index i = 0;
  if (stride == 1)
    for (; i + n <= count; i += n) hn::StoreU(load_narrow(d, dtype, from + i), d, to + i);
  for (; i < count; ++i)
    to[i] = dtype == Dtype::bf16 ? from_bf16(from[i * stride]) : from_f16(from[i * stride]);
}

// Loads one row of a tensor as fp32.
inline void load_row(const TensorView& t, Index b, Index h, Index i, Index columns,
                     float* HWY_RESTRICT row) {
  const Index bytes = t.dtype == Dtype::f32 ? 4 : 2;
  load_columns(t.dtype, static_cast<const std::byte*>(t.data) + t.at(b, h, i, 0) * bytes,
               t.stride[3], columns, row);
}

// Stores one row of a tensor; every element is rounded once.
inline void store_row(const TensorView& t, Index b, Index h, Index i, Index columns,
                      const float* HWY_RESTRICT row) {
  const Index at = t.at(b, h, i, 0), stride = t.stride[3];
  if (t.dtype == Dtype::f32) {
    float* to = static_cast<float*>(t.data) + at;
    for (Index d = 0; d < columns; ++d) to[d * stride] = row[d];
  } else {
    std::uint16_t* to = static_cast<std::uint16_t*>(t.data) + at;
    if (t.dtype == Dtype::bf16)
      for (Index d = 0; d < columns; ++d) to[d * stride] = to_bf16(row[d]);
    else
      for (Index d = 0; d < columns; ++d) to[d * stride] = to_f16(row[d]);
  }
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
