// Cases whose answer is known without an oracle.
#include <gtest/gtest.h>

#include <cmath>

#include "oracle/reference.h"
#include "problem/generate.h"

namespace assay {
namespace {

// Evaluates every row of head 0 of the case.
Block evaluate(const Inputs& inputs) {
  Contract fp32;
  const Reference reference(inputs.problem, fp32);
  const KeyValuesPointer kv = reference.load_head(0, 0);
  std::vector<Index> rows;
  for (Index i = 0; i < inputs.problem.shape.rows; ++i) rows.push_back(i);
  return reference.evaluate(*kv, 0, rows);
}

double value(const Inputs& in, Index j, Index c) {
  return load(in.problem.v, in.problem.v.at(0, 0, j, c));
}

TEST(ClosedForm, OneKeyGivesItsValueAndItsScore) {
  const Inputs in(parse_case("attention b=1 h=1 l=5x1 d=8/6 seed=3"));
  const Block block = evaluate(in);
  for (Index i = 0; i < 5; ++i) {
    double score = 0;
    for (Index d = 0; d < 8; ++d)
      score += load(in.problem.q, in.problem.q.at(0, 0, i, d)) *
               load(in.problem.k, in.problem.k.at(0, 0, 0, d));
    EXPECT_NEAR(block.row(i).lse.value, score * static_cast<double>(in.problem.scale),
                block.row(i).lse.radius + 1e-15);
    for (Index c = 0; c < 6; ++c)
      EXPECT_NEAR(block.o[usize(i * 6 + c)].value, value(in, 0, c),
                  block.o[usize(i * 6 + c)].radius);
  }
}

TEST(ClosedForm, EqualScoresGiveTheMean) {
  const Inputs in(parse_case("attention b=1 h=1 l=3x100 d=8/6 scores=equal seed=4"));
  const Block block = evaluate(in);
  for (Index c = 0; c < 6; ++c) {
    long double mean = 0;
    for (Index j = 0; j < 100; ++j) mean += value(in, j, c);
    EXPECT_NEAR(block.o[usize(c)].value, static_cast<double>(mean / 100),
                block.o[usize(c)].radius + 1e-17);
  }
  EXPECT_NEAR(block.row(0).lse.value, std::log(100.0), block.row(0).lse.radius + 1e-15);
}

TEST(ClosedForm, ConstantValuesComeBack) {
  const Inputs in(parse_case(
      "attention b=1 h=1 l=9x77 d=16/6 scores=heavy-tail values=constant bool=random seed=2"));
  const Block block = evaluate(in);
  for (Index i = 0; i < 9; ++i)
    for (Index c = 0; c < 6; ++c)
      EXPECT_NEAR(block.o[usize(i * 6 + c)].value, value(in, 0, c),
                  block.o[usize(i * 6 + c)].radius);
}

// With one-hot V every output is a weight, or the sum of the weights of the keys that share a
// column.
TEST(ClosedForm, OneHotValuesReadOffTheWeights) {
  const Inputs in(
      parse_case("attention b=1 h=1 l=7x20 d=16/20 values=one-hot causal offset=end seed=2"));
  const Block block = evaluate(in);
  for (Index i = 0; i < 7; ++i) {
    std::vector<double> weight(20, 0);
    double sum = 0;
    for (Index j = 0; j <= i + 13; ++j) {
      double score = 0;
      for (Index d = 0; d < 16; ++d)
        score += load(in.problem.q, in.problem.q.at(0, 0, i, d)) *
                 load(in.problem.k, in.problem.k.at(0, 0, j, d));
      weight[usize(j)] = std::exp(score * static_cast<double>(in.problem.scale));
      sum += weight[usize(j)];
    }
    for (Index j = 0; j < 20; ++j)
      EXPECT_NEAR(block.o[usize(i * 20 + j)].value, weight[usize(j)] / sum, 1e-13);
  }
}

// A sink of logit z over n equal scores of 0 takes e^z / (n + e^z) of the weight.
TEST(ClosedForm, SinkTakesItsShare) {
  const Inputs in(
      parse_case("attention b=1 h=1 l=1x10 d=4 scores=equal values=ones sink=2 seed=2"));
  const Block block = evaluate(in);
  EXPECT_NEAR(block.o[0].value, 10 / (10 + std::exp(2.0)), 1e-14);
  EXPECT_NEAR(block.row(0).lse.value, std::log(10 + std::exp(2.0)), 1e-14);
}

TEST(ClosedForm, SoftcapOfOneKeyShowsInLse) {
  const Inputs in(
      parse_case("attention b=1 h=1 l=1x1 d=1 softcap=2 scale=1 poke=q:0:0:0:0=3;k:0:0:0:0=1"));
  EXPECT_NEAR(evaluate(in).row(0).lse.value, 2 * std::tanh(1.5), 1e-14);
}

TEST(ClosedForm, AlibiOfEqualScoresIsAGeometricSeries) {
  const Inputs in(parse_case("attention b=1 h=1 l=6 d=4 scores=equal alibi causal seed=2"));
  const Block block = evaluate(in);
  const double slope = in.problem.alibi_slopes[0];  // 2^-8 for one head
  EXPECT_EQ(slope, 0x1p-8);
  double sum = 0;
  for (int k = 0; k <= 5; ++k) sum += std::exp(-slope * k);
  EXPECT_NEAR(block.row(5).lse.value, std::log(sum), 1e-14);
}

TEST(ClosedForm, FullyMaskedRowsAreZeroWithoutWeight) {
  const Inputs in(parse_case("attention b=1 h=1 l=4x6 d=4 causal offset=-2"));
  const Block block = evaluate(in);
  EXPECT_TRUE(block.row(0).fully_masked && block.row(1).fully_masked);
  EXPECT_FALSE(block.row(2).fully_masked);
  EXPECT_EQ(block.row(1).lse.kind, Kind::minus_infinity);
  EXPECT_EQ(block.o[4].value, 0);
}

}  // namespace
}  // namespace assay
