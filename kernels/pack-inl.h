// Stored rows of K and V as packed fp32 panels; compiled once for each SIMD target.
#include <algorithm>

#include "kernels/attention_plan.h"
#include "kernels/codec.h"
#include "kernels/register_block-inl.h"
#include "kernels/stages.h"

#if defined(ASSAY_KERNELS_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_PACK_INL_H_
#undef ASSAY_KERNELS_PACK_INL_H_
#else
#define ASSAY_KERNELS_PACK_INL_H_
#endif

#include <hwy/aligned_allocator.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

inline hwy::AlignedFreeUniquePtr<float[]> allocate(Index floats) {
  auto p = hwy::AllocateAligned<float>(static_cast<std::size_t>(std::max<Index>(floats, 1)));
  if (!p) throw std::bad_alloc();
  return p;
}

// ---- Reading --------------------------------------------------------------------------------------------

inline void load_stored_columns(const StoredColumns& c, Index page, Index slot, float* HWY_RESTRICT to) {
  const std::byte* from = c.data + page * c.page_bytes + slot * c.row_bytes;
  if (!c.scales) return load_columns(c.dtype, from, c.stride, c.count, to);
  const std::uint8_t* scales = c.scales + page * c.page_scales + slot * c.row_scales;
  const float* values = decoded_values(c.dtype);
  for (Index begin = 0; begin < c.count; begin += c.group, ++scales) {
    const float scale = from_e8m0(*scales);
    const Index end = std::min(begin + c.group, c.count);
    if (c.dtype == Dtype::f4e2m1)
      for (Index i = begin; i < end; ++i) to[i] = values[static_cast<std::uint8_t>(from[i / 2]) >> (i % 2 * 4) & 0xF] * scale;
    else
      for (Index i = begin; i < end; ++i) to[i] = values[static_cast<std::uint8_t>(from[i])] * scale;
  }
}

// Row j in fp32: where it lies, if it is stored so, else in `scratch`.
inline const float* stored_row(const StoredRows& rows, Index j, bool copy, float* scratch) {
  const Index page = rows.pages ? rows.pages[j / rows.page_size] : 0, slot = rows.pages ? j % rows.page_size : j;
  const StoredColumns& c = rows.columns;
  if (!copy && c.dtype == Dtype::f32 && c.stride == 1 && rows.more.count == 0)
    return reinterpret_cast<const float*>(c.data + page * c.page_bytes + slot * c.row_bytes);
  load_stored_columns(c, page, slot, scratch);
  if (rows.more.count > 0) load_stored_columns(rows.more, page, slot, scratch + c.count);
  return scratch;
}

inline constexpr Index lanes = panel_width / 2;

// ---- Transposing ----------------------------------------------------------------------------------------

#if HWY_TARGET != HWY_SCALAR
// 128-bit block b of the result is rows[4 * b][at .. at + 4).
template <class D>
HWY_INLINE hn::Vec<D> load_blocks(D d, const float* const* rows, Index at) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, rows[0] + at);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, load_blocks(half, rows + hn::MaxLanes(D()) / 2, at), load_blocks(half, rows, at));
  }
}
#endif

// to[d * panel_width + r] = rows[r][d] for as many rows as a vector has lanes.
HWY_INLINE void transpose_rows(const float* const* rows, Index dim, float* HWY_RESTRICT to) {
  Index at = 0;
#if HWY_TARGET != HWY_SCALAR
  const Lanes d;
  const hn::Repartition<double, Lanes> pairs;
  for (; at + 4 <= dim; at += 4, to += 4 * panel_width) {
    const Vector r0 = load_blocks(d, rows, at), r1 = load_blocks(d, rows + 1, at), r2 = load_blocks(d, rows + 2, at), r3 = load_blocks(d, rows + 3, at);
    const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1)), high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
    const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3)), high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
    hn::Store(hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)), d, to);
    hn::Store(hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)), d, to + panel_width);
    hn::Store(hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23)), d, to + 2 * panel_width);
    hn::Store(hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23)), d, to + 3 * panel_width);
  }
