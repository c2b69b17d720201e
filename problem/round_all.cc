#include "problem/round_all.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace assay {

void round_all(Dtype dtype, std::span<float> numbers) {
  const Format& f = format(dtype);
  if (f.precision >= 24) return;
  const auto least = static_cast<float>(std::ldexp(1.0, f.min_exponent));
  const auto largest = static_cast<float>(f.max_finite);
  const float beyond = f.saturates ? largest : std::numeric_limits<float>::infinity();
  // Adding and taking away this number rounds to the quantum of subnormal numbers. bf16 has the
  // exponents of binary32, whose subnormal numbers it cuts at the same bit.
  const bool narrow = f.min_exponent > -126;
  const auto magic =
      static_cast<float>(narrow ? std::ldexp(1.5, f.min_exponent - (f.precision - 1) + 23) : 0);
  const int dropped = 24 - f.precision;
  for (float& x : numbers) {
    const auto code = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t half = (1u << (dropped - 1)) - 1 + (code >> dropped & 1);
    const float normal = std::bit_cast<float>((code + half) & ~((1u << dropped) - 1));
    float y = narrow && std::fabs(x) < least ? (x + magic) - magic : normal;
    y = std::fabs(y) > largest ? std::copysign(beyond, x) : y;
    x = std::isnan(x) ? x : y;
  }
}

}  // namespace assay
