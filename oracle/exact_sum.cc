#include "oracle/exact_sum.h"

#include <flint/fmpz.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "oracle/safety_factors.h"

namespace assay {
namespace {

__extension__ using Int128 = __int128;

ExactSum from_integer(Int128 sum, int exponent, int bits) {
  ExactSum s;
  s.bits = bits;
  const auto high = static_cast<double>(sum);
  const Int128 rest = sum - static_cast<Int128>(high);
  const auto low = static_cast<double>(rest);
  s.high = std::ldexp(high, exponent);
  s.low = std::ldexp(low, exponent);
  s.radius = static_cast<Int128>(low) == rest ? 0 : std::ldexp(std::fabs(low), exponent - 52);
  return s;
}

// Adds terms of any exponents, by big integers.
template <class Term>
ExactSum big_sum(Index count, const Term& term) {
  int low = no_bit;
  for (Index k = 0; k < count; ++k) low = std::min(low, lowest_bit(term(k)));
  ExactSum s;
  s.bits = 0;
  if (low == no_bit) return s;
  fmpz_t sum, x;
  fmpz_init(sum);
  fmpz_init(x);
  for (Index k = 0; k < count; ++k) {
    const double t = term(k);
    if (t == 0) continue;
    const int shift = lowest_bit(t);
    fmpz_set_si(x, multiple_of(t, shift));
    fmpz_mul_2exp(x, x, static_cast<ulong>(shift - low));
    fmpz_add(sum, sum, x);
  }
  // Takes the leading 53 bits, the next 53 bits, and a radius for the rest.
  for (double* part : {&s.high, &s.low}) {
    slong e = 0;
    const double mantissa = fmpz_get_d_2exp(&e, sum);  // truncated
    *part = std::ldexp(mantissa, static_cast<int>(e) + low);
    if (mantissa == 0) break;
    fmpz_set_si(x, static_cast<slong>(std::ldexp(mantissa, 53)));
    if (e >= 53) fmpz_mul_2exp(x, x, static_cast<ulong>(e - 53));
    else fmpz_fdiv_q_2exp(x, x, static_cast<ulong>(53 - e));
    fmpz_sub(sum, sum, x);
  }
  if (!fmpz_is_zero(sum)) {
    slong e = 0;
    const double mantissa = fmpz_get_d_2exp(&e, sum);
    s.radius = std::ldexp(std::fabs(mantissa), static_cast<int>(e) + low + 1);
  }
  fmpz_clear(sum);
  fmpz_clear(x);
  return s;
}

}  // namespace

// bounds_product.md, 1: the product with a tensor scale
ExactSum times(ExactSum s, double factor) {
  if (is_power_of_two(factor) || !std::isfinite(s.high)) {
    s.high *= factor;
    s.low *= factor;
    s.radius *= std::fabs(factor);
    return s;
  }
  const double high = s.high * factor, error = std::fma(s.high, factor, -high);
  const double low = std::fma(s.low, factor, error);
  s.radius = s.radius * std::fabs(factor) + std::fabs(high) * safety::two_doubles;
  s.high = high;
  s.low = low;
  return s;
}

// bounds_product.md, 1: the sum in 64-bit, 128-bit or big integers
ExactSum exact_of(const ProductRow& row, const ProductColumns& w, Index c, Index length) {
  const Integers& a = row.integers;
  const Integers& b = w.integers[usize(c)];
  if (!a.finite || !b.finite) {
    // The sum follows the extended reals, where finite terms do not matter beside the others.
    ExactSum s;
    s.bits = 0;
    for (Index k = 0; k < length; ++k) {
      const double term = row.a[usize(k)] * w.weight(k, c);
      if (!std::isfinite(term)) s.high += term;
    }
    return s;
  }
  const int sum_bits =
      a.bits + b.bits + static_cast<int>(std::bit_width(static_cast<std::uint64_t>(length)));
  if (!a.fits || !b.fits || sum_bits > 126)
    return big_sum(length, [&](Index k) { return row.a[usize(k)] * w.weight(k, c); });
  if (sum_bits <= 62) {
    std::int64_t sum = 0;
    for (Index k = 0; k < length; ++k) sum += a.value[usize(k)] * b.value[usize(k)];
    return from_integer(sum, a.exponent + b.exponent, 64);
  }
  Int128 sum = 0;
  for (Index k = 0; k < length; ++k)
    sum += static_cast<Int128>(a.value[usize(k)]) * b.value[usize(k)];
  return from_integer(sum, a.exponent + b.exponent, 128);
}

ExactSum exact_product(const Product& p, Index m, Index n) {
  ProductRow row;
  row.read(p, m);
  return exact_product(p, row, ProductColumns(p.w, n, 1), 0);
}

ExactSum exact_product(const Product& p, const ProductRow& row, const ProductColumns& w, Index c) {
  const ExactSum s = times(exact_of(row, w, c, p.k), p.w.tensor_scale);
  return p.a_low ? times(s, p.a_low.tensor_scale) : s;
}

}  // namespace assay
