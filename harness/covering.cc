#include "harness/covering.h"

#include <algorithm>
#include <numeric>

namespace assay {
namespace {

// Small, fixed and the same everywhere (std::shuffle is not): splitmix64.
class Shuffle {
 public:
  explicit Shuffle(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t n) {
    std::uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return (x ^ x >> 31) % n;
  }

 private:
  std::uint64_t state_;
};

struct Set {
  std::vector<int> factors;
  std::vector<char> covered;  // by mixed-radix code of the levels
  std::size_t missing;
};

std::size_t code_of(const Set& s, const std::vector<int>& levels, const std::vector<int>& row) {
  std::size_t code = 0;
  for (int f : s.factors)
    code = code * static_cast<std::size_t>(levels[static_cast<std::size_t>(f)]) + static_cast<std::size_t>(row[static_cast<std::size_t>(f)]);
  return code;
}

}  // namespace

std::vector<std::vector<int>> all_sets(const std::vector<int>& factors, int strength) {
  std::vector<std::vector<int>> sets, shorter;
  if (strength == 0) return {{}};
  for (std::size_t last = 0; last < factors.size(); ++last) {
    const std::vector<int> before(factors.begin(), factors.begin() + static_cast<std::ptrdiff_t>(last));
    for (std::vector<int> set : all_sets(before, strength - 1)) {
      set.push_back(factors[last]);
      sets.push_back(std::move(set));
    }
  }
  return sets;
}

std::vector<std::vector<int>> covering_array(const CoveringPlan& plan, std::uint64_t seed) {
  const std::size_t factors = plan.levels.size();
  std::vector<Set> sets;
  std::vector<std::vector<std::size_t>> sets_ending_at(factors);
  for (const auto& members : plan.sets) {
    std::size_t combinations = 1;
    for (int f : members) combinations *= static_cast<std::size_t>(plan.levels[static_cast<std::size_t>(f)]);
    for (int f : members) sets_ending_at[static_cast<std::size_t>(f)].push_back(sets.size());
    sets.push_back({members, std::vector<char>(combinations, 0), combinations});
  }
  Shuffle random(seed);
  std::vector<std::vector<int>> rows;
  for (;;) {
    const auto worst = std::max_element(sets.begin(), sets.end(), [](const Set& a, const Set& b) { return a.missing < b.missing; });
    if (worst == sets.end() || worst->missing == 0) return rows;
    std::vector<int> best;
    std::size_t best_gain = 0;
    for (int attempt = 0; attempt < 4; ++attempt) {
      // Start from a combination that is still missing, then fill the other factors in random order, each
      // with the level that completes the most missing combinations.
      std::vector<int> row(factors, -1);
      std::size_t skip = random.below(worst->missing), code = 0;
      while (worst->covered[code] || skip-- > 0) ++code;
      for (std::size_t k = worst->factors.size(); k-- > 0;) {
        const auto f = static_cast<std::size_t>(worst->factors[k]);
        const auto n = static_cast<std::size_t>(plan.levels[f]);
        row[f] = static_cast<int>(code % n);
        code /= n;
      }
      std::vector<std::size_t> order(factors);
      std::iota(order.begin(), order.end(), 0u);
      for (std::size_t k = factors; k > 1; --k) std::swap(order[k - 1], order[random.below(k)]);
      for (std::size_t f : order) {
        if (row[f] >= 0) continue;
        const int n = plan.levels[f], start = static_cast<int>(random.below(static_cast<std::uint64_t>(n)));
        int chosen = start;
        std::size_t most = 0;
        for (int k = 0; k < n; ++k) {
          row[f] = (start + k) % n;
          std::size_t gain = 0;
          for (std::size_t s : sets_ending_at[f]) {
            if (sets[s].missing == 0) continue;
            const bool complete = std::all_of(sets[s].factors.begin(), sets[s].factors.end(), [&](int g) { return row[static_cast<std::size_t>(g)] >= 0; });
            if (complete && !sets[s].covered[code_of(sets[s], plan.levels, row)]) ++gain;
          }
          if (gain > most) most = gain, chosen = row[f];
        }
        row[f] = chosen;
      }
      std::size_t gain = 0;
      for (const Set& s : sets) gain += !s.covered[code_of(s, plan.levels, row)];
      if (gain > best_gain) best_gain = gain, best = row;
    }
    for (Set& s : sets) {
      char& covered = s.covered[code_of(s, plan.levels, best)];
      s.missing -= !covered;
      covered = 1;
    }
    rows.push_back(std::move(best));
  }
}

}  // namespace assay
