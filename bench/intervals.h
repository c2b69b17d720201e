// Intervals for few repetitions on a busy machine. They are made from ranks alone. Nothing is
// assumed about how times are distributed, except that repetitions are independent, which is why
// they run in random order.
#pragma once

#include <limits>
#include <vector>

namespace assay::bench {

struct Interval {
  static constexpr double none = std::numeric_limits<double>::quiet_NaN();
  double estimate = none, low = none, high = none;
  // how often such an interval holds the true value, at least; below 0.95 if there are too few
  // numbers
  double coverage = 0;
};

// The median, with the interval between the k-th smallest and the k-th largest number, where k is
// the largest that keeps 95%. The coverage is 1 - 2 P(B < k) with B binomial of n and 1/2. Fewer
// than 6 numbers cover less than 95%; the interval is then their range. It is NaN if there is no
// number.
Interval median_interval(std::vector<double> x);

// The factor by which x exceeds y: the median of all x_i / y_j (Hodges and Lehmann), with the
// interval between the k-th smallest and the k-th largest of these ratios, where k follows from the
// exact distribution of Mann and Whitney's statistic. All numbers are positive. If even the range
// of the ratios covers less than 95% (as for 3 against 3), the interval is that range.
Interval ratio_interval(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace assay::bench
