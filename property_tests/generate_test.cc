#include "problem/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "problem/parallel.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

std::string line_with(const std::string& fields) { return "attention " + fields; }
Scores scores_at(int i) { return static_cast<Scores>(i); }
Values values_at(int i) { return static_cast<Values>(i); }
std::string scores_field(Scores s) { return " scores=" + std::string(name_of(s)); }
std::string values_field(Values v) { return " values=" + std::string(name_of(v)); }

std::uint64_t bits_at(const TensorView& t, Index b, Index h, Index i, Index d) {
  return std::bit_cast<std::uint64_t>(load(t, t.at(b, h, i, d)));
}

template <class Body>
void for_each_position(const Extents& s, const Body& body) {
  for (Index b = 0; b < s[0]; ++b)
    for (Index h = 0; h < s[1]; ++h)
      for (Index i = 0; i < s[2]; ++i)
        for (Index d = 0; d < s[3]; ++d) body(b, h, i, d);
}

// The bits of all elements in logical order, whatever the layout is.
std::vector<std::uint64_t> bits_of(const TensorView& t) {
  std::vector<std::uint64_t> bits;
  for_each_position(
      t.shape, [&](Index b, Index h, Index i, Index d) { bits.push_back(bits_at(t, b, h, i, d)); });
  return bits;
}

const TensorView& tensor_of(const Inputs& in, char name) {
  return name == 'q'   ? in.problem.q
         : name == 'k' ? in.problem.k
         : name == 'v' ? in.problem.v
                       : in.problem.bias;
}

// Whether every element of the tensor of `small` equals the element of `large` at the same
// coordinates.
bool is_corner_of(const TensorView& small, const TensorView& large) {
  bool same = true;
  for_each_position(small.shape, [&](Index b, Index h, Index i, Index d) {
    same = same && bits_at(small, b, h, i, d) == bits_at(large, b, h, i, d);
  });
  return same;
}

// --- The bits that a case line stands for. ---

// These literals fix the meaning of the notation: a stored case line means these inputs on every
// machine and in every later version. A change here makes every recorded case a different one.
TEST(GeneratePinned, Elements) {
  struct Row {
    std::string fields;
    char tensor;
    Extents at;
    double value;
  };
  const std::string shape = "b=3 h=4/2 l=20x24 d=16/8", wide = shape + " dtype=f64";
  for (const Row& r : std::vector<Row>{
           {wide, 'q', {2, 3, 19, 15}, 0x1.1f2049c791c53p-3},
           {wide, 'k', {1, 1, 23, 7}, -0x1.b56f5294004c5p-1},
           {wide, 'v', {0, 0, 0, 0}, -0x1.42b863d9f65a7p-2},
           {wide, 'v', {2, 1, 23, 7}, -0x1.f1c35afb6ee79p-2},
           {shape, 'q', {2, 3, 19, 15}, 0x1.1f204ap-3},
           {shape + " dtype=f16", 'q', {2, 3, 19, 15}, 0x1.1f4p-3},
           {shape + " dtype=bf16", 'q', {2, 3, 19, 15}, 0x1.2p-3},
           {wide + " seed=18446744073709551615", 'q', {2, 3, 19, 15}, -0x1.ef8ff906aee11p-1},
           {wide + " seed=18446744073709551615", 'k', {1, 1, 23, 7}, -0x1.7502e87b61c89p-1},
           {wide + " seed=18446744073709551615", 'v', {2, 1, 23, 7}, 0x1.032fc73500c0ep-3},
           {wide + " scores=uniform", 'q', {2, 3, 19, 15}, 0x1.c2049408p-1},
           {wide + " scores=heavy-tail", 'k', {1, 1, 23, 7}, -0x1.3f4d0bf158a36p+0},
           {wide + " scores=cancel", 'q', {2, 3, 19, 15}, -0x1.892988957c2bfp+1},
           {wide + " scores=cancel", 'k', {1, 1, 23, 7}, -0x1.119ce795a2b9ep+3},
           {wide + " scores=large-scores", 'k', {1, 1, 23, 7}, 0x1.e914df6a1c7aep+5},
           {wide + " values=cancel", 'v', {2, 1, 23, 7}, -0x1.10ea30135f6dep+9},
           {wide + " values=integers", 'v', {0, 0, 0, 0}, 5},
           {shape + " dtype=f16 values=subnormal", 'v', {2, 1, 23, 7}, -0x1p-19},
           {wide + " bias=normal", 'm', {2, 3, 19, 23}, -0x1.d4ec97e37278p-2},
       }) {
    const Inputs in(parse_case(line_with(r.fields)));
    const TensorView& t = tensor_of(in, r.tensor);
    EXPECT_EQ(load(t, t.at(r.at[0], r.at[1], r.at[2], r.at[3])), r.value)
        << r.fields << " " << r.tensor;
  }
  const Inputs in(parse_case(line_with("b=1 h=1 l=2x32 bool=random")));
  std::string row;
  for (Index j = 0; j < 32; ++j) row += in.problem.keep.at(0, 0, 1, j) ? '1' : '0';
  EXPECT_EQ(row, "11011110001111111110111111011111");
}

// FNV-1a over the doubles in logical order.
std::uint64_t digest(const Inputs& in, const std::string& tensors) {
  std::uint64_t hash = 0xCBF29CE484222325;
  for (char name : tensors)
    for (std::uint64_t bits : bits_of(tensor_of(in, name)))
      for (int shift = 0; shift < 64; shift += 8)
        hash = (hash ^ (bits >> shift & 0xFF)) * 0x100000001B3;
  return hash;
}

