// Intervals for few repetitions on a noisy machine. They come from ranks alone: nothing is assumed of how times are distributed but that
// repetitions are independent, which their random order is for.
#pragma once

#include <limits>
#include <vector>

namespace assay::bench {

struct Interval {
  static constexpr double none = std::numeric_limits<double>::quiet_NaN();
  double estimate = none, low = none, high = none;
  double coverage = 0;  // at least this often does such an interval hold what is estimated; below 0.95 where there are too few numbers
};

// The median, between two of the numbers: the k-th smallest and the k-th largest, with the largest k that keeps 95%. Their coverage is
// 1 - 2 P(B < k), B binomial of n and 1/2. Less than 95% below 6 numbers, of which it gives the range; NaN of none.
Interval median_interval(std::vector<double> x);

// By what factor x exceeds y: the median of all x_i / y_j (Hodges and Lehmann), between the k-th smallest and the k-th largest of them, k by the
// exact distribution of Mann and Whitney's statistic. All numbers are positive. The range of the ratios where even that covers less than 95% (as 3 against 3).
Interval ratio_interval(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace assay::bench
