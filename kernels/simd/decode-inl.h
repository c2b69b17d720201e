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

// E5M2 has every value of E2M1, and is the upper byte of f16.
struct ByteTable {
  alignas(16) std::uint8_t byte[16];
};
inline constexpr ByteTable e5m2_of_e2m1 = [] {
  ByteTable t{};
  for (std::uint32_t c = 0; c < 16; ++c) {
    std::uint32_t byte = c / 8 * 0x80;
    while (decode_narrow(narrow_format(Dtype::f8e5m2), byte) !=
           decode_narrow(narrow_format(Dtype::f4e2m1), c))
      ++byte;
    t.byte[c] = static_cast<std::uint8_t>(byte);
  }
  return t;
}();

// By what E4M3 is divided as f16, so that moving its bits is enough.
template <Code code>
inline constexpr float held = code == Code::e4m3 ? 0x1p8f : 1.0f;

#if HWY_TARGET != HWY_SCALAR
// A nibble in each byte, as E5M2.
template <class Bytes>
HWY_INLINE hn::Vec<Bytes> bytes_of_nibbles(Bytes d8, hn::Vec<Bytes> nibbles) {
  if constexpr (hn::MaxLanes(Bytes()) > 16)
    return hn::TableLookupBytes(hn::LoadDup128(d8, e5m2_of_e2m1.byte), nibbles);
  else
    return hn::TableLookupBytes(hn::LoadU(hn::Full128<std::uint8_t>(), e5m2_of_e2m1.byte), nibbles);
}

// The elements from `i` on in a byte each: those of E2M1 as E5M2.
template <Code code, class Bytes>
HWY_INLINE hn::Vec<Bytes> load_bytes(Bytes d8, const std::uint8_t* bytes, Index i) {
  if constexpr (code != Code::e2m1) return hn::LoadU(d8, bytes + i);
  else {
    // The two nibbles of a byte go into the two halves of 16 bits, which gives one byte for each
    // element.
    const hn::Repartition<std::uint16_t, Bytes> pairs;
    const hn::Rebind<std::uint8_t, decltype(pairs)> half8;
    const auto wide = hn::PromoteTo(pairs, hn::LoadU(half8, bytes + i / 2));
    return bytes_of_nibbles(d8, hn::BitCast(d8, hn::And(hn::Or(wide, hn::ShiftLeft<4>(wide)),
                                                        hn::Set(pairs, std::uint16_t{0x0F0F}))));
  }
}

// Two vectors of elements in 16 bits each, as f16; those of E4M3 are divided by `held`.
using Halves = hn::Repartition<std::uint16_t, Lanes>;
template <Code code, class D16>
HWY_INLINE hn::Vec<D16> halves_of(D16 d16, hn::Vec<hn::Rebind<std::uint8_t, D16>> codes) {
  // Of E4M3, one shift brings the sign and the other bits to their places, and a second copy of the
  // sign to the top bit of the exponent.
  const auto extended = hn::BitCast(
      d16,
      hn::PromoteTo(hn::RebindToSigned<D16>(), hn::BitCast(hn::Rebind<std::int8_t, D16>(), codes)));
  if constexpr (code != Code::e4m3) return hn::ShiftLeft<8>(extended);
  else return hn::And(hn::ShiftLeft<7>(extended), hn::Set(d16, std::uint16_t{0xBFFF}));
}

HWY_INLINE Vector lower_floats(hn::Vec<Halves> h) {
  const hn::Rebind<std::uint16_t, Lanes> half;
  const hn::Rebind<hwy::float16_t, Lanes> half_floats;
  return hn::PromoteTo(Lanes(), hn::BitCast(half_floats, hn::LowerHalf(half, h)));
}
HWY_INLINE Vector upper_floats(hn::Vec<Halves> h) {
  const hn::Rebind<std::uint16_t, Lanes> half;
  const hn::Rebind<hwy::float16_t, Lanes> half_floats;
  return hn::PromoteTo(Lanes(), hn::BitCast(half_floats, hn::UpperHalf(half, h)));
}

// Decodes what decode_row does, as long as there are two vectors of elements, by the instruction
// that converts f16. Returns the number of the next element.
template <Code code>
HWY_INLINE Index decode_by_halves(const std::uint8_t* bytes, Index i, Index end, float scale,
                                  float* HWY_RESTRICT to) {
  const Lanes d;
  constexpr auto n = static_cast<Index>(hn::MaxLanes(Lanes()));
  if (!(scale <= 0x1p127f / held<code>)) return i;
  const Vector s = hn::Set(d, scale * held<code>);
  for (; i + 2 * n <= end && (code != Code::e2m1 || i % 2 == 0); i += 2 * n) {
    const auto h =
        halves_of<code>(Halves(), load_bytes<code>(hn::Rebind<std::uint8_t, Halves>(), bytes, i));
    hn::StoreU(hn::Mul(lower_floats(h), s), d, to + i);
    hn::StoreU(hn::Mul(upper_floats(h), s), d, to + i + n);
  }
  return i;
}
#endif

// Whether one of the codes of E4M3 is NaN, which f16 does not hold when it is decoded so.
inline bool has_nan_of_e4m3(const std::byte* from, Index count) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  bool nan = false;
  Index i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Repartition<std::uint8_t, Lanes> d8;
  const auto n = static_cast<Index>(hn::Lanes(d8));
  const auto magnitude = hn::Set(d8, std::uint8_t{0x7F});
  auto largest = hn::Zero(d8);
  for (; i + n <= count; i += n)
    largest = hn::Max(largest, hn::And(hn::LoadU(d8, bytes + i), magnitude));
  nan = !hn::AllFalse(d8, hn::Eq(largest, magnitude));
#endif
  for (; i < count; ++i) nan |= (bytes[i] & 0x7F) == 0x7F;
  return nan;
}

// Decodes `count` elements of a row of a cache, which lie side by side, and multiplies them by
// their scale. Of two nibbles the low one comes first. by_halves: there is no NaN of E4M3 among
// them.
template <Code code>
HWY_INLINE void decode_row(const std::byte* from, Index first, Index count, float scale,
                           [[maybe_unused]] bool by_halves, float* HWY_RESTRICT to) {
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
  constexpr int mantissa_bits = code == Code::e4m3 ? 3 : 2;
  if constexpr (converts_f16)
    if (by_halves) i = decode_by_halves<code>(bytes, i, first + count, scale, to);
  for (; i + n <= first + count && (code != Code::e2m1 || i % 2 == 0); i += n) {
    const auto codes = hn::PromoteTo(du, load_bytes<code>(d8, bytes, i));
    hn::StoreU(hn::Mul(decode_f8<mantissa_bits>(d, codes), hn::Set(d, scale)), d, to + i);
  }
#endif
  const float* values = decoded_values(dtype);
  for (; i < first + count; ++i)
    to[i] = values[is_nibble<code> ? bytes[i / 2] >> (i % 2 * 4) & 0xF : bytes[i]] * scale;
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
