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

void score_stored_keys(const float* q, Index rows, Index dim, const PanelRows& keys, float scale,
                       float* scores) {
#if HWY_TARGET != HWY_SCALAR
  if (keys.scales) return score_stored_codes(q, rows, dim, keys, scale, scores);
#endif
  with_dtype(keys.dtype, [&](auto dtype) HWY_ATTR {
    for_small_blocks(0, rows, [&](auto block, Index r) HWY_ATTR {
      score_transposed(block, q + r * dim, scale, scores + r * score_stride,
                       [&](const auto& take)
                           HWY_ATTR { transpose_rows<dtype()>(Lanes(), keys, dim, take); });
    });
  });
}

void add_stored_values(const float* weights, Index rows, Index dim, const ValuesInPlace& values,
                       const float* correction, float* accumulator, Index accumulator_stride) {
#if HWY_TARGET != HWY_SCALAR
  if (values.scales)
    return add_stored_codes(weights, rows, dim, values, correction, accumulator,
                            accumulator_stride);
#endif
  with_dtype(values.dtype, [&](auto dtype) HWY_ATTR {
    const auto from = [&](Index c) {
      return StoredOperand<dtype()>{values.data + c * bytes_of<dtype()>, values.stride,
                                    values.ahead};
    };
    add_values(weights, rows, dim, values.count, correction, accumulator, accumulator_stride, from);
  });
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
