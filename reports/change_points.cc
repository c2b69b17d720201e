#include "reports/change_points.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <unordered_set>

namespace assay {
namespace {

constexpr double largest_chance = 1e-4;
// The number of blocks on each side of a change. The variance of their means is estimated from both
// sides together.
constexpr std::size_t least_blocks = 3;
// A smaller correlation of successive values is ignored.
constexpr double independent = 0.35;

// The newest values of a level, with the sums of distances that the energy distance of every split
// is made of. A further value costs as many operations as there are values.
class Level {
 public:
  explicit Level(std::size_t window) : window_(window), inverse_(window + 1) {
    for (std::size_t i = 1; i <= window; ++i) inverse_[i] = 1 / static_cast<double>(i);
  }

  void push(double value) {
    double sum = 0;
    for (std::size_t t = first_; t < x_.size(); ++t) {
      const double d = std::fabs(x_[t] - value);
      later_[t] += d;
      sum += d;
    }
    x_.push_back(value);
    earlier_.push_back(sum);
    later_.push_back(0);
    if (x_.size() - first_ <= window_) return;
    for (std::size_t t = first_ + 1; t < x_.size(); ++t)
      earlier_[t] -= std::fabs(x_[first_] - x_[t]);
    ++first_;
  }

  // The values that are left, oldest first.
  std::span<const double> values() const { return std::span(x_).subspan(first_); }

  // As energy_split().
  std::size_t split(std::size_t least) const {
    const std::size_t n = x_.size() - first_;
    if (n < 2 * least) return 0;
    double before = std::reduce(earlier_.begin() + offset(first_), earlier_.end(), 0.0);
    const double all = before;
    double after = 0, largest = 0;
    std::size_t best = 0;
    // The sums of |x - y| over all pairs before, after and across a split into m and k values make
    // the statistic of Matteson and James (equations 4 and 5, with exponent 1),
    //   m k / n (2 across / (m k) - 2 before / (m (m - 1)) - 2 after / (k (k - 1))).
    // What is compared is this times n / 2.
    for (std::size_t k = 1; k + least <= n; ++k) {
      const std::size_t t = x_.size() - k, m = n - k;
      before -= earlier_[t];
      after += later_[t];
      if (k < least) continue;
      const double q = all - before - after -
                       before * static_cast<double>(k) * inverse_[m > 1 ? m - 1 : 1] -
                       after * static_cast<double>(m) * inverse_[k > 1 ? k - 1 : 1];
      if (q > largest) largest = q, best = m;
    }
    return best;
  }

 private:
  static std::ptrdiff_t offset(std::size_t n) { return static_cast<std::ptrdiff_t>(n); }

