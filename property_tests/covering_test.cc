#include "harness/cases/covering.h"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

namespace assay {
namespace {

std::size_t missing(const CoveringPlan& plan, const std::vector<std::vector<int>>& rows) {
  std::size_t lacking = 0;
  for (const auto& set : plan.sets) {
    std::size_t all = 1;
    std::set<std::vector<int>> seen;
    for (int f : set) all *= static_cast<std::size_t>(plan.levels[static_cast<std::size_t>(f)]);
    for (const auto& row : rows) {
      std::vector<int> combination;
      for (int f : set) combination.push_back(row[static_cast<std::size_t>(f)]);
      seen.insert(combination);
    }
    lacking += all - seen.size();
  }
  return lacking;
}

TEST(Covering, EveryCombinationMeets) {
  for (int strength : {1, 2, 3}) {
    CoveringPlan plan{{2, 3, 4, 2, 5, 3, 2, 7}, {}};
    plan.sets = all_sets({0, 1, 2, 3, 4, 5, 6, 7}, strength);
    const auto rows = covering_array(plan, 5);
    EXPECT_EQ(missing(plan, rows), 0u);
    EXPECT_EQ(rows, covering_array(plan, 5));
    if (strength == 2) EXPECT_LE(rows.size(), 60u);  // the least possible number is 35
    // The counter above must notice a gap: without its last row the array is not complete.
    auto fewer = rows;
    fewer.pop_back();
    EXPECT_GT(missing(plan, fewer), 0u);
  }
}

TEST(Covering, ExcludedLevelsNeverMeetAndAllOthersDo) {
  CoveringPlan plan{{2, 3, 4, 2, 5}, all_sets({0, 1, 2, 3, 4}, 3)};
  const Combinations whole = count_combinations(plan);
  EXPECT_EQ(whole.excluded, 0u);
  plan.excluded = {{{0, 1}, {1, 2}}, {{1, 0}, {2, 3}, {4, 4}}};
  // These are the triples that hold factors 0 and 1 at those levels, one for each level of the
  // other three factors, and one triple more.
  EXPECT_EQ(count_combinations(plan).excluded, 4u + 2 + 5 + 1);
  EXPECT_EQ(count_combinations(plan).all, whole.all);
  const auto rows = covering_array(plan, 5);
  EXPECT_EQ(missing(plan, rows), count_combinations(plan).excluded);
  for (const auto& row : rows)
    EXPECT_FALSE((row[0] == 1 && row[1] == 2) || (row[1] == 0 && row[2] == 3 && row[4] == 4));
  // Exclusions that leave a combination without a row must give an error, not an endless loop. Here
  // level 0 of factor 3 goes with no level of factor 0.
  plan.excluded = {{{0, 0}, {3, 0}}, {{0, 1}, {3, 0}}};
  EXPECT_THROW(covering_array(plan, 5), std::logic_error);
}

TEST(Covering, CoverageTellsWhatIsMissing) {
  CoveringPlan plan{{2, 3, 4, 2, 5}, all_sets({0, 1, 2, 3, 4}, 3)};
  plan.excluded = {{{0, 1}, {1, 2}}};
  const auto rows = covering_array(plan, 5);
  auto fewer = rows;
  fewer.pop_back();
  Coverage coverage(plan, fewer);
  const auto lost = coverage.missing();
  EXPECT_EQ(lost.size(), missing(plan, fewer) - count_combinations(plan).excluded);
  ASSERT_FALSE(lost.empty());
  for (const Coverage::Combination& c : lost) {
    EXPECT_FALSE(coverage.has(c));
    const std::vector<int> levels = coverage.row_of(c);
    for (std::size_t f = 0; f < levels.size(); ++f)
      EXPECT_TRUE(levels[f] == -1 || levels[f] == rows.back()[f]);
  }
  EXPECT_TRUE(coverage.gains(rows.back()));
  coverage.add(rows.back());
  EXPECT_TRUE(coverage.missing().empty());
  EXPECT_FALSE(coverage.gains(rows.back()));
}

TEST(Covering, SetsOfAStrength) {
  EXPECT_EQ(all_sets({3, 5, 8}, 2), (std::vector<std::vector<int>>{{3, 5}, {3, 8}, {5, 8}}));
  EXPECT_EQ(all_sets({1, 2, 3, 4, 5}, 3).size(), 10u);
}

}  // namespace
}  // namespace assay