// A digest of all elements of every family, in the order of the enumerations.
TEST(GeneratePinned, DigestOfEveryFamily) {
  const std::string shape = "b=2 h=4/2 l=19x21 d=6/5";
  const std::array<std::uint64_t, count_of<Scores>> of_scores = {
      0xB5F10DB5E1E9805B, 0xC44528B129405876, 0xF58337942CCE2833, 0xAB9878F58298CF96,
      0xF1C44DACF654FE6D, 0xC21C7742DB9DCBBE, 0x57ADA97085DFA742, 0x8569638823D2E943,
      0xEBD930391C065E60, 0xCE94BD3FC53314B6, 0x08998853D90216EB, 0x4F9367DFE13343EB,
      0x3814850B05819A54, 0xB159E5EE6BD4E978, 0x916542D25E77F4BD, 0xAEAA827CC94AEB69,
      0x07A35A61463E8F62, 0x80794C66F176EFAB, 0x145B4D6C80CC49AE, 0xD78A4A35138B1BC1,
      0x05A2369D4AB9C9E4, 0x8BC6E2C6DBFFEEF1, 0x2718DF0A2605A625};
  const std::array<std::uint64_t, count_of<Values>> of_values = {
      0xEB27EF8DA41EFD86, 0xE1F64BD7EA9DCFBB, 0x1E1C5DE737453995, 0x5B92A98FF3E06ED6,
      0x21D1CEA97CBAAFFF, 0x93B416DB64F9C2E3, 0xC805CC4139795865, 0xA33D6DC1BFB61B2F,
      0xC5E0F25245220D41, 0x2A4961FDDA95A618, 0x285F109E917017C5, 0x5BF9FFA9CB01D98A,
      0xB00A5D3D2E126065, 0x604882152A945C25, 0xE12D8F9912239AB8, 0xFA99BFF03BC1EB53,
      0xE8744C3563B30279, 0x2C6D340426736C65};
  for (int i = 0; i < count_of<Scores>; ++i) {
    const std::uint64_t d =
        digest(Inputs(parse_case(line_with(shape + scores_field(scores_at(i))))), "qk");
    EXPECT_EQ(d, of_scores[usize(i)]) << name_of(scores_at(i)) << std::hex << " 0x" << d;
  }
  for (int i = 0; i < count_of<Values>; ++i) {
    const std::uint64_t d =
        digest(Inputs(parse_case(line_with(shape + values_field(values_at(i))))), "v");
    EXPECT_EQ(d, of_values[usize(i)]) << name_of(values_at(i)) << std::hex << " 0x" << d;
  }
}

// Philox4x32-10 from its paper (Salmon et al., 2011). With it the literals above are more than a
// copy of what the code computes.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> x,
                                    std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * x[0], b = std::uint64_t{0xCD9E8D57} * x[2];
    x = {static_cast<std::uint32_t>(b >> 32) ^ x[1] ^ key[0], static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ x[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return x;
}

TEST(GeneratePinned, NormalElementsFollowFromPhilox) {
  // The known answer of the generator itself.
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}),
            (std::array<std::uint32_t, 4>{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}));
  for (const std::string seed : {"1", "4294967296", "18446744073709551615"}) {
    const Case c = parse_case(line_with("b=2 h=4/2 l=3x5 d=7 dtype=f64 seed=" + seed));
    const Inputs in(c);
    std::uint32_t stream = 0;
    for (char name : {'q', 'k', 'v'}) {
      ++stream;
      const TensorView& t = tensor_of(in, name);
      for_each_position(t.shape, [&](Index b, Index h, Index i, Index d) {
        auto low = [](Index x) { return static_cast<std::uint32_t>(x); };
        const auto words = philox({low(i), low(d), low(h), low(b)},
                                  {static_cast<std::uint32_t>(c.seed),
                                   static_cast<std::uint32_t>(c.seed >> 32) ^ stream << 24});
        // The sum of eight uniform 16-bit numbers, centred. The factor sqrt(12 / 8) / 2^16 makes
        // the variance 1.
        double sum = -8 * 32767.5;
        for (std::uint32_t w : words) sum += (w & 0xFFFF) + (w >> 16);
        EXPECT_EQ(load(t, t.at(b, h, i, d)), sum * (std::sqrt(1.5) * 0x1p-16))
            << name << " " << seed;
      });
    }
  }
}

// A copy has the same elements in memory of its own, whatever kinds of inputs there are.
TEST(Generate, CopiesAreTheSameInputsApart) {
  for (const char* fields :
       {"b=2 h=4/2 l=9x13 d=8/5 bias=normal@hij bool=random@bj "
        "layout=q:padded,k:strided,v:reversed",
        "b=1 h=2 l=5x40 d=16 dtype=bf16 hidden=nan lengths=30 layout=distant poke=v:0:1:3:2=inf",
        "b=2 h=2 l=4x20 d=16 offset=end cache=paged:4 store=f8e4m3/8",
        "b=1 h=2 l=3x8 d=12 offset=end cache=latent:4:16+4"}) {
    const Case c = parse_case(line_with(fields));
    const Inputs in(c, Surroundings::page_behind);
    const Inputs copy(in);
    EXPECT_EQ(copy.around, in.around);
    for (const auto tensor : {&Attention::q, &Attention::k, &Attention::v, &Attention::bias}) {
      const TensorView &mine = copy.problem.*tensor, &theirs = in.problem.*tensor;
      ASSERT_EQ(bool(mine), bool(theirs)) << fields;
      if (!mine) continue;
      EXPECT_NE(mine.data, theirs.data);
      EXPECT_EQ(mine.stride, theirs.stride);
      EXPECT_EQ(bits_of(mine), bits_of(theirs)) << fields;
    }
    EXPECT_EQ(copy.keep, in.keep);
    if (copy.problem.keep) {
      EXPECT_EQ(copy.problem.keep.data, copy.keep.data());
    }
    EXPECT_EQ(copy.problem.projection.k_absolute.data, copy.k_absolute.view().data);
    EXPECT_EQ(copy.problem.key_lengths, in.problem.key_lengths);
    store(copy.problem.q, copy.problem.q.at(0, 0, 0, 0), 77);
    EXPECT_NE(load(in.problem.q, in.problem.q.at(0, 0, 0, 0)), 77);
  }
}

TEST(Generate, SeedsAndTensorsDiffer) {
  std::set<std::uint64_t> digests;
  for (const char* seed : {"0", "1", "2", "4294967297", "18446744073709551615"}) {
    const Inputs in(parse_case(line_with("l=8 d=8 bias=normal seed=" + std::string(seed))));
    for (const char* tensor : {"q", "k", "v", "m"}) digests.insert(digest(in, tensor));
  }
  EXPECT_EQ(digests.size(), 20u);
}

