#include "bench/intervals.h"

#include <algorithm>
#include <cmath>

namespace assay::bench {
namespace {

constexpr double missed = 0.05;

double middle(const std::vector<double>& sorted) {
  return (sorted[(sorted.size() - 1) / 2] + sorted[sorted.size() / 2]) / 2;
}

// The interval between the k-th smallest and the k-th largest number. P(statistic = i) is
// `probability(i)`, and the interval misses with probability 2 P(statistic < k).
Interval between(std::vector<double> x, const std::vector<double>& probability) {
  std::sort(x.begin(), x.end());
  std::size_t k = 1;
  double tail = probability[0];
  while (2 * k < x.size() && 2 * (tail + probability[k]) <= missed) tail += probability[k++];
  return {middle(x), x[k - 1], x[x.size() - k], std::max(0.0, 1 - 2 * tail)};
}

// The distribution of the number of pairs (i, j) with x_i > y_j, if x and y have the same
// distribution: every order of the m + n numbers is then equally likely.
std::vector<double> mann_whitney(std::size_t m, std::size_t n) {
  // For a numbers of x and b of y: the largest number is an x, which is above all b of y, or a y,
  // which is above none. So row a follows from row a - 1.
  std::vector<std::vector<double>> row(n + 1, std::vector<double>(m * n + 1)), before;
  for (std::size_t a = 0; a <= m; ++a) {
    before = row;
    for (std::size_t b = 0; b <= n; ++b) {
      std::ranges::fill(row[b], 0);
      if (a == 0 || b == 0) {
        row[b][0] = 1;
        continue;
      }
      const double x_on_top = static_cast<double>(a) / static_cast<double>(a + b);
      for (std::size_t u = 0; u <= a * b; ++u)
        row[b][u] = (u >= b ? x_on_top * before[b][u - b] : 0) + (1 - x_on_top) * row[b - 1][u];
    }
  }
  return row[n];
}

}  // namespace

Interval median_interval(std::vector<double> x) {
  if (x.empty()) return {};
  const std::size_t n = x.size();
  std::vector<double> binomial(n + 1, std::pow(0.5, n));
  for (std::size_t k = 1; k <= n; ++k)
    binomial[k] = binomial[k - 1] * static_cast<double>(n - k + 1) / static_cast<double>(k);
  return between(std::move(x), binomial);
}

Interval ratio_interval(const std::vector<double>& x, const std::vector<double>& y) {
  if (x.empty() || y.empty()) return {};
  std::vector<double> ratios;
  for (const double a : x)
    for (const double b : y) ratios.push_back(a / b);
  return between(std::move(ratios), mann_whitney(x.size(), y.size()));
}

}  // namespace assay::bench