#endif
  for (; at < dim; ++at, to += panel_width)
    for (Index r = 0; r < lanes; ++r) to[r] = rows[r][at];
}

// ---- Packing --------------------------------------------------------------------------------------------

struct PackedTile {
  const float* keys;    // [panel of keys][D][panel width]
  const float* values;  // [panel of columns][tile keys][panel width]
  bool values_not_finite;
};

// Packs tiles of K and V. Keys that are not there become 0 up to the next whole panel; beyond it, nothing reads.
template <class Stages>
class Packer {
 public:
  Packer(const ForwardPlan& plan, const Stages& stages)
      : plan_(plan), stages_(stages), rows_(allocate(lanes * plan.problem->shape.dim)), value_row_(allocate(plan.padded_value_dim)) {
    std::fill_n(value_row_.get(), plan.padded_value_dim, 0.0f);
  }

  // True if some value is infinite or NaN.
  bool pack(Index group, Index tile, float* keys, float* values) {
    const Index width = plan_.tiling.keys;
    key0_ = tile * width;
    const StoredKeyValues& stored = plan_.stored[static_cast<std::size_t>(group)];
    b_ = group / plan_.problem->shape.kv_heads;
    g_ = group % plan_.problem->shape.kv_heads;
    const Index begin = std::clamp<Index>(stored.keys.begin - key0_, 0, width), end = std::clamp<Index>(stored.keys.end - key0_, begin, width);
    pack_keys(stored.keys, begin, end, keys);
    return pack_values(stored.values, begin, end, values);
  }

 private:
  void pack_keys(const StoredRows& stored, Index begin, Index end, float* keys) {
    const Index dim = plan_.problem->shape.dim;
    for (Index j0 = begin / panel_width * panel_width; j0 < (end + panel_width - 1) / panel_width * panel_width; j0 += lanes) {
      const float* rows[lanes];
      for (Index r = 0; r < lanes; ++r) {
        float* scratch = rows_.get() + r * dim;
        if (j0 + r < begin || j0 + r >= end) {
          std::fill_n(scratch, dim, 0.0f);
          rows[r] = scratch;
          continue;
        }
        rows[r] = stored_row(stored, key0_ + j0 + r, Stages::observes, scratch);
        if constexpr (Stages::observes) stages_.at(Stage::key, {b_, g_, key0_ + j0 + r, 0, 1, dim, scratch, dim});
      }
      transpose_rows(rows, dim, keys + j0 / panel_width * panel_width * dim + j0 % panel_width);
    }
  }

  bool pack_values(const StoredRows& stored, Index begin, Index end, float* values) {
    const Lanes d;
    const Index dim = plan_.problem->shape.value_dim, width = plan_.tiling.keys, whole = dim / panel_width * panel_width;
    Vector total = hn::Zero(d);  // 0 * x is NaN exactly for the values that a weight of 0 does not erase
    const auto copy = [&](const float* from, float* to) HWY_ATTR {
      const Vector left = hn::LoadU(d, from), right = hn::LoadU(d, from + lanes);
      hn::Store(left, d, to);
      hn::Store(right, d, to + lanes);
      total = hn::MulAdd(left, hn::Zero(d), hn::MulAdd(right, hn::Zero(d), total));
    };
    for (Index j = begin; j < end; ++j) {
      const float* row = stored_row(stored, key0_ + j, Stages::observes, value_row_.get());
      if constexpr (Stages::observes) stages_.at(Stage::value, {b_, g_, key0_ + j, 0, 1, dim, value_row_.get(), dim});
      float* to = values + j * panel_width;
      for (Index c = 0; c < whole; c += panel_width) copy(row + c, to + c * width);
      if (whole == dim) continue;
      if (row != value_row_.get()) std::copy(row + whole, row + dim, value_row_.get() + whole);
      copy(value_row_.get() + whole, to + whole * width);
    }
    const float sum = hn::GetLane(hn::SumOfLanes(d, total));
    return sum != sum;
  }

  const ForwardPlan& plan_;
  const Stages& stages_;
  hwy::AlignedFreeUniquePtr<float[]> rows_, value_row_;
  Index b_ = 0, g_ = 0, key0_ = 0;
};

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
