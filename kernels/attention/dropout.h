// The decision which weights dropout keeps: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel
// Random Numbers: As Easy as 1, 2, 3, SC 2011) with key (seed low, seed high) and counter (j, i, h,
// b). Word 0 decides.
#pragma once

#include <cmath>
#include <cstdint>

#include "problem/tensor.h"

namespace assay::kernels {

inline std::uint32_t dropout_word(std::uint64_t seed, Index b, Index h, Index i, Index j) {
  std::uint32_t c0 = static_cast<std::uint32_t>(j), c1 = static_cast<std::uint32_t>(i);
  std::uint32_t c2 = static_cast<std::uint32_t>(h), c3 = static_cast<std::uint32_t>(b);
  std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t m0 = std::uint64_t{0xD2511F53} * c0, m1 = std::uint64_t{0xCD9E8D57} * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(m1 >> 32) ^ c1 ^ k0,
                        n2 = static_cast<std::uint32_t>(m0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(m1);
    c3 = static_cast<std::uint32_t>(m0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c0;
}

// A weight is kept if and only if its word is at least p * 2^32, compared exactly.
inline std::uint64_t dropout_threshold(float p) {
  return static_cast<std::uint64_t>(std::ceil(static_cast<double>(p) * 0x1p32));
}

}  // namespace assay::kernels