  std::size_t window_, first_ = 0;
  // earlier_[t] is the sum of |x[t] - x[s]| over s < t within the window, later_[t] over s > t.
  std::vector<double> x_, earlier_, later_;
  std::vector<double> inverse_;  // of whole numbers
};

// Pairs whose value after is not larger by a strict order, counted up to `most` + 1. Equal values
// count against a rise.
std::size_t inversions(std::span<const double> before, std::span<const double> after, double sign,
                       std::size_t most) {
  std::size_t n = 0;
  for (const double y : after) {
    for (const double x : before) n += sign * x >= sign * y;
    if (n > most) break;
  }
  return n;
}

// Whether the values after lie higher (sign 1) or lower (sign -1) than those before.
bool differs(std::span<const double> before, std::span<const double> after, double sign,
             double chance) {
  const double m = static_cast<double>(before.size()), k = static_cast<double>(after.size());
  // With the largest chance, a rank sum within three deviations of its mean is not significant yet.
  const double deviation = std::sqrt(m * k * (m + k + 1) / 12);
  const double most = m * k / 2 - 3 * deviation;
  const std::size_t limit = most > 0 ? static_cast<std::size_t>(most) : 0;
  const std::size_t n = inversions(before, after, sign, limit);
  return n <= limit && rank_sum_tail(before.size(), after.size(), n) <= chance;
}

// Ranks from the mean rank on; equal values share theirs.
std::vector<double> centred_ranks(std::span<const double> values) {
  const std::size_t n = values.size();
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [&](std::size_t i) { return values[i]; });
  std::vector<double> rank(n);
  for (std::size_t i = 0, end = 0; i < n; i = end) {
    while (end < n && values[order[end]] == values[order[i]]) ++end;
    for (std::size_t j = i; j < end; ++j)
      rank[order[j]] = static_cast<double>(i + end - 1) / 2 - static_cast<double>(n - 1) / 2;
  }
  return rank;
}

// Means of successive blocks; a rest at the far end is left out, and so is a block that would touch
// the change from both sides.
std::vector<double> block_means(std::span<const double> values, std::size_t length, bool from_end) {
  const std::size_t blocks = values.size() / length;
  std::vector<double> means(blocks);
  const auto used = from_end ? values.last(blocks * length) : values.first(blocks * length);
  for (std::size_t b = 0; b < blocks; ++b) {
    const auto block = used.subspan(b * length, length);
    means[b] = std::reduce(block.begin(), block.end(), 0.0) / static_cast<double>(length);
  }
  return means;
}

// Student's t for means that lie higher after (sign 1) or lower (sign -1), with one variance.
bool means_differ(std::span<const double> before, std::span<const double> after, double sign,
                  double chance) {
  const double m = static_cast<double>(before.size()), k = static_cast<double>(after.size());
  const auto mean = [](std::span<const double> x) {
    return std::reduce(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
  };
  const auto squares = [](std::span<const double> x, double about) {
    double sum = 0;
    for (const double v : x) sum += (v - about) * (v - about);
    return sum;
  };
  const double a = mean(before), b = mean(after);
  const double variance = (squares(before, a) + squares(after, b)) / (m + k - 2);
  const double t = sign * (b - a) / std::sqrt(variance * (1 / m + 1 / k));
  return t > 0 && student_tail(t, before.size() + after.size() - 2) <= chance;
}

// Whether the split is one of levels. Where successive values depend on each other, the ranks of
// single values are not enough, and the means of blocks have to say it, too.
bool is_change(std::span<const double> values, std::size_t split, const ChangeRule& rule) {
  const auto before = values.first(split), after = values.subspan(split);
  for (const double sign : {1.0, -1.0}) {
    if (!differs(before, after, sign, granted(rule, after.size() - rule.least_after + 1))) continue;
    const std::size_t length = block_length(before);
    if (length == 1) return true;
    const std::vector<double> a = block_means(before, length, true),
                              b = block_means(after, length, false);
    return a.size() >= least_blocks && b.size() >= least_blocks &&
           means_differ(a, b, sign, granted(rule, b.size() - least_blocks + 1));
  }
  return false;
}

// Tells deterministic series from noise by the bits of their values. Noise of a continuous
// distribution never repeats a value. A value that comes back after another one refutes that the
// series is deterministic, and each time twice as many equal values are asked for.
class Bits {
 public:
  explicit Bits(std::size_t asked) : asked_(asked) {}

  // Whether the value, which comes next, is a certain change.
  bool push(double value) {
    const bool changed = run_ > 0 && value != last_;
    const bool certain = changed && run_ >= 2 && longest_ >= asked_;
    const bool came_back = changed && seen_.contains(value);
    run_ = changed ? 1 : run_ + 1;
    longest_ = came_back ? 1 : std::max(longest_, run_);
    if (came_back) asked_ = std::min(2 * asked_, most_asked);
    seen_.insert(last_ = value);
    return certain;
  }

 private:
  static constexpr std::size_t most_asked = std::size_t{1} << 40;  // no series is as long
  std::size_t asked_, run_ = 0, longest_ = 0;
  double last_ = 0;
  std::unordered_set<double> seen_;
};

// With the values that came later, a change of a noisy series is put where it fits best between
// its neighbours.
void place(std::span<const double> series, std::vector<ChangePoint>& points,
           const ChangeRule& rule) {
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (points[i].certain) continue;
    const std::size_t half = rule.window / 2, at = points[i].at;
    const std::size_t begin = std::max(i > 0 ? points[i - 1].at : 0, at > half ? at - half : 0);
    const std::size_t end =
        std::min(i + 1 < points.size() ? points[i + 1].at : series.size(), at + half);
    const std::size_t split = energy_split(series.subspan(begin, end - begin), rule.least_after);
    if (split > 0) points[i].at = std::min(begin + split, points[i].found);
  }
}

}  // namespace

