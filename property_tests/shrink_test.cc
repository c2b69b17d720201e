#include "harness/cases/shrink.h"

#include <gtest/gtest.h>

namespace assay {
namespace {

const Case big = parse_case(
    "attention b=3 h=6/2 l=97x259 d=80/48 dtype=bf16 out=f32 scale=0.25 softcap=50 causal "
    "offset=end window=40,3 bool=random@bij bias=normal "
    "lengths=200,259,100 starts=3,0,9 docs=50,60 alibi sink=2 dropout=0.1:3 scores=growing "
    "values=cancel hidden=nan poke=v:0:0:3:1=inf seed=77 "
    "layout=q:padded,k:strided,v:bshd,o:reversed threads=2");

TEST(Shrink, EveryStepIsAValidCaseThatDiffers) {
  for (const Case& next : smaller(big)) {
    EXPECT_FALSE(next == big);
    EXPECT_EQ(parse_case(print_case(next)), next);
  }
  EXPECT_GT(smaller(big).size(), 40u);
}

// Features that do not matter are removed. Those that matter stay at their threshold.
TEST(Shrink, FindsTheSmallestCase) {
  int tried = 0;
  const auto fails = [&](const Case& c) {
    ++tried;
    return c.causal && c.shape.keys > 17 && c.shape.query_heads >= 2;
  };
  const Case least = shrink(big, fails, [] { return true; });
  EXPECT_EQ(print_case(least), "attention b=1 h=2/1 l=1x18 d=1 dtype=f32 causal");
  EXPECT_LT(tried, 400);
  EXPECT_TRUE(shrink(least, fails, [] { return true; }) == least);
}

// Numbers of features shrink too, and layouts go one by one.
TEST(Shrink, MakesFeaturesSmaller) {
  const auto least = [](const char* line, const auto& fails) {
    return print_case(shrink(parse_case(line), fails, [] { return true; }));
  };
  EXPECT_EQ(least("attention b=1 h=1 l=9x40 d=4 causal offset=30 window=20,6 starts=13 lengths=31 "
                  "layout=q:padded,k:strided",
                  [](const Case& c) {
                    return c.causal && c.offset.value >= 4 && c.window_left >= 2 &&
                           !c.starts.empty() && c.starts[0] >= 3 && c.shape.keys >= 7 &&
                           c.k_layout == LayoutKind::strided;
                  }),
            "attention b=1 h=1 l=1x7 d=1 dtype=f32 causal offset=4 window=2,-1 starts=3 "
            "layout=k:strided");
  EXPECT_EQ(least("attention b=1 h=15/1 l=1x90 d=4 offset=end cache=paged:16",
                  [](const Case& c) {
                    return c.shape.group() >= 5 && c.cache.page >= 3 &&
                           c.cache.kind == CacheSpec::Kind::paged;
                  }),
            "attention b=1 h=5/1 l=1 d=1 dtype=f32 cache=paged:4");
}

// A feature that a case does not have is never a step. Otherwise, where everything fails, the steps
// would go back and forth without end.
TEST(Shrink, EndsWhereEverythingFails) {
  for (const char* line : {"attention b=2 h=4/2 l=9 d=8 causal window=4,0",
                           "backward b=2 h=4/2 l=9 d=8 bias=normal grad=ones",
                           "attention b=2 h=4/2 l=3x9 d=8 causal offset=end cache=latent:3:16+2 "
                           "store=f8e4m3/4 chunks=1"}) {
    int tried = 0;
    const Case least = shrink(
        parse_case(line), [&](const Case&) { return ++tried > 0; }, [&] { return tried < 200; });
    EXPECT_LT(tried, 200) << line;
    EXPECT_EQ(print_case(least), "attention b=1 h=1 l=1 d=1 dtype=f32");
  }
}

TEST(Shrink, StopsWhenAskedTo) {
  int calls = 0;
  const Case least = shrink(big, [](const Case&) { return true; }, [&] { return ++calls < 3; });
  EXPECT_FALSE(least == parse_case("attention b=1 h=1 l=1 d=1"));
}

}  // namespace
}  // namespace assay