TEST(Generate, SameBitsInEveryLayout) {
  const std::string fields = "b=2 h=4/2 l=5x6 d=3/7 dtype=f16 layout=";
  const Inputs plain(parse_case(line_with(fields + "bhsd")));
  for (int k = 1; k < count_of<LayoutKind>; ++k) {
    const auto kind = static_cast<LayoutKind>(k);
    const std::string name(name_of(kind));
    const Inputs in(parse_case(line_with(fields + "q:" + name + ",k:" + name + ",v:" + name)));
    for (char tensor : {'q', 'k', 'v'}) {
      const TensorView &t = tensor_of(in, tensor), &p = tensor_of(plain, tensor);
      EXPECT_EQ(t.shape, p.shape);
      for_each_position(t.shape, [&](Index b, Index h, Index i, Index d) {
        // Along a broadcast axis every element equals the one at index 0.
        EXPECT_EQ(bits_at(t, b, h, i, d), bits_at(p, kind == LayoutKind::shared_batch ? 0 : b,
                                                  kind == LayoutKind::shared_head ? 0 : h, i, d))
            << name;
      });
    }
    EXPECT_TRUE(in.q.guards_intact() && in.k.guards_intact() && in.v.guards_intact()) << name;
  }
}

TEST(Generate, SameBitsOnAnyThreads) {
  const std::string fields =
      "b=2 h=6/3 l=33x35 d=9 dtype=bf16 bias=large bool=random scores=heavy-tail values=cancel";
  const Inputs alone(parse_case(line_with(fields + " threads=1")));
  const std::uint64_t expected = digest(alone, "qkvm");
  std::array<std::uint64_t, 9> found{};
  auto again = [&](std::size_t slot, const char* threads) {
    const Inputs in(parse_case(line_with(fields + threads)));
    found[slot] = in.keep == alone.keep ? digest(in, "qkvm") : 0;
  };
  again(0, " threads=0");
  parallel_for(4, 2, [&](Index i) { again(usize(i) + 1, " threads=7"); });
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 5; t < 9; ++t) threads.emplace_back([&, t] { again(t, " threads=2"); });
  }
  for (std::uint64_t d : found) EXPECT_EQ(d, expected);
}

// --- Shrinking keeps what it leaves. ---

TEST(GenerateShrink, FewerBatchesHeadsAndRowsKeepTheRest) {
  const std::string large = "b=3 h=6/3 l=19x21 d=6/5 bias=normal bool=random",
                    small = "b=2 h=4/2 l=11x21 d=6/5 bias=normal bool=random";
  for (int i = 0; i < count_of<Scores>; ++i) {
    const std::string families =
        scores_field(scores_at(i)) + values_field(values_at(i % count_of<Values>));
    const Inputs a(parse_case(line_with(small + families))),
        b(parse_case(line_with(large + families)));
    for (char tensor : {'q', 'k', 'v', 'm'})
      EXPECT_TRUE(is_corner_of(tensor_of(a, tensor), tensor_of(b, tensor)))
          << families << " " << tensor;
  }
}

// The families growing and falling are left out, because they spread over all keys. Subset and
// gather are left out, because they choose among the keys.
TEST(GenerateShrink, FewerKeysKeepTheRest) {
  const std::string large = "b=2 h=4/2 l=19x37 d=6/5 bias=minus-infinity",
                    small = "b=1 h=2/1 l=5x21 d=6/5 bias=minus-infinity";
  for (int i = 0; i < count_of<Scores>; ++i) {
    const Scores s = scores_at(i);
    if (s == Scores::growing || s == Scores::falling || s == Scores::subset || s == Scores::gather)
      continue;
    const std::string families = scores_field(s) + values_field(values_at(i % count_of<Values>));
    const Inputs a(parse_case(line_with(small + families))),
        b(parse_case(line_with(large + families)));
    for (char tensor : {'q', 'k', 'v', 'm'})
      EXPECT_TRUE(is_corner_of(tensor_of(a, tensor), tensor_of(b, tensor)))
          << families << " " << tensor;
  }
}

// The families whose formula does not contain sqrt(D) nor a place that depends on the width.
TEST(GenerateShrink, SmallerHeadDimensionsKeepTheRest) {
  const std::string large = "b=2 h=4/2 l=7x9 d=33/17", small = "b=2 h=4/2 l=7x9 d=10/4";
  for (Scores s : {Scores::normal, Scores::uniform, Scores::tiny, Scores::huge,
                   Scores::near_overflow, Scores::subnormal, Scores::signed_zeros, Scores::ramp,
                   Scores::ties, Scores::equal, Scores::cancel, Scores::heavy_tail, Scores::flat}) {
    const Inputs a(parse_case(line_with(small + scores_field(s)))),
        b(parse_case(line_with(large + scores_field(s))));
    EXPECT_TRUE(is_corner_of(a.problem.q, b.problem.q) && is_corner_of(a.problem.k, b.problem.k))
        << name_of(s);
  }
  for (int i = 0; i < count_of<Values>; ++i) {
    if (values_at(i) == Values::one_hot) continue;
    const Inputs a(parse_case(line_with(small + values_field(values_at(i))))),
        b(parse_case(line_with(large + values_field(values_at(i)))));
    EXPECT_TRUE(is_corner_of(a.problem.v, b.problem.v)) << name_of(values_at(i));
  }
}

// --- Families. ---

bool all_finite(const TensorView& t) {
  bool finite = true;
  for_each_position(t.shape, [&](Index b, Index h, Index i, Index d) {
    finite = finite && std::isfinite(load(t, t.at(b, h, i, d)));
  });
  return finite;
}

TEST(GenerateFamilies, FiniteInEveryDtypeAndDimension) {
  for (const char* dtype : {"f64", "f32", "f16", "bf16"})
    for (const char* shape : {"l=3x5 d=1", "l=20x40 d=5", "h=2/1 l=3x300 d=64/16", "l=2x17 d=1024",
                              "l=1x1 d=2", "l=0x3 d=8", "l=3x0 d=8"})
      for (int i = 0; i < count_of<Scores>; ++i) {
        const std::string fields = std::string(shape) + " dtype=" + dtype +
                                   scores_field(scores_at(i)) +
                                   values_field(values_at(i % count_of<Values>));
        const Inputs in(parse_case(line_with(fields)));
        for (char tensor : {'q', 'k', 'v'})
          EXPECT_TRUE(all_finite(tensor_of(in, tensor))) << fields << " " << tensor;
      }
}

// The families that use the scale must stay inside the dtype under an unusual scale.
TEST(GenerateFamilies, FiniteUnderAnyScale) {
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* scale : {"0", "1e-45", "1e-10", "0.0001", "1", "3e+38"})
      for (Scores s : {Scores::subset, Scores::gather}) {
        const std::string fields =
            std::string("l=9x40 d=16 dtype=") + dtype + " scale=" + scale + scores_field(s);
        const Inputs in(parse_case(line_with(fields)));
        EXPECT_TRUE(all_finite(in.problem.q) && all_finite(in.problem.k)) << fields;
      }
}

