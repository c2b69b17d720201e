// Masks and biases that differ from key to key. The file is compiled once for each SIMD target.
#include <cstdint>
#include <algorithm>
#include <limits>

#include "kernels/simd/convert.h"
#include "kernels/simd/register_block-inl.h"
#include "kernels/attention/stages.h"
#include "problem/attention.h"

#if defined(ASSAY_KERNELS_ELEMENT_BIAS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_ELEMENT_BIAS_INL_H_
#undef ASSAY_KERNELS_ELEMENT_BIAS_INL_H_
#else
#define ASSAY_KERNELS_ELEMENT_BIAS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

// The biases that differ from key to key, as one number for each key; -inf where a key is masked.
class ElementBias {
 public:
  explicit ElementBias(const Attention& p)
      : p_(p), active_(p.keep || p.bias || !p.alibi_slopes.empty() || !p.query_segment.empty()) {}

  bool active() const { return active_; }

  // Writes bias[j] for the keys [key0, key0 + count) of one row.
  void row(Index b, Index h, Index i, Index key0, Index count, float* HWY_RESTRICT bias) const {
    if (p_.alibi_slopes.empty()) {
      std::fill_n(bias, count, 0.0f);
    } else {
      const float slope = p_.alibi_slopes[h];
      const Index diagonal = i + p_.offset_of(b);
      for (Index j = 0; j < count; ++j) bias[j] = slope * static_cast<float>(key0 + j - diagonal);
    }
    if (p_.bias) add_tensor(b, h, i, key0, count, bias);
    if (p_.keep) {
      const std::uint8_t* keep =
          p_.keep.data + b * p_.keep.stride[0] + h * p_.keep.stride[1] + i * p_.keep.stride[2];
      for (Index j = 0; j < count; ++j)
        bias[j] = keep[(key0 + j) * p_.keep.stride[3]] ? bias[j] : minus_infinity;
    }
    if (!p_.query_segment.empty()) {
      const std::int32_t mine = p_.query_segment[b * p_.shape.rows + i];
      const std::int32_t* theirs = p_.key_segment.data() + b * p_.shape.keys + key0;
      for (Index j = 0; j < count; ++j) bias[j] = theirs[j] == mine ? bias[j] : minus_infinity;
    }
  }

  bool keeps(Index b, Index h, Index i, Index key) const {
    float bias = 0;
    if (active_) row(b, h, i, key, 1, &bias);
    return bias != minus_infinity;
  }
  // Whether a row has a key in `range` that no bias masks.
  bool keeps_any(Index b, Index h, Index i, const KeyRange& range) const {
    Index j = range.begin;
    while (j < range.end && !keeps(b, h, i, j)) ++j;
    return j < range.end;
  }

 private:
  void add_tensor(Index b, Index h, Index i, Index key0, Index count,
                  float* HWY_RESTRICT bias) const {
    const TensorView& t = p_.bias;
    const Index at = t.at(b, h, i, key0), stride = t.stride[3];
    const float lowest = !p_.finite_min_masks     ? minus_infinity
                         : t.dtype == Dtype::f32  ? std::numeric_limits<float>::lowest()
                         : t.dtype == Dtype::bf16 ? -0x1.fep127f
                                                  : -65504.0f;
    for (Index j = 0; j < count; ++j) {
      const Index e = at + j * stride;
      const float x = t.dtype == Dtype::f32 ? static_cast<const float*>(t.data)[e]
                      : t.dtype == Dtype::bf16
                          ? from_bf16(static_cast<const std::uint16_t*>(t.data)[e])
                          : from_f16(static_cast<const std::uint16_t*>(t.data)[e]);
      bias[j] = x == lowest || x == minus_infinity ? minus_infinity : bias[j] + x;
    }
  }

  const Attention& p_;
  bool active_;
};

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
