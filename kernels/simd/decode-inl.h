// Turns codes of low-bit products and caches into vectors of fp32. The file is compiled once for
// each SIMD target.
#include <bit>
#include <cstdint>

#include "kernels/simd/codec.h"
#include "kernels/simd/register_block-inl.h"

#if defined(ASSAY_KERNELS_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_DECODE_INL_H_
#undef ASSAY_KERNELS_DECODE_INL_H_
#else
#define ASSAY_KERNELS_DECODE_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

enum class Code { e2m1, int4, int8, e4m3, e5m2 };

template <Code code>
inline constexpr bool is_nibble = code == Code::e2m1 || code == Code::int4;
template <Code code>
inline constexpr bool has_zeros = code == Code::int4 || code == Code::int8;

// The upper and the lower byte of the bf16 value of each nibble. bf16 holds every one of these
// values exactly.
struct NibbleTable {
  alignas(16) std::uint8_t upper[16], lower[16];
};
template <Code code>
inline constexpr NibbleTable nibble_table = [] {
  NibbleTable t{};
  for (std::uint32_t c = 0; c < 16; ++c) {
    const float value =
        code == Code::e2m1 ? decode_narrow(narrow_format(Dtype::f4e2m1), c) : static_cast<float>(c);
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value) >> 16;
    t.upper[c] = static_cast<std::uint8_t>(bits >> 8);
    t.lower[c] = static_cast<std::uint8_t>(bits);
  }
  return t;
}();

// Decodes E4M3 and E5M2: the fields move to the places of the fields of fp32, and a multiplication
// by a power of two corrects the bias. Subnormals come out right.
template <int mantissa_bits>
HWY_INLINE Vector decode_f8(Lanes d, hn::Vec<hn::RebindToUnsigned<Lanes>> codes) {
  const hn::RebindToUnsigned<Lanes> du;
  const auto magnitude = hn::And(codes, hn::Set(du, 0x7Fu));
  const Vector scaled = hn::Mul(hn::BitCast(d, hn::ShiftLeft<23 - mantissa_bits>(magnitude)),
                                hn::Set(d, mantissa_bits == 3 ? 0x1p120f : 0x1p112f));
  // Above the largest finite number E4M3 has NaN, and E5M2 has infinity and NaN.
  const auto special =
      hn::Or(hn::ShiftLeft<23 - mantissa_bits>(magnitude), hn::Set(du, 0x7F800000u));
  const auto is_special =
      hn::Gt(hn::BitCast(hn::RebindToSigned<Lanes>(), magnitude),
             hn::Set(hn::RebindToSigned<Lanes>(), mantissa_bits == 3 ? 0x7E : 0x7B));
  const Vector value =
      hn::IfThenElse(hn::RebindMask(d, is_special), hn::BitCast(d, special), scaled);
  return hn::Or(value, hn::BitCast(d, hn::ShiftLeft<24>(hn::And(codes, hn::Set(du, 0x80u)))));
}

// Decodes `count` elements that lie side by side and multiplies them by their scale. The elements
// are stored as in a row of a cache or in a column of MXFP4; of two nibbles the low one comes
// first.
template <Code code>
HWY_INLINE void decode_row(const std::byte* from, Index first, Index count, float scale,
                           float* HWY_RESTRICT to) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  const Dtype dtype = code == Code::e4m3   ? Dtype::f8e4m3
                      : code == Code::e5m2 ? Dtype::f8e5m2
                                           : Dtype::f4e2m1;
  Index i = first;
#if HWY_TARGET != HWY_SCALAR
  const Lanes d;
  const hn::RebindToUnsigned<Lanes> du;
  const hn::Rebind<std::uint8_t, Lanes> d8;
  constexpr auto n = static_cast<Index>(hn::MaxLanes(Lanes()));
  const Vector s = hn::Set(d, scale);
  if constexpr (is_nibble<code>) {
    const hn::Repartition<std::uint8_t, hn::Full128<float>> table;
    const auto upper = hn::LoadU(table, nibble_table<code>.upper),
               lower = hn::LoadU(table, nibble_table<code>.lower);
    const hn::Rebind<std::uint16_t, hn::Half<Lanes>> pairs;
    const hn::Rebind<std::uint8_t, hn::Half<Lanes>> half8;
    for (; i % 2 == 0 && i + n <= first + count; i += n) {
      // The two nibbles of a byte go into the two halves of 16 bits, which gives one byte for each
      // element.
      const auto wide = hn::PromoteTo(pairs, hn::LoadU(half8, bytes + i / 2));
      const auto nibbles = hn::BitCast(
          d8, hn::Or(hn::And(wide, hn::Set(pairs, std::uint16_t{0x000F})),
                     hn::ShiftLeft<4>(hn::And(wide, hn::Set(pairs, std::uint16_t{0x00F0})))));
      const auto high = hn::PromoteTo(du, hn::TableLookupBytes(upper, nibbles)),
                 low = hn::PromoteTo(du, hn::TableLookupBytes(lower, nibbles));
      hn::StoreU(
          hn::Mul(hn::BitCast(d, hn::Or(hn::ShiftLeft<24>(high), hn::ShiftLeft<16>(low))), s), d,
          to + i);
    }
  } else {
    for (; i + n <= first + count; i += n)
      hn::StoreU(hn::Mul(decode_f8 < code == Code::e4m3
                             ? 3
                             : 2 > (d, hn::PromoteTo(du, hn::LoadU(d8, bytes + i))),
                         s),
                 d, to + i);
  }
#endif
  const float* values = decoded_values(dtype);
  for (; i < first + count; ++i)
    to[i] = values[is_nibble<code> ? bytes[i / 2] >> (i % 2 * 4) & 0xF : bytes[i]] * scale;
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
