// The extremes of weights, and the codes of their quotients.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/product/encode_tile.cc"
#include <hwy/foreach_target.h>
// These includes come after foreach_target, which redefines the target on each of its passes.
#include <hwy/highway.h>

#include "kernels/product/encode_tile.h"
#include "kernels/simd/codec.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Doubles = hn::CappedTag<double, 8>;
using Bits = hn::RebindToUnsigned<Doubles>;

constexpr double binary64_power(int e) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(e + 1023) << 52);
}

// encode_exact() of codec.h for a vector.
template <Dtype dtype>
HWY_INLINE hn::Vec<Bits> float_codes(hn::Vec<Doubles> quotient) {
  constexpr NarrowFormat f = narrow_format(dtype);
  constexpr int dropped = 52 - f.mantissa_bits;
  const Doubles d;
  const Bits bits;
  const auto size =
      hn::Min(hn::Abs(quotient), hn::Set(d, static_cast<double>(decode_narrow(f, f.max_code))));
  const auto of_size = hn::BitCast(bits, size);
  const auto odd = hn::And(hn::ShiftRight<dropped>(of_size), hn::Set(bits, std::uint64_t{1}));
  const auto rounded =
      hn::Add(hn::Add(of_size, hn::Set(bits, (std::uint64_t{1} << (dropped - 1)) - 1)), odd);
  const auto normal = hn::Sub(
      hn::ShiftRight<dropped>(rounded),
      hn::Set(bits, static_cast<std::uint64_t>(f.min_exponent - 1 + 1023) << f.mantissa_bits));
  // The quantum of subnormals is the ulp of `shift`, so adding it rounds, with ties to even.
  const auto shift = hn::Set(d, binary64_power(f.min_exponent + dropped));
  const auto small = hn::Sub(hn::BitCast(bits, hn::Add(size, shift)), hn::BitCast(bits, shift));
  const auto is_small = hn::Lt(size, hn::Set(d, binary64_power(f.min_exponent)));
  const auto sign = hn::ShiftLeft<f.bits - 1>(hn::ShiftRight<63>(hn::BitCast(bits, quotient)));
  return hn::Or(hn::IfThenElse(hn::RebindMask(bits, is_small), small, normal), sign);
}

// Integers of `width` bits, from -128 or from 0 on.
template <int width>
HWY_INLINE hn::Vec<Bits> integer_codes(hn::Vec<Doubles> quotient, hn::Vec<Doubles> zero) {
  const Doubles d;
  const Bits bits;
  const auto q =
      hn::Min(hn::Max(hn::Add(hn::Round(quotient), zero), hn::Set(d, width == 8 ? -128.0 : 0.0)),
              hn::Set(d, width == 8 ? 127.0 : 15.0));
  // The integer stands in the last bits of the sum.
  return hn::And(hn::BitCast(bits, hn::Add(q, hn::Set(d, 0x1.8p52))),
                 hn::Set(bits, (std::uint64_t{1} << width) - 1));
}

template <class Round>
HWY_INLINE void encode(const WeightTile& tile, const Round& round) {
  const Doubles d;
  const hn::Rebind<float, Doubles> floats;
  const hn::Rebind<std::uint8_t, Doubles> bytes;
  for (Index c = 0; c < WeightTile::columns; c += static_cast<Index>(hn::Lanes(d))) {
    const auto divisor = hn::LoadU(d, tile.divisor + c), zero = hn::LoadU(d, tile.zero + c);
    for (Index at = c; at < tile.rows * WeightTile::columns; at += WeightTile::columns) {
      const auto quotient = hn::Div(hn::PromoteTo(d, hn::LoadU(floats, tile.x + at)), divisor);
      hn::StoreU(hn::TruncateTo(bytes, round(quotient, zero)), bytes, tile.codes + at);
    }
  }
}

template <Dtype dtype>
void encode_floats(const WeightTile& tile) {
  encode(tile, [](auto quotient, auto) HWY_ATTR { return float_codes<dtype>(quotient); });
}
template <int width>
void encode_integers(const WeightTile& tile) {
  encode(tile,
         [](auto quotient, auto zero) HWY_ATTR { return integer_codes<width>(quotient, zero); });
}

bool extremes(const float* x, Index rows, float* low, float* high) {
  const hn::CappedTag<float, 16> d;
  auto finite = hn::Zero(d);  // or NaN
  for (Index c = 0; c < WeightTile::columns; c += static_cast<Index>(hn::Lanes(d))) {
    auto least = hn::Zero(d), most = hn::Zero(d);
    for (Index at = c; at < rows * WeightTile::columns; at += WeightTile::columns) {
      const auto v = hn::LoadU(d, x + at);
      least = hn::Min(least, v);
      most = hn::Max(most, v);
      finite = hn::MulAdd(v, hn::Zero(d), finite);
    }
    hn::StoreU(least, d, low + c);
    hn::StoreU(most, d, high + c);
  }
  return hn::AllTrue(d, hn::Eq(finite, hn::Zero(d)));
}

EncodeTile encoder(LowBit format) {
  const LowBitTraits& t = traits(format);
  if (t.integer) return t.bits == 8 ? encode_integers<8> : encode_integers<4>;
  return t.element == Dtype::f8e4m3   ? encode_floats<Dtype::f8e4m3>
         : t.element == Dtype::f8e5m2 ? encode_floats<Dtype::f8e5m2>
                                      : encode_floats<Dtype::f4e2m1>;
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/simd/by_target.h"

namespace assay::kernels {

HWY_EXPORT(encoder);
HWY_EXPORT(extremes);

EncodeTile encode_tile(LowBit format, const Target& target) {
  return ASSAY_OF_TARGET(encoder, target)(format);
}
TileExtremes tile_extremes(const Target& target) { return ASSAY_OF_TARGET(extremes, target); }

}  // namespace assay::kernels
#endif  // HWY_ONCE
