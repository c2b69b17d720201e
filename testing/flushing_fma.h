// The fused multiply-add of which VDPBF16PS makes two, emulated in fp64.
#pragma once

#include <cmath>

namespace assay {

// Computes a * b + c, rounded once to nearest. Subnormal numbers are read as 0, with their sign,
// and a result whose magnitude would be below 2^-126 after a rounding to 24 bits of any exponent is
// 0, with its sign. a and b have at most 26 significant bits together.
inline float flushing_fma(float a, float b, float c) {
  constexpr float least_normal = 0x1p-126f;
  const auto operand = [](float x) {
    return std::fabs(x) < least_normal ? std::copysign(0.0f, x) : x;
  };
  const float x = operand(a), y = operand(b), z = operand(c), result = std::fma(x, y, z);
  if (!(std::fabs(result) <= least_normal)) return result;
  // Here all of x y and z is far from the ends of the range of fp64, and the product is exact. From
  // halfway below 2^-126 on, numbers round to 2^-126. The error of the sum decides at this point.
  const double product = static_cast<double>(x) * static_cast<double>(y), added = z,
               sum = product + added, part = sum - product,
               error = (product - (sum - part)) + (added - part);
  constexpr double halfway = 0x1p-126 - 0x1p-151;
  const double sign = std::signbit(result) ? -1 : 1, magnitude = sign * sum;
  const bool normal = magnitude > halfway || (magnitude == halfway && sign * error >= 0);
  return normal ? result : std::copysign(0.0f, result);
}

// The sum of two numbers of any 24 bits, rounded and flushed in the same way.
inline float flushing_sum(float a, float b) { return flushing_fma(1.0f, a, b); }

}  // namespace assay
