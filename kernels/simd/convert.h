// Single elements of f16 and bf16, written so that a compiler can vectorize a loop over them.
#pragma once

#include <bit>
#include <cstdint>

namespace assay::kernels {

inline float from_bf16(std::uint16_t code) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 16);
}

inline float from_f16(std::uint16_t code) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(code & 0x7FFF) << 13,
                      sign = static_cast<std::uint32_t>(code & 0x8000) << 16;
  // The exponent field keeps its number, and the bias becomes smaller by 112. The product is exact,
  // subnormals included.
  const std::uint32_t finite =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const std::uint32_t special = magnitude | 0x7F800000;
  return std::bit_cast<float>((magnitude >= 0x0F800000 ? special : finite) | sign);
}

// Round to nearest, ties to even; NaN stays NaN.
inline std::uint16_t to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  const std::uint32_t quiet_nan = bits >> 16 | 0x40;
  return static_cast<std::uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet_nan : rounded);
}

inline std::uint16_t to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), sign = bits >> 16 & 0x8000;
  std::uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000)
    return static_cast<std::uint16_t>(sign | 0x7C00);  // 65520 rounds to infinity
  if (magnitude < 0x38800000) {
    // Below 2^-14 the quantum is 2^-24, which is the ulp of 0.5. So adding 0.5 rounds, with ties to
    // even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000));
  }
  magnitude += 0xFFF + (magnitude >> 13 & 1);
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000) >> 13));
}

}  // namespace assay::kernels
