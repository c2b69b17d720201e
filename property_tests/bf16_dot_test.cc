// VDPBF16PS itself: whether each of its sums is two flushing fused multiply-adds, as
// kernels/simd/bf16_pairs.h and docs/bounds.md, 14, say. And packing, against plain loops.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs.h"
#include "kernels/product/product.h"
#include "kernels/product/product_amx.h"
#include "kernels/simd/amx.h"
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

#if ASSAY_AMX
// TDPBF16PS, as kernels/simd/amx.h describes it: tiles of 32 rows by 32 columns, of one chunk.
TEST_F(Bf16Dot, AmxIsTwoChainsOfFlushingFusedMultiplyAdds) {
  namespace amx = kernels::amx;
  if (!amx::runs()) GTEST_SKIP() << "this machine has no AMX";
  constexpr std::uint64_t seed = 2027;
  constexpr Index rows = 32, columns = 32, words = amx::chunk_words;
  const amx::Configured registers;
  std::size_t other_order = 0;
  for (const Family& family : families) {
    Draw draw(seed);
    std::size_t one_chain = 0, compared = 0;
    for (int round = 0; round < 200; ++round) {
      alignas(64) float a[rows * words], b[words * columns], c[rows * columns], got[rows * columns];
      for (float& x : a) x = std::bit_cast<float>(family.draw(draw).a);
      for (float& x : b) x = std::bit_cast<float>(family.draw(draw).b);
      for (float& x : c) x = std::bit_cast<float>(family.draw(draw).c);
      std::copy(std::begin(c), std::end(c), got);
      amx::multiply(rows, a, words, b, words, amx::Sum::onto, got, columns);
      for (Index m = 0; m < rows; ++m)
        for (Index n = 0; n < columns; ++n) {
          float first = 0, second = 0, one = c[m * columns + n];
          for (Index k = 0; k < words; ++k) {
            const Sum s{std::bit_cast<std::uint32_t>(a[m * words + k]),
                        std::bit_cast<std::uint32_t>(b[k * columns + n]),
                        std::bit_cast<std::uint32_t>(one)};
            first = flushing_fma(s.first(s.a), s.first(s.b), first);
            second = flushing_fma(s.second(s.a), s.second(s.b), second);
            one = s.emulated();
          }
          const float emulated = flushing_sum(c[m * columns + n], flushing_sum(first, second));
          ASSERT_TRUE(same(got[m * columns + n], emulated))
              << family.name << ", seed " << seed << ", round " << round << ", row " << m
              << ", column " << n << ": " << got[m * columns + n] << ", emulated " << emulated;
          one_chain += !same(emulated, one);
          ++compared;
        }
    }
    std::printf("%s, seed %llu: %zu sums; as one chain %zu differ\n", family.name,
                static_cast<unsigned long long>(seed), compared, one_chain);
    other_order += one_chain;
  }
  EXPECT_GT(other_order, 0u) << "no sum tells two chains from one";
}

// A chunk, and rows that are no whole tiles.
TEST_F(Bf16Dot, AmxMultipliesAnyRowsAndChunks) {
  namespace amx = kernels::amx;
  if (!amx::runs()) GTEST_SKIP() << "this machine has no AMX";
  const amx::Configured registers;
  constexpr Index most = 48, columns = 32;
  for (const Index rows : {1, 15, 16, 17, 32})
    for (const Index words : {16, 48})
      for (const amx::Sum sum : {amx::Sum::from_zero, amx::Sum::onto}) {
        alignas(64) float a[32 * most], b[most * columns], c[32 * columns];
        for (Index i = 0; i < 32; ++i)
          for (Index k = 0; k < words; ++k)  // small integers, of which sums are exact
            a[i * most + k] = std::bit_cast<float>(
                Draw(1).word(std::bit_cast<std::uint32_t>(static_cast<float>(i % 5 - 2)),
                             std::bit_cast<std::uint32_t>(static_cast<float>(k % 3))));
        for (Index k = 0; k < words; ++k)
          for (Index n = 0; n < columns; ++n)
            b[k * columns + n] = std::bit_cast<float>(
                Draw(1).word(std::bit_cast<std::uint32_t>(static_cast<float>(n % 7 - 3)),
                             std::bit_cast<std::uint32_t>(static_cast<float>((k + n) % 4))));
        std::fill(std::begin(c), std::end(c), 1000.0f);
        amx::multiply(rows, a, most, b, words, sum, c, columns);
        for (Index i = 0; i < rows; ++i)
          for (Index n = 0; n < columns; ++n) {
            Index expected = sum == amx::Sum::onto ? 1000 : 0;
            for (Index k = 0; k < words; ++k)
              expected += (i % 5 - 2) * (n % 7 - 3) + k % 3 * ((k + n) % 4);
            ASSERT_EQ(c[i * columns + n], static_cast<float>(expected))
                << rows << " rows, " << words << " words, row " << i << ", column " << n;
          }
      }
}
#endif

