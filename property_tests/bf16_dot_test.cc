// VDPBF16PS itself: whether each of its sums is two flushing fused multiply-adds, as
// kernels/simd/bf16_pairs.h and docs/bounds.md, 14, say. And packing, against plain loops.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs.h"
#include "kernels/simd/bf16_pairs.h"
#include "kernels/simd/targets.h"
#include "problem/generate.h"
#include "testing/flushing_fma.h"
#include "testing/same_bits.h"

#if ASSAY_BF16_DOTS
namespace assay {
namespace {

namespace bf16 = kernels::bf16;

class Bf16Dot : public testing::Test {
 protected:
  void SetUp() override {
    if (!bf16::runs()) GTEST_SKIP() << "this machine has no AVX512_BF16";
  }
};

constexpr std::uint32_t upper_half = 0xFFFF0000;

struct Sum {
  std::uint32_t a, b, c;  // the bits of c + a * b, where a and b are words

  float first(std::uint32_t word) const { return std::bit_cast<float>(word & upper_half); }
  float second(std::uint32_t word) const { return std::bit_cast<float>(word << 16); }
  float emulated() const {
    return flushing_fma(second(a), second(b),
                        flushing_fma(first(a), first(b), std::bit_cast<float>(c)));
  }
  float in_the_other_order() const {
    return flushing_fma(first(a), first(b),
                        flushing_fma(second(a), second(b), std::bit_cast<float>(c)));
  }
};

bool same(float x, float y) {
  return (std::isnan(x) && std::isnan(y)) ||
         std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
}

// Computes the sums with the instruction, 32 that share a word at a time.
std::vector<float> computed(const std::vector<Sum>& sums) {
  alignas(64) float values[32], accumulator[32];
  std::vector<float> all;
  for (std::size_t k = 0; k < sums.size(); k += 32) {
    for (std::size_t i = 0; i < 32; ++i) {
      values[i] = std::bit_cast<float>(sums[k + i].b);
      accumulator[i] = std::bit_cast<float>(sums[k + i].c);
    }
    bf16::add_word(std::bit_cast<float>(sums[k].a), values, 0xFFFFFFFF, accumulator);
    all.insert(all.end(), accumulator, accumulator + 32);
  }
  return all;
}

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : random_(seed) {}
  std::uint32_t bits() { return static_cast<std::uint32_t>(random_()); }
  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  // A number of either sign whose exponent is in [low, high].
  std::uint32_t between(int low, int high) {
    return (bits() & 0x807FFFFF) | static_cast<std::uint32_t>(low + 127 + below(high - low + 1))
                                       << 23;
  }
  std::uint32_t special() {
    constexpr std::uint32_t all[] = {0,          0x80000000, 1,          0x807FFFFF, 0x00010000,
                                     0x00800000, 0x80800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000,
                                     0x7FC00000, 0x3F800000, 0x007F0000, 0x807F0000};
    return all[below(std::size(all))];
  }
  std::uint32_t word(std::uint32_t first, std::uint32_t second) {
    return (first & upper_half) | second >> 16;
  }

