#include "harness/suites.h"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

namespace assay {
namespace {

TEST(Suites, EveryCaseIsALineThatParsesBack) {
  for (std::string_view name : suite_names()) {
    const Suite suite = make_suite(name, 9);
    EXPECT_FALSE(suite.cases.empty());
    std::set<std::string> lines;
    for (const Case& c : suite.cases) {
      const std::string line = print_case(c);
      EXPECT_EQ(parse_case(line), c) << line;
      EXPECT_TRUE(lines.insert(line).second) << "twice: " << line;
    }
  }
}

TEST(Suites, TheSeedMovesDataNotShapes) {
  Suite a = make_suite("standard", 1), b = make_suite("standard", 2);
  ASSERT_EQ(a.cases.size(), b.cases.size());
  for (std::size_t k = 0; k < a.cases.size(); ++k) {
    EXPECT_NE(a.cases[k].seed, b.cases[k].seed);
    a.cases[k].seed = b.cases[k].seed;
    EXPECT_EQ(a.cases[k], b.cases[k]);
  }
}

TEST(Suites, StandardHoldsEveryFamilyAndFeature) {
  std::set<Scores> scores;
  std::set<Values> values;
  std::set<LayoutKind> layouts;
  bool with_mask_and_causal = false, with_gqa_and_mask = false;
  for (const Case& c : make_suite("standard", 1).cases) {
    scores.insert(c.scores);
    values.insert(c.values);
    layouts.insert({c.q_layout, c.k_layout, c.v_layout, c.o_layout});
    with_mask_and_causal |= c.causal && c.keep.pattern == MaskPattern::random && !c.starts.empty();
    with_gqa_and_mask |= c.shape.kv_heads > 1 && c.shape.group() > 1 && c.keep.pattern != MaskPattern::none;
  }
  EXPECT_EQ(scores.size(), static_cast<std::size_t>(scores_count));
  EXPECT_EQ(values.size(), static_cast<std::size_t>(values_count));
  EXPECT_EQ(layouts.size(), static_cast<std::size_t>(layout_count));
  EXPECT_TRUE(with_mask_and_causal && with_gqa_and_mask);
}

TEST(Suites, UnknownNamesAreRefused) { EXPECT_THROW(make_suite("smok", 1), std::invalid_argument); }

}  // namespace
}  // namespace assay
