// Random numbers for choices that are not data of a case: small, and the same on every machine,
// which std::shuffle and the distributions of the standard library are not.
#pragma once

#include <cstdint>

namespace assay {

// splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
class SplitMix64 {
 public:
  explicit constexpr SplitMix64(std::uint64_t seed) : state_(seed) {}

  constexpr std::uint64_t operator()() { return mixed(state_ += step); }
  // In [0, n). The remainder favours small numbers by less than n / 2^64.
  constexpr std::uint64_t below(std::uint64_t n) { return (*this)() % n; }

  // What call k gives, counted from 1, without the calls before it. There is a number 0 as well,
  // which no call gives.
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

}  // namespace assay