// A row of `gather` sees one key and a row of `subset` sees several. Their scores are exact: 0, or
// so far below 0 that exp gives 0 in binary32. This holds where D has room for the bits of the
// key's number and one more bit.
TEST(GenerateFamilies, SubsetAndGatherSelectExactly) {
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* shape :
         {"l=40x40 d=16", "l=9x257 d=10", "l=50x1 d=4", "l=5x100 d=64", "l=5x100 d=1024"})
      for (Scores s : {Scores::subset, Scores::gather}) {
        const std::string fields = std::string(shape) + " dtype=" + dtype + scores_field(s);
        const Inputs in(parse_case(line_with(fields)));
        const Attention& a = in.problem;
        std::set<Index> selected_ever;
        for (Index i = 0; i < a.shape.rows; ++i) {
          Index selected = 0;
          for (Index j = 0; j < a.shape.keys; ++j) {
            double t = 0;
            for (Index d = 0; d < a.shape.dim; ++d)
              t += load(a.q, a.q.at(0, 0, i, d)) * load(a.k, a.k.at(0, 0, j, d));
            t *= static_cast<double>(a.scale);
            EXPECT_TRUE(t == 0 || t < -104) << fields << " row " << i << " key " << j << ": " << t;
            if (t != 0) continue;
            ++selected;
            if (s == Scores::gather) {
              EXPECT_LE(j, i) << "visible under a causal mask";
              selected_ever.insert(j);
            }
          }
          EXPECT_GE(selected, 1) << fields << " row " << i;
          EXPECT_TRUE(s == Scores::subset || selected == 1)
              << fields << " row " << i << ": " << selected;
        }
        EXPECT_TRUE(s == Scores::subset || a.shape.rows < 40 || a.shape.keys < 40 ||
                    selected_ever.size() > 10u)
            << fields;
      }
}

TEST(GenerateFamilies, NormalHasTheMomentsThatItsNameClaims) {
  const Inputs in(parse_case(line_with("b=2 h=4 l=64 d=64 dtype=f64")));
  double sum = 0, squares = 0, largest = 0;
  for_each_position(in.problem.q.shape, [&](Index b, Index h, Index i, Index d) {
    const double x = load(in.problem.q, in.problem.q.at(b, h, i, d));
    sum += x;
    squares += x * x;
    largest = std::max(largest, std::fabs(x));
  });
  const double n = static_cast<double>(element_count(in.problem.q.shape));
  EXPECT_NEAR(sum / n, 0, 0.02);
  EXPECT_NEAR(squares / n, 1, 0.03);
  EXPECT_GT(largest, 3.0);
  EXPECT_LT(largest, 4.9);
}

TEST(GenerateFamilies, NamesMeanWhatTheySay) {
  auto values_of = [](const char* fields) {
    return std::make_unique<Inputs>(
        parse_case(line_with("b=2 h=3 l=7x20 d=8 " + std::string(fields))));
  };
  auto expect_v = [&](const char* fields, auto rule) {
    const auto in = values_of(fields);
    const TensorView& v = in->problem.v;
    for_each_position(v.shape, [&](Index b, Index h, Index i, Index d) {
      EXPECT_TRUE(rule(load(v, v.at(b, h, i, d)), b, h, i, d)) << fields;
    });
  };
  expect_v("values=ones", [](double x, Index, Index, Index, Index) { return x == 1; });
  expect_v("values=one-hot",
           [](double x, Index, Index, Index i, Index d) { return x == (i % 8 == d ? 1 : 0); });
  expect_v("values=balanced", [](double x, Index, Index, Index i, Index d) {
    return x == ((i + d) % 2 == 0 ? 1 : -1);
  });
  expect_v("values=head-number", [](double x, Index b, Index h, Index, Index) {
    return x == static_cast<double>(1 + h + 16 * b);
  });
  expect_v("values=integers", [](double x, Index, Index, Index, Index) {
    return x == std::nearbyint(x) && std::fabs(x) <= 8;
  });
  expect_v("values=signed-zeros",
           [](double x, Index, Index, Index, Index) { return x == 0 || std::fabs(x) == 1; });
  expect_v("values=subnormal dtype=f16",
           [](double x, Index, Index, Index, Index) { return std::fabs(x) < 0x1p-14; });
  expect_v("values=subnormal",
           [](double x, Index, Index, Index, Index) { return std::fabs(x) < 0x1p-126; });
  expect_v("values=near-overflow dtype=f16", [](double x, Index, Index, Index, Index) {
    return std::fabs(x) >= 65504 / 2 && std::fabs(x) <= 65504;
  });
  const auto equal = values_of("scores=equal");
  for (std::uint64_t bits : bits_of(equal->problem.q)) EXPECT_EQ(bits, 0u);
  // Every third key equals key 0.
  const auto ties = values_of("scores=ties");
  const TensorView& k = ties->problem.k;
  for_each_position({2, 3, 20, 8}, [&](Index b, Index h, Index i, Index d) {
    EXPECT_TRUE(i % 3 != 1 || bits_at(k, b, h, i, d) == bits_at(k, b, h, 0, d)) << i;
  });
}

// The lowest and the highest score of a case, and the highest LSE, without masks.
struct Reached {
  double lowest = 0, highest = 0, lse = 0;
};
Reached reached_by(const std::string& line) {
  const Inputs in(parse_case(line));
  const Attention& p = in.problem;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Reached r{infinity, -infinity, -infinity};
  for_each_position(p.shape.lse_extents(), [&](Index b, Index h, Index i, Index) {
    std::vector<double> scores;
    for (Index j = 0; j < p.shape.keys; ++j) {
      double dot = 0;
      for (Index d = 0; d < p.shape.dim; ++d)
        dot += load(p.q, p.q.at(b, h, i, d)) * load(p.k, p.k.at(b, h / p.shape.group(), j, d));
      scores.push_back(dot * static_cast<double>(p.scale));
    }
    const auto [low, high] = std::ranges::minmax(scores);
    double sum = 0;
    for (const double s : scores) sum += std::exp(s - high);
    r.lowest = std::min(r.lowest, low);
    r.highest = std::max(r.highest, high);
    r.lse = std::max(r.lse, high + std::log(sum));
  });
  return r;
}

