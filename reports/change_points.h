// Finds where the level of a series changes. docs/alarms.md derives the rules and their error
// rates. Everything here is a function of its arguments alone.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace assay {

// How sure a change has to be.
struct ChangeRule {
  // For each value of a series: the probability that it is ever taken for the first value of a
  // higher level while there is no change. The same holds for a lower level. At most 1e-4.
  double chance = 1e-6;
  std::size_t window = 256;     // older values are not looked at
  std::size_t least_after = 5;  // a change of a noisy series is looked for this many values later
  // A series that had one and the same value as often as this is taken for deterministic.
  std::size_t equal_values = 10;
};

struct ChangePoint {
  std::size_t at = 0;     // the first value of the new level
  std::size_t found = 0;  // the value with which it was found; never before `at`
  bool certain = false;   // a deterministic value became another one
};

// The change points of a series as they were found when its values arrived one by one, so a later
// value adds change points but takes none away; it may move a change that is not certain. Throws
// std::invalid_argument if a value is not finite or the chance is too large.
std::vector<ChangePoint> change_points(std::span<const double> series, const ChangeRule& rule);

// E-divisive: the split of the series into two parts with the largest energy distance (Matteson and
// James 2014), as the index of the second part. Both parts have at least `least` values. 0: the
// series has no such split, or no two of its values differ.
std::size_t energy_split(std::span<const double> series, std::size_t least);

// For m values before and k values after, all exchangeable and without ties: the probability that
// at most `inversions` of the m k pairs have the larger value before. This is the exact
// distribution of Wilcoxon's rank sum.
double rank_sum_tail(std::size_t m, std::size_t k, std::size_t inversions);

// The probability that Student's t with so many degrees of freedom, at least 1, exceeds t >= 0.
double student_tail(double t, std::size_t freedom);

// What `chance` grants to the n-th test of a place, from 1 on: a place is tested again with every
// value after it. The sum over all tests is `chance`.
double granted(const ChangeRule& rule, std::size_t test);

// How many successive values are taken together, so that their means count as independent: 1 where
// the ranks of successive values are not correlated.
std::size_t block_length(std::span<const double> values);

}  // namespace assay
