// Random numbers that are the same on every machine, unlike those of the standard library: a small
// generator for choices, and the normal numbers of data.
#pragma once

#include <cstddef>
#include <cstdint>

namespace assay {

// splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class SplitMix64 {
 public:
  explicit constexpr SplitMix64(std::uint64_t seed) : state_(seed) {}

  constexpr std::uint64_t operator()() { return mixed(state_ += step); }
  // A number in [0, n). Taking the remainder favours small numbers by less than n / 2^64.
  constexpr std::uint64_t below(std::uint64_t n) { return (*this)() % n; }

  // The result of call k, counted from 1, without the calls before it. k = 0 gives a number that no
  // call returns.
  static constexpr std::uint64_t number(std::uint64_t seed, std::uint64_t k) {
    return mixed(seed + k * step);
  }

 private:
  static constexpr std::uint64_t step = 0x9E3779B97F4A7C15u;  // 2^64 divided by the golden ratio

  static constexpr std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
  }

  std::uint64_t state_;
};

// Computes a normal number from 128 random bits in four words: the sum of eight uniform 16-bit
// numbers, centred, with unit variance. It is close to normal, and its absolute value is at most
// 4.9.
template <class Words>
double normal_from(const Words& words) {
  constexpr std::int64_t mean = 4 * 65535;
  // Each of the eight numbers has the variance 2^32 / 12. This factor is sqrt(12 / 8) / 2^16.
  constexpr double to_unit_variance = 0x1.3988e1409212ep-16;
  std::int64_t sum = 0;
  for (std::size_t w = 0; w < 4; ++w) sum += (words[w] & 0xFFFF) + (words[w] >> 16);
  return static_cast<double>(sum - mean) * to_unit_variance;
}

}  // namespace assay
