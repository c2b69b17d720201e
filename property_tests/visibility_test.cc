// Compares which row sees which key with tables that were written by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "oracle/visibility.h"
#include "problem/generate.h"

namespace assay {
namespace {

// One string per row of head 0 of batch b, with 'x' where the row sees the key.
std::vector<std::string> picture(const char* line, Index b = 0, Index h = 0) {
  const Inputs in(parse_case(line));
  std::vector<std::string> rows;
  RowVisibility row;
  for (Index i = 0; i < in.problem.shape.rows; ++i) {
    evaluate_visibility(in.problem, b, h, i, row);
    std::string text;
    Index seen = 0;
    for (double bias : row.bias) {
      const bool visible = bias != -std::numeric_limits<double>::infinity();
      text += visible ? 'x' : '.';
      seen += visible;
    }
    EXPECT_EQ(seen, row.visible);
    rows.push_back(text);
  }
  return rows;
}
using Rows = std::vector<std::string>;

TEST(Visibility, CausalIsAnchoredTopLeftUnlessOffset) {
  EXPECT_EQ(picture("attention b=1 h=1 l=2x5 d=1 causal"), (Rows{"x....", "xx..."}));
  EXPECT_EQ(picture("attention b=1 h=1 l=2x5 d=1 causal offset=end"), (Rows{"xxxx.", "xxxxx"}));
  EXPECT_EQ(picture("attention b=1 h=1 l=5x2 d=1 causal"), (Rows{"x.", "xx", "xx", "xx", "xx"}));
  EXPECT_EQ(picture("attention b=1 h=1 l=5x2 d=1 causal offset=end"),
            (Rows{"..", "..", "..", "x.", "xx"}));
}

TEST(Visibility, Windows) {
  EXPECT_EQ(picture("attention b=1 h=1 l=4x6 d=1 window=1,0"),
            (Rows{"x.....", "xx....", ".xx...", "..xx.."}));
  EXPECT_EQ(picture("attention b=1 h=1 l=4x6 d=1 window=0,2"),
            (Rows{"xxx...", ".xxx..", "..xxx.", "...xxx"}));
  EXPECT_EQ(picture("attention b=1 h=1 l=2x6 d=1 window=1,0 offset=end"),
            (Rows{"...xx.", "....xx"}));
  EXPECT_EQ(picture("attention b=1 h=1 l=3x4 d=1 window=-1,0"), (Rows{"x...", "xx..", "xxx."}));
  EXPECT_EQ(picture("attention b=1 h=1 l=3x4 d=1 window=0,-1"), (Rows{"xxxx", ".xxx", "..xx"}));
}

TEST(Visibility, PaddingAndOffsetsByLength) {
  EXPECT_EQ(picture("attention b=2 h=1 l=2x4 d=1 lengths=3,0", 0), (Rows{"xxx.", "xxx."}));
  EXPECT_EQ(picture("attention b=2 h=1 l=2x4 d=1 lengths=3,0", 1), (Rows{"....", "...."}));
  EXPECT_EQ(picture("attention b=2 h=1 l=2x4 d=1 lengths=3,4 causal offset=lengths", 0),
            (Rows{"xx..", "xxx."}));
  EXPECT_EQ(picture("attention b=2 h=1 l=2x4 d=1 lengths=3,1 causal offset=lengths", 1),
            (Rows{"....", "x..."}));
  EXPECT_EQ(picture("attention b=1 h=1 l=2x4 d=1 starts=1 causal offset=end"),
            (Rows{".xx.", ".xxx"}));
}

TEST(Visibility, Documents) {
  EXPECT_EQ(picture("attention b=1 h=1 l=5 d=1 docs=2,2"),
            (Rows{"xx...", "xx...", "..xxx", "..xxx", "..xxx"}));
  EXPECT_EQ(picture("attention b=1 h=1 l=4 d=1 docs=3,1 causal"),
            (Rows{"x...", "xx..", "xxx.", "...x"}));
}

// Two sequences of eleven positions, of which the second has nine of left padding. The picture has
// every row, as the source wrote it.
TEST(Visibility, ElevenTokensLeftPadded) {
  const char* line = "attention b=2 h=1 l=11 d=4 causal starts=2,9";
  Rows padded(9, "...........");
  padded.push_back(
      ".........x.");  // position 9 sees itself, and the future (position 10) does not leak
  padded.push_back(".........xx");
  EXPECT_EQ(picture(line, 1), padded);
  const Rows other = picture(line, 0);
  EXPECT_EQ(other[1], "...........");
  EXPECT_EQ(other[2], "..x........");
  EXPECT_EQ(other[10], "..xxxxxxxxx");
  // Without causality position 9 sees both keys. A dispatch that drops causality under a mask
  // computes this.
  EXPECT_EQ(picture("attention b=2 h=1 l=11 d=4 starts=2,9", 1)[9], ".........xx");
}

TEST(Visibility, BooleanAndMinusInfinityMasksCompose) {
  const Inputs in(parse_case(
      "attention b=2 h=3 l=20x30 d=1 bool=random bias=minus-infinity@hij causal offset=5 seed=4"));
  RowVisibility row;
  Index seen = 0, hidden_by_bool = 0, hidden_by_bias = 0;
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index i = 0; i < 20; ++i) {
        evaluate_visibility(in.problem, b, h, i, row);
        for (Index j = 0; j < 30; ++j) {
          const bool kept = in.problem.keep.at(b, h, i, j), future = j > i + 5;
          const double bias = load(in.problem.bias, in.problem.bias.at(b, h, i, j));
          const bool visible = kept && !future && bias != -std::numeric_limits<double>::infinity();
          EXPECT_EQ(row.bias[usize(j)] != -std::numeric_limits<double>::infinity(), visible);
          if (visible) EXPECT_EQ(row.bias[usize(j)], bias);
          seen += visible;
          hidden_by_bool += !future && !kept;
          hidden_by_bias += !future && kept && !visible;
        }
      }
  EXPECT_GT(seen, 100);
  EXPECT_GT(hidden_by_bool, 100);
  EXPECT_GT(hidden_by_bias, 100);
}

TEST(Visibility, FiniteMinimumMasksOnlyWhereDeclared) {
  EXPECT_EQ(picture("attention b=1 h=1 l=3x4 d=1 bias=minimum-rows"),
            (Rows{"xxxx", "xxxx", "xxxx"}));
  EXPECT_EQ(picture("attention b=1 h=1 l=3x4 d=1 bias=minimum-rows finite-min-masks"),
            (Rows{"xxxx", "....", "xxxx"}));
  EXPECT_EQ(picture("attention b=1 h=1 l=3x4 d=1 dtype=bf16 bias=minimum-rows finite-min-masks"),
            (Rows{"xxxx", "....", "xxxx"}));
}

TEST(Visibility, AlibiCountsFromTheDiagonal) {
  const Inputs in(parse_case("attention b=1 h=2 l=3x5 d=1 alibi offset=end"));
  RowVisibility row;
  evaluate_visibility(in.problem, 0, 1, 0, row);
  EXPECT_EQ(in.problem.alibi_slopes[1], 0x1p-8f);
  EXPECT_EQ(row.bias, (std::vector<double>{-2 * 0x1p-8, -0x1p-8, 0, 0x1p-8, 2 * 0x1p-8}));
}

// Philox4x32-10 with key 0 and counter 0 begins with 0x6627e8d5 (the known-answer test of its
// authors).
TEST(Visibility, DropoutDecidesByThePhiloxWord) {
  Attention p;
  p.dropout = 0x66 / 256.0f;
  EXPECT_TRUE(keeps_weight(p, 0, 0, 0, 0));
  p.dropout = 0x67 / 256.0f;
  EXPECT_FALSE(keeps_weight(p, 0, 0, 0, 0));
  p.dropout = 0;
  EXPECT_TRUE(keeps_weight(p, 1, 2, 3, 4));
  p.dropout = 0.3f;
  p.dropout_seed = 99;
  int kept = 0;
  for (Index j = 0; j < 20000; ++j) kept += keeps_weight(p, 0, 1, 2, j);
  EXPECT_NEAR(kept / 20000.0, 0.7, 0.02);
}

}  // namespace
}  // namespace assay
