// Compares the overlap test with brute force over every bit of random small views, and tries
// layouts that people use.
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <set>
#include <vector>

#include "kernels/overlap.h"

namespace assay::kernels {
namespace {

// The first bit of every element, in the order of their indices.
std::vector<Index> starts_of(const Footprint& f) {
  std::vector<Index> starts;
  for (Index b = 0; b < f.shape[0]; ++b)
    for (Index h = 0; h < f.shape[1]; ++h)
      for (Index i = 0; i < f.shape[2]; ++i)
        for (Index d = 0; d < f.shape[3]; ++d)
          starts.push_back(
              static_cast<Index>(reinterpret_cast<std::uintptr_t>(f.data)) * 8 +
              (f.origin + b * f.stride[0] + h * f.stride[1] + i * f.stride[2] + d * f.stride[3]) *
                  f.bits);
  return starts;
}

TEST(Overlap, AgreesWithBruteForce) {
  std::mt19937 random(20240611);
  const auto draw = [&](Index from, Index to) {
    return std::uniform_int_distribution<Index>(from, to)(random);
  };
  alignas(64) static std::byte memory[4096];
  int self = 0, pairs = 0;
  constexpr int rounds = 20000;
  for (int round = 0; round < rounds; ++round) {
    Footprint f[2];
    for (Footprint& x : f) {
      const Index bits[] = {4, 8, 16, 32};
      x.bits = static_cast<int>(bits[draw(0, 3)]);
      x.data = memory + 2048 + draw(0, 20);
      x.origin = draw(-5, 30);
      for (std::size_t k = 0; k < 4; ++k) {
        x.shape[k] = draw(0, 20) == 0 ? 0 : draw(1, 4);
        x.stride[k] = draw(-3, 3) * draw(1, 12);
      }
    }
    const std::vector<Index> a = starts_of(f[0]), b = starts_of(f[1]);
    const bool repeats = std::set<Index>(a.begin(), a.end()).size() < a.size();
    ASSERT_EQ(overlap_with_itself(f[0]), repeats ? Overlap::some : Overlap::none) << round;
    std::set<Index> bits;
    for (Index start : a)
      for (int u = 0; u < f[0].bits; ++u) bits.insert(start + u);
    bool shared = false;
    for (Index start : b)
      for (int v = 0; v < f[1].bits; ++v) shared |= bits.contains(start + v);
    ASSERT_EQ(overlap(f[0], f[1]), shared ? Overlap::some : Overlap::none) << round;
    ASSERT_EQ(overlap(f[1], f[0]), overlap(f[0], f[1])) << round;
    self += repeats;
    pairs += shared;
  }
  // Both answers occurred often.
  EXPECT_GT(self, rounds / 10);
  EXPECT_LT(self, rounds * 9 / 10);
  EXPECT_GT(pairs, rounds / 10);
  EXPECT_LT(pairs, rounds * 9 / 10);
}

TEST(Overlap, SlicesOfOnePackedBufferDoNotOverlap) {
  // [B, L, q | k | v | o, H, D] is far too large to be allocated. Nothing of it is read.
  const Index heads = 8, dim = 64, row = 4 * heads * dim, length = 100'000;
  static float base;
  const auto slice = [&](Index which, Index columns) {
    return Footprint{
        &base, 32, {2, heads, length, columns}, {length * row, dim, row, 1}, which * heads * dim};
  };
  for (Index a = 0; a < 4; ++a) {
    EXPECT_EQ(overlap_with_itself(slice(a, dim)), Overlap::none);
    for (Index b = 0; b < 4; ++b)
      EXPECT_EQ(overlap(slice(a, dim), slice(b, dim)), a == b ? Overlap::some : Overlap::none);
    // One column too many reaches the next head. For the last head it reaches the next slice.
    EXPECT_EQ(overlap_with_itself(slice(a, dim + 1)), Overlap::some);
    if (a < 3) EXPECT_EQ(overlap(slice(a, dim + 1), slice(a + 1, dim)), Overlap::some);
  }
}

TEST(Overlap, GarbageStridesOfExtentOneDoNotMatter) {
  static float base[8];
  const Index huge = std::numeric_limits<Index>::min();
  const Footprint f{base, 32, {1, 1, 2, 4}, {huge, huge, 4, 1}, 0};
  EXPECT_TRUE(reach_of(f));
  EXPECT_EQ(overlap_with_itself(f), Overlap::none);
  EXPECT_EQ(overlap(f, f), Overlap::some);
  EXPECT_FALSE(reach_of({base, 32, {2, 1, 2, 4}, {huge, huge, 4, 1}, 0}));
  EXPECT_FALSE(reach_of({base, 32, {1, 1, 2, 4}, {0, 0, 4, 1}, Index{1} << 60}));
}

}  // namespace
}  // namespace assay::kernels