// Whatever D and the scale are: beyond the numbers that kernels take for an infinity, and so far
// below 0 that e^-LSE is beyond fp32.
TEST(GenerateFamilies, ScoresReachWhatTheirNamesSay) {
  const double overflows = -std::log(static_cast<double>(std::numeric_limits<float>::max()));
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const int dim : {16, 32, 64, 96, 128, 256})
      for (const char* scale : {"", " scale=0.25", " scale=1"}) {
        const auto reached = [&](const char* scores) {
          return reached_by("attention b=1 h=4/2 l=3x128 d=" + std::to_string(dim) +
                            " dtype=" + dtype + scale + " scores=" + scores);
        };
        const Reached negative = reached("negative");
        EXPECT_LT(negative.highest, -100) << dtype << dim << scale;
        EXPECT_LT(negative.lse, overflows) << dtype << dim << scale;
        EXPECT_LT(reached("far-negative").highest, -5e4) << dtype << dim << scale;
        EXPECT_GT(reached("far-positive").lowest, 5e4) << dtype << dim << scale;
      }
}

// --- Masks. ---

const std::vector<std::string> axes = {"",   "b",  "h",  "i",   "j",   "bh",
                                       "ij", "bj", "hi", "bij", "hij", "bhij"};

TEST(GenerateMasks, BroadcastAsDeclared) {
  const Extents shape{2, 4, 5, 18};
  for (const std::string& varies : axes)
    for (const std::string mask : {"bool=random", "bias=normal"}) {
      const Inputs in(
          parse_case(line_with("b=2 h=4/2 l=5x18 d=4 dtype=f16 " + mask + "@" + varies)));
      const Extents& stride =
          mask == "bool=random" ? in.problem.keep.stride : in.problem.bias.stride;
      Index elements = 1;
      for (std::size_t axis = 0; axis < 4; ++axis) {
        const bool moves = varies.find("bhij"[axis]) != std::string::npos;
        EXPECT_EQ(stride[axis] != 0, moves) << mask << "@" << varies;
        if (moves) elements *= shape[axis];
      }
      if (mask == "bool=random") EXPECT_EQ(static_cast<Index>(in.keep.size()), elements) << varies;
      else EXPECT_EQ(static_cast<Index>(in.bias.size_in_bytes()), 2 * elements) << varies;
      // Different coordinates along the axes that vary must have different places.
      std::set<Index> places;
      for_each_position(shape, [&](Index b, Index h, Index i, Index j) {
        places.insert(b * stride[0] + h * stride[1] + i * stride[2] + j * stride[3]);
      });
      EXPECT_EQ(static_cast<Index>(places.size()), elements) << mask << "@" << varies;
      EXPECT_EQ(*places.rbegin(), elements - 1) << mask << "@" << varies;
      EXPECT_TRUE(in.bias.guards_intact());
    }
}

// A broadcast mask equals the full mask at index 0 of the axes that it leaves out.
TEST(GenerateMasks, BroadcastHoldsTheFirstOfWhatItLeavesOut) {
  const std::string fields = "b=2 h=4/2 l=5x18 d=4 bool=random bias=normal";
  const Inputs full(parse_case(line_with(fields)));
  for (const std::string& varies : axes) {
    const Inputs in(parse_case(
        line_with("b=2 h=4/2 l=5x18 d=4 bool=random@" + varies + " bias=normal@" + varies)));
    auto index = [&](char axis, Index x) { return varies.find(axis) == std::string::npos ? 0 : x; };
    for_each_position({2, 4, 5, 18}, [&](Index b, Index h, Index i, Index j) {
      const Index fb = index('b', b), fh = index('h', h), fi = index('i', i), fj = index('j', j);
      EXPECT_EQ(in.problem.keep.at(b, h, i, j), full.problem.keep.at(fb, fh, fi, fj)) << varies;
      EXPECT_EQ(bits_at(in.problem.bias, b, h, i, j), bits_at(full.problem.bias, fb, fh, fi, fj))
          << varies;
    });
  }
}

TEST(GenerateMasks, PatternsMeanWhatTheySay) {
  const std::string shape = "b=1 h=2 l=40x50 d=4 dtype=f16 ";
  auto kept = [&](const std::string& pattern, auto rule) {
    const Inputs in(parse_case(line_with(shape + "bool=" + pattern)));
    Index count = 0;
    for_each_position({1, 2, 40, 50}, [&](Index, Index h, Index i, Index j) {
      const bool keep = in.problem.keep.at(0, h, i, j);
      EXPECT_TRUE(rule(keep, i, j)) << pattern << " " << i << " " << j;
      count += keep;
    });
    return static_cast<double>(count) / 4000;
  };
  EXPECT_EQ(kept("all", [](bool keep, Index, Index) { return keep; }), 1.0);
  EXPECT_NEAR(kept("random", [](bool, Index, Index) { return true; }), 0.7, 0.05);
  EXPECT_NEAR(kept("empty-rows", [](bool keep, Index i, Index) { return !keep || i % 3 != 1; }),
              0.8 * 27 / 40, 0.05);
  kept("tiles", [](bool keep, Index i, Index j) { return keep == ((i / 16 + j / 16) % 2 == 1); });
  kept("future", [](bool keep, Index i, Index j) { return keep == (j <= i); });

  auto share = [&](const std::string& pattern, auto is_special, auto rule) {
    const Inputs in(parse_case(line_with(shape + "bias=" + pattern)));
    Index count = 0;
    for_each_position({1, 2, 40, 50}, [&](Index, Index h, Index i, Index j) {
      const double x = load(in.problem.bias, in.problem.bias.at(0, h, i, j));
      EXPECT_TRUE(rule(x, i)) << pattern << " " << x;
      count += is_special(x);
    });
    return static_cast<double>(count) / 4000;
  };
  auto never = [](double) { return false; };
  share("normal", never, [](double x, Index) { return std::fabs(x) < 9.9; });
  share("constant", never, [](double x, Index) { return x == 3; });
  share("minimum-rows", never, [](double x, Index i) { return x == (i % 3 == 1 ? -65504 : 0); });
  EXPECT_NEAR(share(
                  "minus-infinity", [](double x) { return x == -inf; },
                  [](double x, Index) { return x == -inf || std::fabs(x) < 5; }),
              0.3, 0.05);
  EXPECT_NEAR(share(
                  "minimum", [](double x) { return x == -65504; },
                  [](double x, Index) { return x == -65504 || x == 0; }),
              0.3, 0.05);
  EXPECT_NEAR(share(
                  "large", [](double x) { return x == -10000; },
                  [](double x, Index) { return x == -10000 || std::fabs(x) < 9.9; }),
              0.3, 0.05);
}

