#include "problem/attention.h"

#include <bit>
#include <cmath>

namespace assay {

float default_scale(Index dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
}

std::vector<float> default_alibi_slopes(Index heads) {
  // 2^(-8/n) for n = 2^k is the square root of 2^-8, taken k times. Each step is correctly rounded,
  // so the result is the same on any machine.
  auto slope = [](Index n, Index k) {
    double ratio = 0x1p-8;
    for (Index m = n; m > 1; m /= 2) ratio = std::sqrt(ratio);
    double value = 1;
    for (Index step = 0; step <= k; ++step) value *= ratio;
    return static_cast<float>(value);
  };
  const Index below = static_cast<Index>(std::bit_floor(static_cast<std::uint64_t>(heads)));
  std::vector<float> slopes;
  for (Index k = 0; k < below; ++k) slopes.push_back(slope(below, k));
  for (Index k = 0; below + k < heads; ++k) slopes.push_back(slope(2 * below, 2 * k));
  return slopes;
}

}  // namespace assay