double granted(const ChangeRule& rule, std::size_t test) {
  const double number = static_cast<double>(test);
  return rule.chance * 6 / (std::numbers::pi * std::numbers::pi * number * number);
}

double student_tail(double t, std::size_t freedom) {
  // Abramowitz and Stegun, 26.7.3 and 26.7.4, for whole degrees of freedom.
  const double angle = std::atan(t / std::sqrt(static_cast<double>(freedom)));
  const double c = std::cos(angle), s = std::sin(angle);
  const bool odd = freedom % 2 == 1;
  double term = odd ? c : 1, sum = freedom > 1 ? term : 0;
  for (std::size_t j = odd ? 3 : 2; j + 2 <= freedom; j += 2) {
    term *= c * c * static_cast<double>(j - 1) / static_cast<double>(j);
    sum += term;
  }
  const double within = odd ? 2 / std::numbers::pi * (angle + s * sum) : s * sum;
  return (1 - within) / 2;
}

double rank_sum_tail(std::size_t m, std::size_t k, std::size_t inversions) {
  // The number of arrangements with u inversions is the coefficient of q^u of the Gaussian binomial
  // (m + k over k), the product of (1 - q^(m+i)) / (1 - q^i) over i from 1 to k.
  if (k > m) std::swap(m, k);
  if (inversions >= m * k) return 1;
  std::vector<double> count(inversions + 1, 0);
  count[0] = 1;
  double all = 1;
  for (std::size_t i = 1; i <= k; ++i) {
    for (std::size_t u = inversions; u >= m + i; --u) count[u] -= count[u - m - i];
    for (std::size_t u = i; u <= inversions; ++u) count[u] += count[u - i];
    all *= static_cast<double>(m + i) / static_cast<double>(i);
  }
  return std::reduce(count.begin(), count.end(), 0.0) / all;
}

std::size_t block_length(std::span<const double> values) {
  const std::vector<double> rank = centred_ranks(values);
  const double square = std::inner_product(rank.begin(), rank.end(), rank.begin(), 0.0);
  if (square == 0) return 1;
  const double product = std::inner_product(rank.begin() + 1, rank.end(), rank.begin(), 0.0);
  // The correlation of successive ranks, and one deviation of it more, because a short series tells
  // little of it.
  const double r =
      std::min(product / square + 1 / std::sqrt(static_cast<double>(values.size())), 0.9);
  if (r <= independent) return 1;
  return static_cast<std::size_t>(std::ceil(2 * (1 + r) / (1 - r)));
}

std::size_t energy_split(std::span<const double> series, std::size_t least) {
  Level level(series.size());
  for (const double x : series) level.push(x);
  return level.split(least);
}

std::vector<ChangePoint> change_points(std::span<const double> series, const ChangeRule& rule) {
  if (!(rule.chance <= largest_chance))
    throw std::invalid_argument(
        "a chance beyond 1e-4 is not what change points are looked for with");
  std::vector<ChangePoint> points;
  if (std::ranges::adjacent_find(series, std::ranges::not_equal_to()) == series.end() &&
      (series.empty() || std::isfinite(series[0])))
    return points;
  Level level(rule.window);
  Bits bits(rule.equal_values);
  const auto begin_level = [&](std::size_t at, std::size_t found, bool certain) {
    points.push_back({at, found, certain});
    level = Level(rule.window);
    for (std::size_t t = at; t <= found; ++t) level.push(series[t]);
  };
  for (std::size_t n = 0; n < series.size(); ++n) {
    if (!std::isfinite(series[n]))
      throw std::invalid_argument("a series with a value that is not finite has no change points");
    if (bits.push(series[n])) {
      begin_level(n, n, true);
      continue;
    }
    level.push(series[n]);
    const auto values = level.values();
    const std::size_t split = level.split(rule.least_after);
    if (split > 0 && is_change(values, split, rule))
      begin_level(n + 1 - (values.size() - split), n, false);
  }
  place(series, points, rule);
  return points;
}

}  // namespace assay