TEST(GenerateMasks, NoneIsNone) {
  const Inputs in(parse_case("attention"));
  EXPECT_FALSE(in.problem.keep);
  EXPECT_FALSE(in.problem.bias);
  for_each_list(
      [&](const auto& field) { EXPECT_TRUE((in.problem.*field.list).empty()) << field.name; });
}

// The binding does not compile when a field of Attention is new, and the tables must hold it.
TEST(ProblemTables, EveryFieldOfAttentionIsListedOnce) {
  const Attention a;
  const auto& [shape, q, k, v, scale, softcap, causal, offset, window_left, window_right, keep,
               bias, finite_min_masks, key_lengths, key_starts, alibi_slopes, query_segment,
               key_segment, sink, dropout, dropout_seed] = a;
  const std::map<const void*, std::string> fields = {
      {&q, "q"},
      {&k, "k"},
      {&v, "v"},
      {&scale, "scale"},
      {&softcap, "softcap"},
      {&causal, "causal"},
      {&offset, "offset"},
      {&window_left, "window_left"},
      {&window_right, "window_right"},
      {&bias, "bias"},
      {&finite_min_masks, "finite_min_masks"},
      {&key_lengths, "key_lengths"},
      {&key_starts, "key_starts"},
      {&alibi_slopes, "alibi_slopes"},
      {&query_segment, "query_segment"},
      {&key_segment, "key_segment"},
      {&sink, "sink"},
      {&dropout, "dropout"},
      {&dropout_seed, "dropout_seed"},
  };
  EXPECT_TRUE(&shape == &a.shape && &keep == &a.keep) << "the two that no table lists";
  std::map<const void*, std::string> listed;
  const auto list = [&](const void* field, std::string_view name) {
    EXPECT_TRUE(listed.emplace(field, name).second) << name << " is listed twice";
  };
  for_each_list([&](const auto& field) { list(&(a.*field.list), field.name); });
  for_each_number([&](const auto& field) { list(&(a.*field.number), field.name); });
  for (const FlagField& field : attention_flags) list(&(a.*field.flag), field.name);
  for (const TensorField& field : attention_tensors) list(&(a.*field.tensor), field.name);
  EXPECT_EQ(listed, fields);
}

// --- Hidden keys and pokes. ---

TEST(GenerateHidden, OnlyPaddingIsTouched) {
  const std::vector<Index> lengths = {5, 0, 20}, starts = {2, 0, 20};
  for (const std::string layout :
       {"bhsd", "bshd", "packed", "padded", "strided", "shared-head", "reversed"})
    for (const std::string hidden : {"nan", "inf", "huge"}) {
      const std::string fields =
          "b=3 h=4/2 l=3x20 d=4/6 dtype=f16 lengths=5,0,20 starts=2,0,20 layout=k:" + layout +
          ",v:" + layout;
      const Inputs plain(parse_case(line_with(fields))),
          in(parse_case(line_with(fields + " hidden=" + hidden)));
      EXPECT_EQ(bits_of(in.problem.q), bits_of(plain.problem.q));
      for (char name : {'k', 'v'}) {
        const TensorView& t = tensor_of(in, name);
        for_each_position(t.shape, [&](Index b, Index h, Index j, Index d) {
          const double x = load(t, t.at(b, h, j, d));
          const bool padding = j < starts[usize(b)] || j >= lengths[usize(b)];
          if (!padding)
            EXPECT_EQ(bits_at(t, b, h, j, d), bits_at(tensor_of(plain, name), b, h, j, d))
                << layout;
          else
            EXPECT_TRUE(hidden == "nan" ? std::isnan(x) : x == (hidden == "inf" ? inf : 32752))
                << layout << " " << hidden << " " << x;
        });
      }
    }
  const std::string unpadded = "l=4x9 d=4 hidden=nan";
  const Inputs in(parse_case(line_with(unpadded)));
  EXPECT_TRUE(all_finite(in.problem.k) && all_finite(in.problem.v));
}

// Batches that share their keys hide only the keys that none of them sees.
TEST(GenerateHidden, SharedBatchHidesOnlyWhatNoBatchSees) {
  const Inputs in(parse_case(
      line_with("b=2 l=3x20 d=4 lengths=5,12 hidden=nan layout=k:shared-batch,v:shared-batch")));
  for (char name : {'k', 'v'}) {
    const TensorView& t = tensor_of(in, name);
    for (Index j = 0; j < 12; ++j)
      EXPECT_TRUE(std::isfinite(load(t, t.at(1, 0, j, 0))))
          << name << " key " << j << " is visible in batch 1";
    for (Index j = 12; j < 20; ++j)
      EXPECT_TRUE(std::isnan(load(t, t.at(0, 0, j, 0)))) << name << " key " << j;
  }
}

TEST(GeneratePokes, ChangeOneElement) {
  const std::string fields = "b=2 h=4/2 l=5x6 d=3/7 bias=normal";
  const Inputs plain(parse_case(line_with(fields)));
  const std::map<char, Extents> places = {
      {'q', {1, 3, 4, 2}}, {'k', {0, 1, 5, 0}}, {'v', {1, 0, 0, 6}}, {'m', {0, 2, 4, 5}}};
  const Inputs in(parse_case(
      line_with(fields + " poke=q:1:3:4:2=nan;k:0:1:5:0=-inf;v:1:0:0:6=0.1;m:0:2:4:5=-0")));
  for (const auto& [name, place] : places) {
    const TensorView &t = tensor_of(in, name), &p = tensor_of(plain, name);
    int changed = 0;
    for_each_position(t.shape, [&](Index b, Index h, Index i, Index d) {
      if (bits_at(t, b, h, i, d) == bits_at(p, b, h, i, d)) return;
      ++changed;
      EXPECT_EQ((Extents{b, h, i, d}), place) << name;
    });
    EXPECT_EQ(changed, 1) << name;
  }
  EXPECT_TRUE(std::isnan(load(in.problem.q, in.problem.q.at(1, 3, 4, 2))));
  EXPECT_EQ(load(in.problem.k, in.problem.k.at(0, 1, 5, 0)), -inf);
  EXPECT_EQ(load(in.problem.v, in.problem.v.at(1, 0, 0, 6)), static_cast<double>(0.1f));
  EXPECT_TRUE(std::signbit(load(in.problem.bias, in.problem.bias.at(0, 2, 4, 5))));
}

// --- What a line says about the problem besides its tensors. ---

