// Compares the fp64 level of the oracle with ball arithmetic, over every family of inputs and every
// mask.
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "oracle/ball.h"
#include "oracle/reference.h"
#include "problem/generate.h"
#include "problem/parallel.h"

namespace assay {
namespace {

const char* const masks[] = {"",
                             " causal offset=end",
                             " window=9,4 bool=random",
                             " bias=normal alibi",
                             " softcap=3 sink=1",
                             " lengths=31 starts=4 hidden=nan",
                             " docs=9,11 dropout=0.3:5 bias=minus-infinity@ij",
                             " bias=minimum-rows finite-min-masks bool=empty-rows",
                             " bias=large sink=-4 softcap=40"};

TEST(Enclosure, OfFp64ContainsTheBallsEverywhere) {
  std::vector<Case> cases;
  for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
    for (int s = 0; s < count_of<Scores>; ++s)
      for (std::size_t m = 0; m < std::size(masks); ++m) {
        Case c = parse_case(std::string("attention b=1 h=2/1 l=7x53 d=24/8") + masks[m]);
        c.dtype = dtype;
        c.scores = static_cast<Scores>(s);
        c.values = static_cast<Values>((usize(s) * 5 + m) % count_of<Values>);
        c.seed = cases.size() + 1;
        cases.push_back(c);
      }
  std::mutex mutex;
  std::int64_t rows = 0, rows_beyond_fp64 = 0;
  double largest = 0;  // the measured error divided by the claimed radius
  Contract fp32;
  fp32.ordered = true;
  parallel_for(static_cast<Index>(cases.size()), 0, [&](Index k) {
    const Case& c = cases[usize(k)];
    const Inputs inputs(c);
    const Reference reference(inputs.problem, fp32);
    const KeyValuesPointer kv = reference.load_head(0, 0);
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < c.shape.rows; ++i) {
        const Block block = reference.evaluate(*kv, h, {&i, 1});
        const BlockRow& row = block.row(0);
        if (row.lse.kind != Kind::finite) continue;
        const BallRow ball(inputs.problem, 0, h, i, 256);
        const std::lock_guard lock(mutex);
        ++rows;
        if (row.needs_ball) {
          ++rows_beyond_fp64;
          continue;
        }
        auto check = [&](const Certified& x, double value, double low, double ball_radius,
                         const char* what) {
          const double error = std::fabs((x.value - value) - low);
          EXPECT_LE(error, x.radius + ball_radius)
              << what << " of row " << i << " head " << h << "\n"
              << print_case(c);
          // value + low is a double-double, so it can give at most about 106 bits of a ball.
          EXPECT_LT(ball_radius, x.radius * 0x1p-40 + 0x1p-900) << print_case(c);
          if (x.radius > 0) largest = std::max(largest, error / x.radius);
        };
        check(row.lse, ball.lse(), ball.lse_low(), ball.lse_radius(), "LSE");
        for (Index d = 0; d < c.shape.value_dim; ++d)
          if (block.element(0, d).kind == Kind::finite)
            check(block.element(0, d), ball.o(d), ball.o_low(d), ball.o_radius(d), "O");
      }
  });
  printf("%ld rows, %ld of them beyond fp64; largest measured error over claimed radius %.3f\n",
         static_cast<long>(rows), static_cast<long>(rows_beyond_fp64), largest);
  EXPECT_GT(rows, 5000);
  EXPECT_LT(rows_beyond_fp64, rows / 4);
}

// The bound of a row is the same whether its quantities come from fp64 or from balls, except for
// what sums in fp32 add.
TEST(Enclosure, BoundsAgreeBetweenTheLevels) {
  for (const char* line :
       {"attention b=1 h=1 l=5x200 d=40/16 scores=heavy-tail alibi",
        "attention b=1 h=1 l=5x130 d=64/16 dtype=bf16 sink=1 dropout=0.2:3 softcap=9 values=cancel",
        "attention b=1 h=1 l=5x700 d=64/16 causal offset=end bool=random"}) {
    const Case c = parse_case(line);
    const Inputs inputs(c);
    Contract fp32;
    fp32.ordered = true;
    fp32.split_keys = 128;
    const Reference reference(inputs.problem, fp32);
    const KeyValuesPointer kv = reference.load_head(0, 0);
    for (Index i = 0; i < c.shape.rows; ++i) {
      const Block plain = reference.evaluate(*kv, 0, {&i, 1});
      Block refined = plain;
      EXPECT_TRUE(reference.refine(*kv, refined, 0, 128));
      auto expect_slightly_above = [&](double fp64, double balls) {
        EXPECT_GE(fp64, balls * (1 - 1e-9)) << line << " row " << i;
        EXPECT_LE(fp64, balls * (1 + 1e-4)) << line << " row " << i;
      };
      expect_slightly_above(plain.row(0).lse.bound, refined.row(0).lse.bound);
      for (std::size_t d = 0; d < plain.o.size(); ++d)
        expect_slightly_above(plain.o[d].bound, refined.o[d].bound);
    }
  }
}

}  // namespace
}  // namespace assay
