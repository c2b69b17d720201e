// What a few rows compute from keys and values that are read where they are stored, for each dtype
// of these: apart from attention_splits.cc, which calls it, because it takes as long to compile.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/stored_rows.cc"
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/attention/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

template class Packer<NoStages>;

namespace {

template <Dtype dtype, std::size_t... R>
HWY_INLINE void score_rows(std::index_sequence<R...>, const float* q, Index dim,
                           const PanelRows& keys, float scale, float* scores) {
  const Lanes d;
  const std::size_t n = hn::Lanes(d);
  Vector left[] = {((void)R, hn::Zero(d))...}, right[] = {((void)R, hn::Zero(d))...};
  transpose_rows<dtype>(d, keys, dim, [&](Index half, Index c, Vector column) HWY_ATTR {
    const float* row = q + c * static_cast<Index>(sizeof...(R));
    if (half == 0) ((left[R] = hn::MulAdd(hn::Set(d, row[R]), column, left[R])), ...);
    else ((right[R] = hn::MulAdd(hn::Set(d, row[R]), column, right[R])), ...);
  });
  const Vector s = hn::Set(d, scale);
  ((hn::Store(hn::Mul(left[R], s), d, scores + R * score_stride),
    hn::Store(hn::Mul(right[R], s), d, scores + R * score_stride + n)),
   ...);
}

}  // namespace

void score_stored_keys(const float* q, Index rows, Index dim, const PanelRows& keys, float scale,
                       float* scores) {
  with_dtype(keys.dtype, [&](auto dtype) HWY_ATTR {
    for_small_blocks(0, rows, [&](auto block, Index r) HWY_ATTR {
      score_rows<dtype()>(block, q + r * dim, dim, keys, scale, scores + r * score_stride);
    });
  });
}

void add_stored_values(const float* weights, Index rows, Index dim, const ValuesInPlace& values,
                       const float* correction, float* accumulator, Index accumulator_stride) {
  with_dtype(values.dtype, [&](auto dtype) HWY_ATTR {
    const auto from = [&](Index c) {
      return StoredOperand<dtype()>{values.data + c * bytes_of<dtype()>, values.stride,
                                    values.ahead};
    };
    if (rows == 1)
      return for_panels(0, dim, [&](auto panels, Index c) HWY_ATTR {
        value_row(panels, weights, from(c), values.count, correction[0], accumulator + c);
      });
    for_small_blocks(0, rows, [&](auto block, Index r) HWY_ATTR {
      for (Index c = 0; c < dim; c += panel_width)
        value_panel(block, weights + r * score_stride, from(c), values.count, correction + r,
                    accumulator + r * accumulator_stride + c, accumulator_stride);
    });
  });
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
