// Few rows and many rows take different paths through the forward kernel. The bits of a row must
// not depend on the path.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>

#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/simd/targets.h"
#include "problem/generate.h"
#include "testing/matchers.h"
#include "testing/same_bits.h"

namespace assay {
namespace {

// The calls have more rows than a block holds, so that the whole call packs K and V into memory,
// and several splits of 512 keys.
const char* const lines[] = {
    "attention b=2 h=4/2 l=100x1300 d=64 causal offset=end seed=1",
    "attention b=1 h=2 l=131x1029 d=128 dtype=bf16 causal offset=end window=600,-1 seed=2",
    "attention b=1 h=6/1 l=97x700 d=33/17 dtype=f16 bool=random seed=3",
    "attention b=2 h=4/2 l=110x1100 d=40/72 bias=minus-infinity alibi lengths=513,1100 "
    "starts=0,520 offset=end seed=4",
    "attention b=1 h=3/3 l=105x1540 d=16 docs=40,700 sink=1 softcap=20 seed=5",
    "attention b=1 h=2/1 l=120x1030 d=24 causal offset=900 scores=growing seed=6",
    "attention b=1 h=2/1 l=120x1030 d=24 causal offset=900 scores=falling values=signed-zeros "
    "seed=7",
    "attention b=2 h=2 l=100x1200 d=20 lengths=700,1200 hidden=nan seed=8",
    "attention b=1 h=2 l=100x1200 d=20 causal offset=end "
    "poke=v:0:0:1150:3=nan;v:0:1:600:0=inf;k:0:1:1180:2=nan seed=9",
    "attention b=1 h=2 l=100x1100 d=12 dtype=bf16 bias=minimum-rows finite-min-masks "
    "bool=empty-rows@bi seed=10",
    "attention b=1 h=4/2 l=100x600 d=8 layout=bshd window=100,50 offset=end seed=11",
    "attention b=1 h=2 l=100x1100 d=70 dtype=f16 layout=reversed scores=subnormal values=subnormal "
    "seed=12",
    "attention b=1 h=2/1 l=99x1025 d=192/128 scores=near-overflow layout=strided seed=13",
    "attention b=1 h=1 l=97x513 d=1 scores=tile-peaks seed=14",
    "attention b=1 h=2 l=97x1024 d=600/5 seed=15",
};

class Decode : public testing::TestWithParam<std::string> {
 protected:
  // The execution on the target that is tested.
  static kernels::Execution on(int threads = 0) {
    return {threads, kernels::Target::named(GetParam()).value()};
  }
};

TEST_P(Decode, RowsAloneHaveTheBitsOfTheWholeCall) {
  std::mt19937_64 random(2024);
  for (const char* line : lines) {
    const Case c = parse_case(line);
    const Inputs in(c);
    const Outputs whole(c);
    const AttentionShape& s = in.problem.shape;
    ASSERT_GT(s.rows, kernels::forward_tiling(s.dim, s.value_dim).rows) << line;
    ASSERT_TRUE(kernels::attention_forward(in.problem, whole.view(), on(2)).ok());
    for (int trial = 0; trial < 6; ++trial) {
      const Index b = static_cast<Index>(random() % static_cast<std::uint64_t>(s.batch));
      const Index rows =
          std::array<Index, 6>{1, 1, 2, 5, 13, 30}[usize(trial)] / (s.group() > 3 ? 2 : 1) +
          (s.group() > 3);
      const Index row0 =
          trial == 0 ? s.rows - rows
                     : static_cast<Index>(random() % static_cast<std::uint64_t>(s.rows - rows + 1));
      // Where causality hides the last keys anyway, the problem need not have them.
      Index keys = s.keys;
      if (c.causal && trial % 2 == 1)
        keys = std::clamp<Index>(row0 + rows + in.problem.offset_of(b), 0, s.keys);
      const Attention piece = piece_of(in.problem, b, row0, rows, keys);
      Case small = c;
      small.shape.batch = 1;
      small.shape.rows = rows;
      const Outputs out(small);
      ASSERT_LE(rows * s.group(), kernels::forward_tiling(s.dim, s.value_dim).rows);
      ASSERT_TRUE(kernels::attention_forward(piece, out.view(), on(1 + trial % 3)).ok());
      for (Index h = 0; h < s.query_heads; ++h)
        for (Index i = 0; i < rows; ++i)
          ASSERT_EQ(row_difference(whole.view(), b, h, row0 + i, out.view(), 0, i, s.value_dim), "")
              << line << "\nrows " << row0 << " + " << rows << ", keys " << keys;
    }
  }
}

// Row 93 sees keys up to 513. The result of the first split underflows to -0 when it is rescaled,
// and so does all that the second split adds. Key 514 is masked, but other rows of the register
// block see it; it would turn the second result into +0.
TEST_P(Decode, TheSignOfZeroDoesNotTellWhoElseIsThere) {
  const Case c =
      parse_case("attention b=1 h=1 l=97x517 d=1 scale=1 causal offset=420 values=ones seed=1");
  const Inputs in(c);
  for (Index i = 0; i < 97; ++i) store(in.problem.q, in.problem.q.at(0, 0, i, 0), 1);
  const auto set = [&](Index key, double k, double v) {
    store(in.problem.k, in.problem.k.at(0, 0, key, 0), k);
    store(in.problem.v, in.problem.v.at(0, 0, key, 0), v);
  };
  for (Index j = 0; j < 517; ++j) set(j, -200, 1);
  set(0, 0, -0x1p-149);
  set(512, 2, 0);
  set(513, 0, -0x1p-149);
  const Outputs whole(c);
  Case one = c;
  one.shape.rows = 1;
  const Outputs alone(one);
  ASSERT_TRUE(kernels::attention_forward(in.problem, whole.view(), on()).ok());
  ASSERT_TRUE(
      kernels::attention_forward(piece_of(in.problem, 0, 93, 1, 514), alone.view(), on()).ok());
  EXPECT_EQ(load(alone.o.view(), 0), 0);
  EXPECT_EQ(row_difference(whole.view(), 0, 0, 93, alone.view(), 0, 0, 1), "");
}

TEST_P(Decode, ThreadsDoNotShow) {
  for (const char* line :
       {"attention b=3 h=8/2 l=3x5000 d=48 lengths=1,5000,2300 dropout=0.2:9 seed=1",
        "attention b=1 h=1 l=1x9000 d=128 dtype=bf16 seed=2",
        "attention b=2 h=2 l=130x1700 d=32 causal offset=end dropout=0.1:3 seed=3"}) {
    const Case c = parse_case(line);
    const Inputs in(c);
    const Outputs one(c);
    ASSERT_TRUE(kernels::attention_forward(in.problem, one.view(), on(1)).ok());
    for (int threads : {2, 3, 7, 0}) {
      const Outputs many(c);
      ASSERT_TRUE(kernels::attention_forward(in.problem, many.view(), on(threads)).ok());
      EXPECT_EQ(first_difference(one, many), "") << line << " with " << threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Decode, testing::ValuesIn(kernels::runnable_targets()),
                         [](const auto& test) { return test.param; });

// Several splits pass the certified verdict.
TEST(Splits, AreJudgedLikeAnyOtherSum) {
  const auto host = make_candidate("host");
  for (const char* line :
       {"attention b=1 h=2/1 l=3x1600 d=32 scores=growing seed=1",
        "attention b=1 h=1 l=2x1537 d=16 scores=falling sink=2 seed=2",
        "attention b=1 h=1 l=100x1100 d=8 dtype=bf16 causal offset=end scores=tile-peaks seed=3",
        "attention b=2 h=1 l=1x2100 d=64 lengths=2100,3 scores=uniform values=offset seed=4"}) {
    ExecuteOptions options;
    options.power = false;
    EXPECT_THAT(execute(parse_case(line), *host, options), Passes());
  }
}

}  // namespace
}  // namespace assay