TEST(GenerateProblem, FieldsArrive) {
  const Inputs in(
      parse_case("attention b=2 h=4/2 l=5x9 d=16/3 scale=0.5 softcap=2 causal offset=lengths "
                 "window=3,4 lengths=7,2 starts=1 docs=2,3 alibi sink=1.5 "
                 "dropout=0.25:99 bias=normal finite-min-masks"));
  const Attention& a = in.problem;
  EXPECT_EQ(a.shape, (AttentionShape{2, 4, 2, 5, 9, 16, 3}));
  EXPECT_EQ(a.q.shape, (Extents{2, 4, 5, 16}));
  EXPECT_EQ(a.k.shape, (Extents{2, 2, 9, 16}));
  EXPECT_EQ(a.v.shape, (Extents{2, 2, 9, 3}));
  EXPECT_EQ(a.scale, 0.5f);
  EXPECT_EQ(a.softcap, 2.0f);
  EXPECT_TRUE(a.causal && a.finite_min_masks);
  EXPECT_EQ(a.offset, (std::vector<Index>{2, -3}));
  EXPECT_EQ(a.window_left, 3);
  EXPECT_EQ(a.window_right, 4);
  EXPECT_EQ(a.key_lengths, (std::vector<Index>{7, 2}));
  EXPECT_EQ(a.key_starts, (std::vector<Index>{1, 1}));
  EXPECT_EQ(a.query_segment, (std::vector<std::int32_t>{0, 0, 1, 1, 1, 0, 0, 1, 1, 1}));
  EXPECT_EQ(a.key_segment,
            (std::vector<std::int32_t>{0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1}));
  EXPECT_EQ(a.alibi_slopes, default_alibi_slopes(4));
  EXPECT_EQ(a.sink, (std::vector<float>{1.5f, 1.75f, 2.0f, 2.25f}));
  EXPECT_EQ(a.dropout, 0.25f);
  EXPECT_EQ(a.dropout_seed, 99u);
  EXPECT_EQ(Inputs(parse_case("attention b=2 l=5x9 offset=end")).problem.offset,
            (std::vector<Index>{4, 4}));
  EXPECT_EQ(Inputs(parse_case("attention b=2 l=5x9 offset=-3")).problem.offset,
            (std::vector<Index>{-3, -3}));
  EXPECT_EQ(Inputs(parse_case("attention d=64")).problem.scale, 0.125f);
}

// The contents of a cache, element by element: the token, its scale, and the code between them.
TEST(GenerateCache, HoldsRoundedTokens) {
  for (auto [store_as, dtype, group] : {std::tuple{"f16", Dtype::f16, Index{0}},
                                        {"f8e4m3", Dtype::f8e4m3, Index{0}},
                                        {"f8e5m2/5", Dtype::f8e5m2, Index{5}},
                                        {"f4e2m1/16", Dtype::f4e2m1, Index{16}}}) {
    const Case c = parse_case(
        std::string("attention b=2 h=2 l=7 d=24/20 scores=heavy-tail cache=paged:3 store=") +
        store_as);
    const Inputs in(c);
    Index compared = 0;
    for (const auto& [tokens, read] :
         {std::pair{&in.token_k.view(), &in.problem.k}, {&in.token_v.view(), &in.problem.v}}) {
      const Index columns = tokens->shape[3], width = format(dtype).bits > 8 ? columns
                                                      : group > 0            ? group
                                                                             : columns;
      for (Index b = 0; b < 2; ++b)
        for (Index h = 0; h < 2; ++h)
          for (Index i = 0; i < 7; ++i)
            for (Index d = 0; d < columns; ++d) {
              double largest = 0;
              for (Index e = d / width * width; e < std::min(columns, (d / width + 1) * width); ++e)
                largest = std::max(largest, std::fabs(load(*tokens, tokens->at(b, h, i, e))));
              // The scale is the least power of two under which the largest magnitude of the group
              // fits.
              const double scale =
                  format(dtype).bits > 8
                      ? 1
                      : std::exp2(std::ceil(std::log2(largest / format(dtype).max_finite)));
              const double x = load(*tokens, tokens->at(b, h, i, d)),
                           y = load(*read, read->at(b, h, i, d));
              EXPECT_EQ(y, scale * decode(dtype, encode(dtype, x / scale))) << store_as << " " << x;
              compared += y != x;
            }
    }
    EXPECT_GT(compared, 100) << "rounding is not seen";
  }
}

// f32 scales, of what shares them: the largest magnitude / 448, rounded once; three quarters of
// that where scales are given, so that large numbers saturate.
TEST(GenerateCache, ScalesInF32) {
  const auto shares = [](std::string_view kind, const Extents& one, const Extents& other) {
    if (kind == "f32-tensor") return true;
    if (one[0] != other[0]) return false;
    if (kind == "f32-token") return one[2] == other[2];
    if (one[1] != other[1]) return false;
    if (kind == "f32-page") return one[2] / 3 == other[2] / 3;
    return one[2] == other[2] && (kind == "f32" || one[3] / 16 == other[3] / 16);
  };
  for (const char* kind : {"f32", "groups", "f32-token", "f32-page", "f32-tensor"}) {
    const std::string_view name(kind);
    const Case c = parse_case(
        std::string("attention b=2 h=2 l=7 d=24 scores=heavy-tail cache=paged:3 store=f8e4m3") +
        (name == "groups" ? "/16:f32" : ":" + std::string(name)));
    const Inputs in(c);
    const TensorView &tokens = in.token_v.view(), &read = in.problem.v;
    std::vector<Extents> all;
    for_each_index(tokens.shape,
                   [&](Index b, Index h, Index i, Index d) { all.push_back({b, h, i, d}); });
    const auto element = [](const TensorView& t, const Extents& p) {
      return load(t, t.at(p[0], p[1], p[2], p[3]));
    };
    Index saturated = 0;
    for (const Extents& p : all) {
      float largest = 0;
      for (const Extents& other : all)
        if (shares(name, p, other))
          largest = std::max(largest, std::fabs(static_cast<float>(element(tokens, other))));
      const bool given = name == "f32-page" || name == "f32-tensor";
      const float scale = (given ? 0.75f : 1.0f) * (largest / 448.0f);
      const float x = static_cast<float>(element(tokens, p));
      const double code = decode(Dtype::f8e4m3, encode(Dtype::f8e4m3, x / scale));
      EXPECT_EQ(element(read, p), code * scale) << name;
      saturated += std::fabs(x / scale) > 464;
    }
    EXPECT_EQ(saturated > 0, name == "f32-page" || name == "f32-tensor") << name;
    EXPECT_EQ(in.problem.projection.length, 1);
    EXPECT_EQ(element(in.problem.projection.v_absolute, all[5]), std::fabs(element(read, all[5])));
  }
}

