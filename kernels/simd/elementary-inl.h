// The functions exp and tanh of vectors. The file is compiled once for each SIMD target, hence the
// guard.
#if defined(ASSAY_KERNELS_ELEMENTARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_ELEMENTARY_INL_H_
#undef ASSAY_KERNELS_ELEMENTARY_INL_H_
#else
#define ASSAY_KERNELS_ELEMENTARY_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Lanes = hn::ScalableTag<float>;
using Vector = hn::Vec<Lanes>;

// e^x for x <= 0 or NaN. The result is within 1 ulp (property_tests/elementary_test.cc tries every
// float). It is 0 below -87, where it would leave the normal range.
HWY_INLINE Vector exp_of_nonpositive(Lanes d, Vector x) {
  // x = n ln2 + r with |r| <= ln2 / 2. ln2 is taken in two parts; the first has enough trailing
  // zeros that n times it is exact. Adding 1.5 * 2^23 leaves n in the low bits of the sum.
  const Vector shift = hn::Set(d, 0x1.8p23f);
  const Vector shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), shift);
  const Vector n = hn::Sub(shifted, shift);
  Vector r = hn::NegMulAdd(n, hn::Set(d, 0x1.62e4p-1f), x);
  r = hn::NegMulAdd(n, hn::Set(d, 0x1.7f7d1cp-20f), r);
  // (e^r - 1 - r) / r^2, interpolated at the Chebyshev nodes of |r| <= 0.3466.
  Vector p = hn::Set(d, 0.00019890988455544567f);
  p = hn::MulAdd(p, r, hn::Set(d, 0.0013933647862928863f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.008333310927615311f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.041666464944505696f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.16666666681621095f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5000000013463886f));
  p = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(d, 1.0f));
  const hn::RebindToSigned<Lanes> di;
  const auto power = hn::Add(hn::ShiftLeft<23>(hn::BitCast(di, shifted)), hn::Set(di, 127 << 23));
  // NaN fails the comparison, so it stays NaN.
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.0f)), hn::Zero(d),
                        hn::Mul(p, hn::BitCast(d, power)));
}

// tanh(x), within 4 ulp.
HWY_INLINE Vector tanh_of(Lanes d, Vector x) {
  const Vector magnitude = hn::Abs(x), z = hn::Mul(x, x);
  Vector p = hn::Set(d, -0.00604516509062733f);  // (tanh(x)/x - 1)/x^2 on |x| < 0.63
  p = hn::MulAdd(p, z, hn::Set(d, 0.020961329103236122f));
  p = hn::MulAdd(p, z, hn::Set(d, -0.053843263173671524f));
  p = hn::MulAdd(p, z, hn::Set(d, 0.13332718845571667f));
  p = hn::MulAdd(p, z, hn::Set(d, -0.33333328433318044f));
  const Vector small = hn::MulAdd(hn::Mul(p, z), x, x);
  const Vector one = hn::Set(d, 1.0f);
  const Vector e = exp_of_nonpositive(d, hn::Mul(magnitude, hn::Set(d, -2.0f)));
  const Vector large = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625f)), small, large);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
