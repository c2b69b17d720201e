// The softmax of a row, in loops that the compiler vectorises (-fopenmp-simd for the sum).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "problem/tensor.h"

namespace assay::bench {

inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// e^x for x <= 0, to about 2 ulp; 0 below -87, where the result would leave the normal numbers.
inline float exp_nonpositive(float x) {
  // adding it leaves the nearest integer in the low bits of the mantissa
  constexpr float round = 0x1.8p23f;
  const float clamped = x > -87.0f ? x : -87.0f;
  const float shifted = fused(clamped, 0x1.715476p0f, round), n = shifted - round;
  const float r = fused(n, 0x1.05c61p-29f, fused(n, -0x1.62e43p-1f, clamped));  // ln 2 in two parts
  float p = 1.0f / 720;
  p = fused(p, r, 1.0f / 120);
  p = fused(p, r, 1.0f / 24);
  p = fused(p, r, 1.0f / 6);
  p = fused(p, r, 0.5f);
  p = fused(p, r, 1.0f);
  p = fused(p, r, 1.0f);
  const auto power =
      std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3f800000u);
  return x > -87.0f ? p * power : 0.0f;
}

// Uses explicit vectors, because clang takes no maximum of floats for a reduction unless it is told
// that there are no NaN.
inline float row_max(const float* s, Index n) {
  using Lanes = float __attribute__((vector_size(64)));
  constexpr Index width = sizeof(Lanes) / sizeof(float);
  float m = -std::numeric_limits<float>::infinity();
  Index j = 0;
  if (n >= 2 * width) {
    auto at = [s](Index i) {
      Lanes x;
      std::memcpy(&x, s + i, sizeof x);
      return x;
    };
    Lanes a = at(0), b = at(width);
    for (j = 2 * width; j + 2 * width <= n; j += 2 * width) {
      const Lanes x = at(j), y = at(j + width);
      a = a > x ? a : x;
      b = b > y ? b : y;
    }
    a = a > b ? a : b;
    for (Index l = 0; l < width; ++l) m = m > a[l] ? m : a[l];
  }
  for (; j < n; ++j) m = m > s[j] ? m : s[j];
  return m;
}

// Computes s <- exp(s - m) and returns the sum.
inline float exponentiate_row(float* s, Index n, float m) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < n; ++j) {
    s[j] = exp_nonpositive(s[j] - m);
    sum += s[j];
  }
  return sum;
}

inline float dot(const float* a, const float* b, Index n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < n; ++j) sum += a[j] * b[j];
  return sum;
}

// Computes s <- exp(s - lse), the weights, and g <- scale s (g - mean), the gradients of the
// unscaled scores from those of the weights.
inline void softmax_gradient(float* s, float* g, Index n, float lse, float mean, float scale) {
#pragma omp simd
  for (Index j = 0; j < n; ++j) {
    const float weight = exp_nonpositive(s[j] - lse);
    s[j] = weight;
    g[j] = scale * weight * (g[j] - mean);
  }
}

}  // namespace assay::bench
