// Intervals of benchmarks: compares them with published critical values, and counts how often they
// contain what they should.
#include "bench/intervals.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace assay::bench {
namespace {

std::vector<double> counted(int n) {
  std::vector<double> x;
  for (int k = 1; k <= n; ++k) x.push_back(k);
  return x;
}

TEST(Intervals, MedianBetweenOrderStatistics) {
  // Two-sided 95%: the whole range up to 8 numbers, the second number from either end for 9 to 11,
  // and the sixth for 20.
  for (const auto& [n, k] : {std::pair{6, 1}, {8, 1}, {9, 2}, {11, 2}, {12, 3}, {20, 6}}) {
    const Interval i = median_interval(counted(n));
    EXPECT_EQ(i.low, k) << n;
    EXPECT_EQ(i.high, n + 1 - k) << n;
    EXPECT_GE(i.coverage, 0.95);
    EXPECT_EQ(i.estimate, (n + 1) / 2.0);
  }
  EXPECT_EQ(median_interval(counted(5)).coverage,
            1 - 2.0 / 32);  // the numbers are too few, so it gives the range and says so
  EXPECT_TRUE(std::isnan(median_interval({}).estimate));
}

TEST(Intervals, RatioByMannAndWhitney) {
  // The pairwise ratios of these numbers are all different and sorted by (i, j). The critical
  // values are those of the rank-sum test at 5%, two-sided.
  for (const auto& [m, n, critical] :
       {std::tuple{4, 4, 0}, {5, 5, 2}, {6, 6, 5}, {5, 8, 6}, {10, 10, 23}}) {
    std::vector<double> x, y;
    for (int i = 0; i < m; ++i) x.push_back(std::exp2(1 + i * n));
    for (int j = 0; j < n; ++j) y.push_back(std::exp2(-j));
    const Interval r = ratio_interval(x, y);
    EXPECT_EQ(std::log2(r.low), 1 + critical) << m << " " << n;
    EXPECT_EQ(std::log2(r.high), m * n - critical) << m << " " << n;
    EXPECT_GE(r.coverage, 0.95);
  }
  EXPECT_LT(ratio_interval({1, 2, 3}, {1, 2, 3}).coverage, 0.95);
  EXPECT_TRUE(std::isnan(ratio_interval({}, {1}).estimate));
}

// The times are those of a machine that is busy now and then. No normal distribution describes
// them.
TEST(Intervals, CoverWhatTheySay) {
  std::mt19937_64 random(1);
  std::exponential_distribution<double> late(1);
  const auto times = [&](double base) {
    std::vector<double> x;
    for (int k = 0; k < 6; ++k) x.push_back(base * (1 + 0.3 * late(random)));
    return x;
  };
  constexpr int trials = 4000;
  const double median = 1 + 0.3 * std::log(2.0);
  int of_median = 0, of_ratio = 0, of_wrong_ratio = 0;
  for (int t = 0; t < trials; ++t) {
    const std::vector<double> x = times(1.5), y = times(1);
    const Interval m = median_interval(y), r = ratio_interval(x, y);
    of_median += m.low <= median && median <= m.high;
    of_ratio += r.low <= 1.5 && 1.5 <= r.high;
    of_wrong_ratio += r.low <= 3.0 && 3.0 <= r.high;
  }
  // The exact distributions give 0.969 and 0.959. Three deviations of 4,000 trials are 0.010.
  EXPECT_NEAR(of_median / static_cast<double>(trials), 0.96875, 0.010);
  EXPECT_NEAR(of_ratio / static_cast<double>(trials), 0.9589, 0.010);
  EXPECT_LT(of_wrong_ratio, trials / 20);
}

}  // namespace
}  // namespace assay::bench