TEST_F(Bf16Dot, TransposesWords) {
  alignas(64) float from[16 * 48], to[16 * 64];
  for (Index i = 0; i < 16; ++i)
    for (Index k = 0; k < 16; ++k) from[i * 48 + k] = static_cast<float>(100 * i + k);
  bf16::transpose_words(from, 48, to, 64);
  for (Index i = 0; i < 16; ++i)
    for (Index k = 0; k < 16; ++k)
      ASSERT_EQ(to[k * 64 + i], static_cast<float>(100 * i + k)) << i << ", " << k;
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

// Sum a b, from `sum` on, as the instruction of a target adds it.
using Chain = float (*)(float sum, Index n, const std::function<float(Index)>& a,
                        const std::function<float(Index)>& b);

float chain_of_dots(float sum, Index n, const std::function<float(Index)>& a,
                    const std::function<float(Index)>& b) {
  for (Index k = 0; k < n; ++k) sum = flushing_fma(a(k), b(k), sum);
  return sum;
}

// Two chains over a chunk of 32, from 0, which are added before the sum takes them.
float chain_of_chunks(float sum, Index n, const std::function<float(Index)>& a,
                      const std::function<float(Index)>& b) {
  for (Index first = 0; first < n; first += 32) {
    float halves[2] = {0, 0};
    for (Index k = first; k < std::min(n, first + 32); ++k)
      halves[k % 2] = flushing_fma(a(k), b(k), halves[k % 2]);
    sum = flushing_sum(sum, flushing_sum(halves[0], halves[1]));
  }
  return sum;
}

struct TargetSums {
  const char* target;
  Chain chain;
};
void PrintTo(const TargetSums& sums, std::ostream* out) { *out << sums.target; }

// Both targets that multiply pairs, with the order of their sums.
class PairSums : public testing::TestWithParam<TargetSums> {
 protected:
  void SetUp() override {
    const auto target = kernels::Target::named(GetParam().target);
    if (!target) GTEST_SKIP() << "this machine does not run " << GetParam().target;
    how_ = {1, *target};
  }
  float chain(Index n, const std::function<float(Index)>& a,
              const std::function<float(Index)>& b) const {
    return GetParam().chain(0, n, a, b);
  }
  bool has_chunks() const { return GetParam().chain == chain_of_chunks; }

  kernels::Execution how_;
};
INSTANTIATE_TEST_SUITE_P(Targets, PairSums,
                         testing::Values(TargetSums{"AVX3_BF16", chain_of_dots},
                                         TargetSums{"AVX3_AMX", chain_of_chunks}),
                         [](const auto& of) { return std::string(of.param.target); });

// LSE of a row with one key is its score. Where Q is 0, weights are 1, and O times the number of
// keys is the sum of V, for a power of two. Calls with few rows read K and V where they are stored,
// those with many rows pack them.
TEST_P(PairSums, OfTheKernelAreInOrder) {
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
      ASSERT_TRUE(kernels::attention_forward(p, out_of_one.view(), how_).ok());
      ASSERT_TRUE(kernels::attention_forward(w, out_of_many.view(), how_).ok());
      for (Index i = 0; i < rows; ++i) {
        const auto q = [&](Index k) { return static_cast<float>(load(p.q, p.q.at(0, 0, i, k))); };
        const auto key = [&](Index k) { return static_cast<float>(load(p.k, p.k.at(0, 0, 0, k))); };
        const TensorView lse = out_of_one.lse.view(), o = out_of_many.o.view();
        const float score = chain(p.shape.dim, q, key);
        ASSERT_EQ(static_cast<float>(load(lse, lse.at(0, 0, i, 0))), score)
            << print_case(one) << ", row " << i;
        float exact_order = 0;
        for (Index k = 0; k < p.shape.dim; ++k) exact_order = std::fma(q(k), key(k), exact_order);
        fused += exact_order != score;
        for (Index c = 0; c < w.shape.value_dim; ++c) {
          // Splits of 512 keys are summed on their own.
          const auto sum_of = [&](Index first) {
            return chain(
                512, [](Index) { return 1.0f; },
                [&](Index j) { return static_cast<float>(load(w.v, w.v.at(0, 0, first + j, c))); });
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

float in_bf16(float x) { return static_cast<float>(round_to(Dtype::bf16, static_cast<double>(x))); }

// The gradients where every P is 1 and D is 0, so that dS is dP: LSE is what the scores are, and O
// is 0. Then all five products are sums of known numbers.
TEST_P(PairSums, OfGradientsAreInOrder) {
  std::size_t fused = 0;
  for (const char* d : {"64", "33/17", "96/32", "2/160"})
    for (const char* l : {"1x1", "3x250", "110x1", "201x203"}) {
      const Case c = parse_case(
          "backward b=1 h=1 dtype=bf16 out=f32 scale=1 seed=7 d=" + std::string(d) + " l=" + l);
      const Inputs in(c);
      fill(in, c.seed);
      const Attention& p = in.problem;
      const AttentionShape& s = p.shape;
      std::mt19937_64 random(c.seed);
      const TensorView d_o = in.d_o.view();
      for (Index i = 0; i < s.rows; ++i) {
        for (Index k = 0; k < s.value_dim; ++k)
          store(d_o, d_o.at(0, 0, i, k), std::ldexp(static_cast<double>(random() % 511) - 255, -9));
        // All scores of a row must be one number.
        for (Index k = 0; k < s.dim && s.keys > 1; ++k) store(p.q, p.q.at(0, 0, i, k), 0);
      }
      const auto element = [](const TensorView& t, Index row, Index column) {
        return static_cast<float>(load(t, t.at(0, 0, row, column)));
      };
      const Outputs forward(c);
      for (Index i = 0; i < s.rows; ++i) {
        const TensorView o = forward.o.view(), lse = forward.lse.view();
        for (Index k = 0; k < s.value_dim; ++k) store(o, o.at(0, 0, i, k), 0);
        store(lse, lse.at(0, 0, i, 0),
              static_cast<double>(chain(
                  s.dim, [&](Index k) { return element(p.q, i, k); },
                  [&](Index k) { return element(p.k, 0, k); })));
      }
      const GradientOutputs out(c, in);
      ASSERT_TRUE(kernels::attention_backward(p, {forward.o.view(), forward.lse.view(), d_o},
                                              out.view(), how_)
                      .ok());
      std::vector<float> ds(static_cast<std::size_t>(s.rows * s.keys));
      for (Index i = 0; i < s.rows; ++i)
        for (Index j = 0; j < s.keys; ++j)
          ds[static_cast<std::size_t>(i * s.keys + j)] = in_bf16(chain(
              s.value_dim, [&](Index k) { return element(d_o, i, k); },
              [&](Index k) { return element(p.v, j, k); }));
      const kernels::BackwardTiling tiling = kernels::backward_tiling(s.dim, s.value_dim);
      // Sums of tiles, each from zero; chunks are such tiles.
      const auto tiled = [&](Index n, Index tile, const auto& a, const auto& b) {
        float total = 0;
        for (Index at = 0; at < n; at += tile) {
          const Index count = std::min(tile, n - at);
          const auto x = [&](Index k) { return a(at + k); };
          const auto y = [&](Index k) { return b(at + k); };
          if (has_chunks()) total = GetParam().chain(total, count, x, y);
          else total += chain(count, x, y);
        }
        return total;
      };
      const auto of_ds = [&](Index i, Index j) {
        return ds[static_cast<std::size_t>(i * s.keys + j)];
      };
      const std::string line = print_case(c);
      for (Index j = 0; j < s.keys; ++j) {
        for (Index k = 0; k < s.value_dim; ++k)
          ASSERT_EQ(element(out.dv.view(), j, k),
                    tiled(
                        s.rows, tiling.rows, [](Index) { return 1.0f; },
                        [&](Index i) { return element(d_o, i, k); }))
              << line << ", dV of key " << j << ", column " << k;
        for (Index k = 0; k < s.dim; ++k) {
          const auto q = [&](Index i) { return element(p.q, i, k); };
          const float sum = tiled(s.rows, tiling.rows, [&](Index i) { return of_ds(i, j); }, q);
          ASSERT_EQ(element(out.dk.view(), j, k), sum)
              << line << ", dK of key " << j << ", column " << k;
          float plain = 0;
          for (Index i = 0; i < s.rows; ++i) plain = std::fma(of_ds(i, j), q(i), plain);
          fused += plain != sum;
        }
      }
      for (Index i = 0; i < s.rows; ++i)
        for (Index k = 0; k < s.dim; ++k) {
          float sum = 0;  // of splits
          for (Index split = 0; split < s.keys; split += tiling.split_keys)
            sum += tiled(
                std::min(tiling.split_keys, s.keys - split), tiling.keys,
                [&](Index j) { return of_ds(i, split + j); },
                [&](Index j) { return element(p.k, split + j, k); });
          ASSERT_EQ(element(out.dq.view(), i, k), sum)
              << line << ", dQ of row " << i << ", column " << k;
        }
    }
  EXPECT_GT(fused, 0u) << "no sum tells tiles that flush from one fused sum";
}

// Products of any number of rows, in every format.
TEST_P(PairSums, OfProductsAreInOrder) {
  if (!has_chunks()) GTEST_SKIP() << "only AMX multiplies A in bf16";
  std::size_t compared = 0, fused = 0;
  for (const char* format :
       {"mxfp4", "nvfp4", "fp4", "fp4-sparse", "int4:32", "int8:32", "f8e4m3:32", "f8e5m2"})
    for (const Index rows : {1, 2, 5, 13, 40}) {
      const Case c = parse_case("product m=" + std::to_string(rows) +
                                " n=70 k=200 dtype=bf16 out=f32 seed=3 w=" + format);
      const ProductInputs in(c);
      const Product& p = in.problem;
      std::mt19937_64 random(c.seed);
      for (Index m = 0; m < rows; ++m)
        for (Index k = 0; k < p.k; ++k)
          if (m == 0 || random() % 8 == 0) store(p.a, p.a.at(0, 0, m, k), std::ldexp(1.5, -130));
      std::shared_ptr<const kernels::PackedWeights> w;
      ASSERT_TRUE(kernels::PackedWeights::pack(p.w, w).ok());
      const ProductOutput out(c);
      ASSERT_TRUE(kernels::product(p.a, *w, out.c.view(), how_).ok());
      for (Index m = 0; m < rows; ++m)
        for (Index n = 0; n < p.n; ++n) {
          float total = 0, kept = 0;
          for (Index t = 0; t < w->groups(); ++t) {
            const Index first = t * w->group(), count = std::min(w->group(), p.k - first);
            const auto a = [&](Index k) {
              return static_cast<float>(load(p.a, p.a.at(0, 0, m, first + k)));
            };
            const auto code = [&](Index k) { return w->value(first + k, n); };
            total = std::fma(chain(count, a, code), w->scale(t, n), total);
            float sum = 0;
            for (Index k = 0; k < count; ++k) sum = std::fma(a(k), code(k), sum);
            kept = std::fma(sum, w->scale(t, n), kept);
          }
          const auto got = static_cast<float>(load(out.c.view(), out.c.view().at(0, 0, m, n)));
          ASSERT_TRUE(same(got, total * w->tensor_scale()))
              << print_case(c) << ", row " << m << ", column " << n << ": " << got << ", not "
              << total * w->tensor_scale();
          ++compared;
          fused += !same(total, kept);
        }
    }
  EXPECT_GT(compared, 10'000u);
  EXPECT_GT(fused, 0u) << "no sum tells flushing from keeping";
}

// Only bf16 inputs change what the target computes.
TEST_P(PairSums, OfOtherDtypesHaveTheBitsOfAVX3) {
  for (const char* dtype : {"f32", "f16", "bf16"}) {
    const Case c = parse_case("attention b=1 h=2/1 l=40x150 d=40 causal offset=end dtype=" +
                              std::string(dtype));
    const Inputs in(c);
    const Outputs pairs(c), floats(c);
    const kernels::Target target = how_.target;
    ASSERT_TRUE(kernels::attention_forward(in.problem, pairs.view(), {1, target}).ok());
    ASSERT_TRUE(kernels::attention_forward(in.problem, floats.view(),
                                           {1, kernels::Target::named("AVX3").value()})
                    .ok());
    EXPECT_EQ(first_difference(pairs, floats).empty(), std::string(dtype) != "bf16") << dtype;
    const bool in_pairs = std::string(dtype) == "bf16";
    EXPECT_EQ(kernels::computes_in_pairs(target, c.dtype, c.dtype, c.dtype), in_pairs);
    EXPECT_EQ(kernels::computes_gradients_in_pairs(target, in.problem, c.dtype), in_pairs);
    EXPECT_FALSE(kernels::computes_gradients_in_pairs(target, in.problem, Dtype::f32));
    EXPECT_EQ(kernels::multiplies_with_amx(target, c.dtype), in_pairs && has_chunks());
  }
}

}  // namespace
}  // namespace assay
#else
TEST(Bf16Dot, IsNotInThisProgram) { GTEST_SKIP() << "no code for AVX512_BF16 is compiled"; }
#endif