 private:
  std::mt19937_64 random_;
};

struct Family {
  const char* name;
  Sum (*draw)(Draw&);
};

constexpr Family families[] = {
    {"any bits", [](Draw& d) { return Sum{d.bits(), d.bits(), d.bits()}; }},
    {"near one another",
     [](Draw& d) {
       return Sum{d.word(d.between(-4, 4), d.between(-4, 4)),
                  d.word(d.between(-4, 4), d.between(-4, 4)), d.between(-6, 6)};
     }},
    {"far apart",
     [](Draw& d) {
       return Sum{d.word(d.between(-13, 13), d.between(-13, 13)),
                  d.word(d.between(-13, 13), d.between(-13, 13)), d.between(-26, 26)};
     }},
    {"results about the least normal number",
     [](Draw& d) {
       return Sum{d.word(d.between(-64, -62), d.between(-64, -62)),
                  d.word(d.between(-64, -62), d.between(-64, -62)), d.between(-127, -125)};
     }},
    // 2^-126 less about half of the last place that a 24-bit number below it would have.
    {"halfway below the least normal number",
     [](Draw& d) {
       const std::uint32_t sign = d.bits() & 0x80000000,
                           least = 0x00800000 + static_cast<std::uint32_t>(d.below(2));
       const std::uint32_t x = (sign ^ 0x80000000) | d.word(d.between(-76, -75) & 0x7FFFFFFF, 0);
       const bool upper = d.below(2) == 0;
       return Sum{upper ? x : x >> 16,
                  d.word(d.between(-76, -75) & 0x7FFFFFFF, d.between(-76, -75) & 0x7FFFFFFF),
                  sign | least};
     }},
    {"overflow",
     [](Draw& d) {
       return Sum{d.word(d.between(62, 64), d.between(62, 64)),
                  d.word(d.between(62, 64), d.between(62, 64)), d.between(125, 127)};
     }},
    {"subnormal operands",
     [](Draw& d) {
       return Sum{d.word(d.bits() & 0x807FFFFF, d.between(-3, 3)),
                  d.word(d.between(100, 126), d.bits() & 0x807FFFFF), d.bits() & 0x807FFFFF};
     }},
    {"special numbers",
     [](Draw& d) {
       return Sum{d.word(d.special(), d.special()), d.word(d.special(), d.special()), d.special()};
     }},
};

TEST_F(Bf16Dot, IsTwoFlushingFusedMultiplyAdds) {
  constexpr std::uint64_t seed = 2026;
  constexpr std::size_t count = 1 << 19;
  for (const Family& family : families) {
    Draw draw(seed);
    std::vector<Sum> sums(count);
    for (std::size_t k = 0; k < count; ++k) {
      sums[k] = family.draw(draw);
      sums[k].a = sums[k / 32 * 32].a;
    }
    const std::vector<float> got = computed(sums);
    std::size_t other_order = 0, fused = 0;
    for (std::size_t k = 0; k < count; ++k) {
      const Sum& s = sums[k];
      ASSERT_TRUE(same(got[k], s.emulated()))
          << family.name << ", seed " << seed << std::hex << ": " << s.c << " + " << s.a << " * "
          << s.b << " is " << std::bit_cast<std::uint32_t>(got[k]) << ", emulated "
          << std::bit_cast<std::uint32_t>(s.emulated());
      other_order += !same(got[k], s.in_the_other_order());
      const float c = std::bit_cast<float>(s.c);
      fused += !same(
          got[k], std::fma(s.second(s.a), s.second(s.b), std::fma(s.first(s.a), s.first(s.b), c)));
    }
    std::printf("%s, seed %llu: %zu sums; in the other order %zu differ, without flushing %zu\n",
                family.name, static_cast<unsigned long long>(seed), count, other_order, fused);
    // Otherwise the comparison would show nothing.
    EXPECT_GT(other_order + fused, count / 100) << family.name;
  }
}

// Bits of an element that tell where it comes from.
std::uint16_t element(Index row, Index column) {
  return static_cast<std::uint16_t>(row * 257 + column * 31 + 1);
}

TEST_F(Bf16Dot, PacksKeysAndValuesInTheirOrder) {
  constexpr Index panel = bf16::panel_width;
  for (const Index dim : {1, 2, 7, 8, 9, 24, 33, 64}) {
    std::vector<std::uint16_t> rows(static_cast<std::size_t>(panel * dim));
    for (Index r = 0; r < panel; ++r)
      for (Index c = 0; c < dim; ++c) rows[static_cast<std::size_t>(r * dim + c)] = element(r, c);
    const auto* first = reinterpret_cast<const std::byte*>(rows.data());
    alignas(64) float words[32 * panel];
    bf16::pack_keys({{first, first + panel / 2 * dim * 2}, dim * 2, {0, 0}}, dim, words);
    for (Index w = 0; w < bf16::words_of(dim); ++w)
      for (Index r = 0; r < panel; ++r) {
        const std::uint32_t second = 2 * w + 1 < dim ? element(r, 2 * w + 1) : 0,
                            expected = static_cast<std::uint32_t>(element(r, 2 * w)) << 16 | second;
        ASSERT_EQ(std::bit_cast<std::uint32_t>(words[w * panel + r]), expected)
            << "D = " << dim << ", word " << w << " of key " << r;
      }
  }
  std::uint16_t one[2 * panel], two[2 * panel];
  std::uint16_t largest = 0;
  for (Index c = 0; c < 2 * panel; ++c) {
    one[c] = element(0, c);
    two[c] = element(1, c) | 0x8000;
    largest =
        std::max<std::uint16_t>({largest, one[c], static_cast<std::uint16_t>(two[c] & 0x7FFF)});
  }
  alignas(64) float words[4 * panel];
  EXPECT_EQ(bf16::pack_values(reinterpret_cast<const std::byte*>(one),
                              reinterpret_cast<const std::byte*>(two), 2 * panel, words, 2 * panel),
            largest);
  for (Index c = 0; c < 2 * panel; ++c)
    EXPECT_EQ(std::bit_cast<std::uint32_t>(words[c / panel * 2 * panel + c % panel]),
              static_cast<std::uint32_t>(one[c]) << 16 | two[c])
        << "column " << c;
}

TEST_F(Bf16Dot, RoundsWeightsToNearestEven) {
  alignas(64) float row[64];
  constexpr float given[] = {0,
                             1,
                             0x1.01p0f,
                             0x1.03p0f,
                             0x1.0101p0f,
                             0x1p-126f,
                             0x1.fffffep-1f,
                             0x1.fep-1f,
                             0x1.ff0002p-1f,
                             0x1p-100f};
  constexpr float rounded[] = {0,         1, 0x1.0p0f,   0x1.04p0f, 0x1.02p0f,
                               0x1p-126f, 1, 0x1.fep-1f, 1,         0x1p-100f};
  for (std::size_t i = 0; i < 64; ++i) row[i] = given[i % std::size(given)];
  bf16::pack_weights(row, 64);
  for (std::size_t i = 0; i < 64; ++i) {
    const auto word = std::bit_cast<std::uint32_t>(row[i / 2]);
    EXPECT_EQ(std::bit_cast<float>(i % 2 == 0 ? word & upper_half : word << 16),
              rounded[i % std::size(given)])
        << i;
  }
}

// Gives Q, K and V numbers of many sizes, some of which are subnormal.
void fill(const Inputs& in, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  for (const TensorView& t : {in.problem.q, in.problem.k, in.problem.v})
    for (Index h = 0; h < t.shape[1]; ++h)
      for (Index i = 0; i < t.shape[2]; ++i)
        for (Index d = 0; d < t.shape[3]; ++d) {
          const auto sign = static_cast<double>(random() % 2) * 2 - 1,
                     size = static_cast<double>(random() % 256 + 256);
          const int exponent =
              random() % 8 == 0 ? -135 : -8 - static_cast<int>(random() % 128) % (d % 3 ? 8 : 70);
          store(t, t.at(0, h, i, d), sign * std::ldexp(size, exponent));
        }
}

float chain(Index n, const auto& a, const auto& b) {
  float sum = 0;
  for (Index k = 0; k < n; ++k)
    sum = flushing_fma(static_cast<float>(a(k)), static_cast<float>(b(k)), sum);
  return sum;
}

// LSE of a row with one key is its score. Where Q is 0, weights are 1, and O times the number of
// keys is the sum of V, for a power of two. Calls with few rows read K and V where they are stored,
// those with many rows pack them.
TEST_F(Bf16Dot, SumsOfTheKernelAreChainsInOrder) {
  const kernels::Execution how(1, kernels::Target::named("AVX3_BF16").value());
  std::size_t compared = 0, fused = 0;
  for (const Index rows : {1, 3, 13, 110})
    for (const char* d : {"64", "33/17", "96/32", "2/160"}) {
      const std::string line =
          "attention b=1 h=1 dtype=bf16 out=f32 scale=1 seed=5 d=" + std::string(d) +
          " l=" + std::to_string(rows) + "x";
      const Case one = parse_case(line + "1"), many = parse_case(line + "1024");
      const Inputs of_one(one), of_many(many);
      fill(of_one, one.seed);
      fill(of_many, many.seed);
      const Attention &p = of_one.problem, &w = of_many.problem;
      const Outputs out_of_one(one), out_of_many(many);
      for (Index i = 0; i < rows; ++i)
        for (Index k = 0; k < w.shape.dim; ++k) store(w.q, w.q.at(0, 0, i, k), 0);
      ASSERT_TRUE(kernels::attention_forward(p, out_of_one.view(), how).ok());
      ASSERT_TRUE(kernels::attention_forward(w, out_of_many.view(), how).ok());
      for (Index i = 0; i < rows; ++i) {
        const auto q = [&](Index k) { return load(p.q, p.q.at(0, 0, i, k)); };
        const auto key = [&](Index k) { return load(p.k, p.k.at(0, 0, 0, k)); };
        const TensorView lse = out_of_one.lse.view(), o = out_of_many.o.view();
        const float score = chain(p.shape.dim, q, key);
        ASSERT_EQ(static_cast<float>(load(lse, lse.at(0, 0, i, 0))), score)
            << print_case(one) << ", row " << i;
        float exact_order = 0;
        for (Index k = 0; k < p.shape.dim; ++k)
          exact_order = std::fma(static_cast<float>(q(k)), static_cast<float>(key(k)), exact_order);
        fused += exact_order != score;
        for (Index c = 0; c < w.shape.value_dim; ++c) {
          // Splits of 512 keys are summed on their own.
          const auto sum_of = [&](Index first) {
            return chain(
                512, [](Index) { return 1; },
                [&](Index j) { return load(w.v, w.v.at(0, 0, first + j, c)); });
          };
          ASSERT_EQ(static_cast<float>(load(o, o.at(0, 0, i, c))),
                    (sum_of(0) + sum_of(512)) * 0x1p-10f)
              << print_case(many) << ", row " << i << ", column " << c;
          ++compared;
        }
      }
    }
  EXPECT_GT(compared, 10'000u);
  EXPECT_GT(fused, 0u) << "no score tells flushing from keeping";
}

// Only bf16 inputs change what the target computes.
TEST_F(Bf16Dot, OtherDtypesHaveTheBitsOfAVX3) {
  for (const char* dtype : {"f32", "f16", "bf16"}) {
    const Case c = parse_case("attention b=1 h=2/1 l=40x150 d=40 causal offset=end dtype=" +
                              std::string(dtype));
    const Inputs in(c);
    const Outputs pairs(c), floats(c);
    const kernels::Target target = kernels::Target::named("AVX3_BF16").value();
    ASSERT_TRUE(kernels::attention_forward(in.problem, pairs.view(), {1, target}).ok());
    ASSERT_TRUE(kernels::attention_forward(in.problem, floats.view(),
                                           {1, kernels::Target::named("AVX3").value()})
                    .ok());
    EXPECT_EQ(first_difference(pairs, floats).empty(), std::string(dtype) != "bf16") << dtype;
    EXPECT_EQ(kernels::computes_in_pairs(target, c.dtype, c.dtype, c.dtype),
              std::string(dtype) == "bf16");
  }
}

}  // namespace
}  // namespace assay
#else
TEST(Bf16Dot, IsNotInThisProgram) { GTEST_SKIP() << "no code for AVX512_BF16 is compiled"; }
#endif
