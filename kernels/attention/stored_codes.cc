// What a few rows compute from the codes of keys and values, which are read where they are stored.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/stored_codes.cc"
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/attention/pack-inl.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// Calls body(code). Where codes are not read in place, nothing asks for it.
template <class Body>
HWY_INLINE void with_code([[maybe_unused]] Dtype dtype, [[maybe_unused]] const Body& body) {
  if constexpr (transposes_codes) {
    if (dtype == Dtype::f4e2m1) body(std::integral_constant<Code, Code::e2m1>());
    else if (dtype == Dtype::f8e4m3) body(std::integral_constant<Code, Code::e4m3>());
    else body(std::integral_constant<Code, Code::e5m2>());
  }
}

void score_stored_codes(const float* q, Index rows, Index dim, const PanelRows& keys, float scale,
                        float* scores) {
  with_code(keys.dtype, [&](auto code) HWY_ATTR {
    for_small_blocks(0, rows, [&](auto block, Index r) HWY_ATTR {
      score_transposed(block, q + r * dim, scale, scores + r * score_stride,
                       [&](const auto& take)
                           HWY_ATTR { transpose_codes<code()>(Lanes(), keys, dim, take); });
    });
  });
}

void add_stored_codes(const float* weights, Index rows, Index dim, const ValuesInPlace& values,
                      const float* correction, float* accumulator, Index accumulator_stride) {
  with_code(values.dtype, [&](auto code) HWY_ATTR {
    const auto from = [&](Index c) {
      return CodeOperand<code()>{values.data + c * 16 / code_block<code()>, values.stride,
                                 values.ahead, values.scales};
    };
    add_values(weights, rows, dim, values.count, correction, accumulator, accumulator_stride, from);
  });
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