TEST(GenerateCache, LatentKeysAreProjectedTokens) {
  const Case c =
      parse_case("attention b=2 h=4/2 l=3x5 d=9/4 offset=end cache=latent:2:16+3 store=bf16");
  const Inputs in(c);
  const ProjectedAttention& p = in.problem;
  EXPECT_EQ(p.projection.length, 16);
  for (Index b = 0; b < 2; ++b)
    for (Index g = 0; g < 2; ++g)
      for (Index j = 0; j < 5; ++j) {
        auto token = [&](const Tensor& t, Index r) {
          return round_to(Dtype::bf16, load(t.view(), t.view().at(b, 0, j, r)));
        };
        for (Index d = 0; d < 9; ++d) {
          double sum = 0, absolute = 0;
          if (d < 6)
            for (Index r = 0; r < 16; ++r) {
              const double product =
                  load(in.up_k.view(), in.up_k.view().at(0, g, d, r)) * token(in.token_k, r);
              sum += product;
              absolute += std::fabs(product);
            }
          else sum = token(in.token_v, d - 6), absolute = std::fabs(sum);
          EXPECT_EQ(load(p.k, p.k.at(b, g, j, d)), sum);
          EXPECT_EQ(load(p.projection.k_absolute, p.projection.k_absolute.at(b, g, j, d)),
                    absolute);
        }
        double value = 0;
        for (Index r = 0; r < 16; ++r)
          value += load(in.up_v.view(), in.up_v.view().at(0, g, 3, r)) * token(in.token_k, r);
        EXPECT_EQ(load(p.v, p.v.at(b, g, j, 3)), value);
      }
}

TEST(GenerateProblem, EmptyExtents) {
  for (const char* shape : {"b=0", "l=0", "l=0x5", "l=5x0", "b=0 l=0"})
    for (const char* rest :
         {"", " bias=normal bool=random", " bias=normal@bh bool=all@j", " docs=3,4 alibi sink=1",
          " lengths=0 starts=0 hidden=nan offset=lengths", " layout=q:packed,k:padded,v:strided",
          " layout=q:reversed,k:shared-head,v:shared-batch"}) {
      const Inputs in(parse_case(line_with(std::string(shape) + rest)));
      EXPECT_EQ(element_count(in.problem.q.shape) + element_count(in.problem.k.shape) > 0,
                std::string(shape).find("x") != std::string::npos)
          << shape;
      EXPECT_TRUE(in.q.guards_intact() && in.k.guards_intact() && in.v.guards_intact() &&
                  in.bias.guards_intact())
          << shape << rest;
    }
}

// --- Defaults that are rounded once. ---

// f is the nearest binary32 to 1/sqrt(D) if and only if 1/sqrt(D) lies between the two midpoints
// next to f. A midpoint m compares with 1/sqrt(D) as m^2 D compares with 1, which needs whole
// numbers of at most 62 bits.
TEST(DefaultScale, IsTheNearestFloatForEveryDimension) {
  for (Index dim = 1; dim <= max_head_dim; ++dim) {
    const float f = default_scale(dim);
    int exponent = 0;
    const auto significand = static_cast<std::uint64_t>(
        std::ldexp(std::frexp(f, &exponent), 24));  // f = significand * 2^(exponent - 24)
    const auto d = static_cast<std::uint64_t>(dim);
    const std::uint64_t one = std::uint64_t{1}
                              << (2 * (25 - exponent));  // 1 in units of (2^(exponent - 25))^2
    const std::uint64_t below = 2 * significand - 1, above = 2 * significand + 1;
    EXPECT_LT(below * below * d, one) << dim;
    EXPECT_GT(above * above * d, one) << dim;
    // Below a power of two the neighbour is only half as far away. There only the exact value is
    // accepted.
    EXPECT_TRUE(significand != std::uint64_t{1} << 23 || 4 * significand * significand * d == one)
        << dim;
  }
  EXPECT_EQ(default_scale(1), 1.0f);
  EXPECT_EQ(default_scale(64), 0.125f);
  EXPECT_EQ(default_scale(128), 0x1.6a09e6p-4f);
  EXPECT_EQ(default_scale(3), 0x1.279a74p-1f);
}

TEST(AlibiSlopes, EightAndTwelveHeads) {
  EXPECT_EQ(default_alibi_slopes(1), (std::vector<float>{0x1p-8f}));
  EXPECT_EQ(default_alibi_slopes(2), (std::vector<float>{0x1p-4f, 0x1p-8f}));
  EXPECT_EQ(default_alibi_slopes(3), (std::vector<float>{0x1p-4f, 0x1p-8f, 0x1p-2f}));
  EXPECT_EQ(default_alibi_slopes(8), (std::vector<float>{0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f,
                                                         0.015625f, 0.0078125f, 0.00390625f}));
  // The first eight slopes are those above. Then come 2^-0.5, 2^-1.5, 2^-2.5 and 2^-3.5, which are
  // every other one of sixteen.
  EXPECT_EQ(default_alibi_slopes(12),
            (std::vector<float>{0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.015625f, 0.0078125f,
                                0.00390625f, 0x1.6a09e6p-1f, 0x1.6a09e6p-2f, 0x1.6a09e6p-3f,
                                0x1.6a09e6p-4f}));
}

TEST(AlibiSlopes, AgreeWithExp2InExtendedPrecision) {
  if (std::numeric_limits<long double>::digits < 64)
    GTEST_SKIP() << "long double is no wider than double";
  for (Index heads = 1; heads <= 128; ++heads) {
    Index power = 1;
    while (2 * power <= heads) power *= 2;
    const std::vector<float> slopes = default_alibi_slopes(heads);
    ASSERT_EQ(static_cast<Index>(slopes.size()), heads);
    for (Index h = 0; h < heads; ++h) {
      const auto exponent =
          h < power ? -8.0L * static_cast<long double>(h + 1) / static_cast<long double>(power)
                    : -8.0L * static_cast<long double>(2 * (h - power) + 1) /
                          static_cast<long double>(2 * power);
      EXPECT_EQ(slopes[usize(h)], static_cast<float>(std::exp2(exponent))) << h << " of " << heads;
    }
  }
}

}  // namespace
}  // namespace assay
