#include "harness/cases/covering.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "problem/index.h"
#include "problem/random.h"

namespace assay {
namespace {

// Writes the levels of a combination into a row. The other places of the row stay open (-1).
void put_combination(const std::vector<int>& factors, const std::vector<int>& levels,
                     std::size_t code, std::vector<int>& row) {
  for (std::size_t k = factors.size(); k-- > 0;) {
    const auto f = usize(factors[k]), n = usize(levels[f]);
    row[f] = static_cast<int>(code % n);
    code /= n;
  }
}

// Whether the row holds levels that cannot occur together. Open places hold no level.
bool is_excluded(const CoveringPlan& plan, const std::vector<int>& row) {
  return std::any_of(plan.excluded.begin(), plan.excluded.end(), [&](const auto& levels) {
    return std::all_of(levels.begin(), levels.end(),
                       [&](const auto& level) { return row[usize(level.first)] == level.second; });
  });
}

std::size_t combinations_of(const CoveringPlan& plan, const std::vector<int>& factors) {
  std::size_t n = 1;
  for (int f : factors) n *= usize(plan.levels[usize(f)]);
  return n;
}

template <class Body>
void for_each_excluded(const CoveringPlan& plan, const std::vector<int>& factors,
                       std::size_t combinations, const Body& body) {
  for (std::size_t code = 0; code < combinations && !plan.excluded.empty(); ++code) {
    std::vector<int> row(plan.levels.size(), -1);
    put_combination(factors, plan.levels, code, row);
    if (is_excluded(plan, row)) body(code);
  }
}

}  // namespace

std::vector<std::vector<int>> all_sets(const std::vector<int>& factors, int strength) {
  std::vector<std::vector<int>> sets, shorter;
  if (strength == 0) return {{}};
  for (std::size_t last = 0; last < factors.size(); ++last) {
    const std::vector<int> before(factors.begin(),
                                  factors.begin() + static_cast<std::ptrdiff_t>(last));
    for (std::vector<int> set : all_sets(before, strength - 1)) {
      set.push_back(factors[last]);
      sets.push_back(std::move(set));
    }
  }
  return sets;
}

Combinations count_combinations(const CoveringPlan& plan) {
  Combinations count;
  for (const auto& members : plan.sets) {
    const std::size_t combinations = combinations_of(plan, members);
    count.all += combinations;
    for_each_excluded(plan, members, combinations, [&](std::size_t) { ++count.excluded; });
  }
  return count;
}

Coverage::Coverage(const CoveringPlan& plan, const std::vector<std::vector<int>>& rows)
    : plan_(plan) {
  for (const auto& members : plan.sets) {
    const std::size_t combinations = combinations_of(plan, members);
    Set& s = sets_.emplace_back(members, std::vector<char>(combinations, 0), combinations);
    for_each_excluded(plan, members, combinations,
                      [&](std::size_t code) { s.covered[code] = 1, --s.missing; });
  }
  for (const std::vector<int>& row : rows) add(row);
}

bool Coverage::gains(const std::vector<int>& row) const {
  return std::ranges::any_of(sets_, [&](const Set& s) { return !s.covered[code_of(s, row)]; });
}

void Coverage::add(const std::vector<int>& row) {
  for (Set& s : sets_) {
    char& covered = s.covered[code_of(s, row)];
    s.missing -= !covered;
    covered = 1;
  }
}

std::vector<Coverage::Combination> Coverage::missing() const {
  std::vector<Combination> all;
  for (std::size_t s = 0; s < sets_.size(); ++s)
    for (std::size_t code = 0; code < sets_[s].covered.size(); ++code)
      if (!sets_[s].covered[code]) all.push_back({s, code});
  return all;
}

std::vector<int> Coverage::row_of(const Combination& c) const {
  std::vector<int> row(plan_.levels.size(), -1);
  put_combination(sets_[c.set].factors, plan_.levels, c.code, row);
  return row;
}

std::size_t Coverage::code_of(const Set& s, const std::vector<int>& row) const {
  std::size_t code = 0;
  for (int f : s.factors) code = code * usize(plan_.levels[usize(f)]) + usize(row[usize(f)]);
  return code;
}

std::vector<std::vector<int>> covering_array(const CoveringPlan& plan, std::uint64_t seed) {
  const std::size_t factors = plan.levels.size();
  Coverage coverage(plan);
  const std::vector<Coverage::Set>& sets = coverage.sets();
  std::vector<std::vector<std::size_t>> sets_ending_at(factors);
  for (std::size_t s = 0; s < sets.size(); ++s)
    for (int f : sets[s].factors) sets_ending_at[usize(f)].push_back(s);
  SplitMix64 random(seed);
  std::vector<std::vector<int>> rows;
  for (;;) {
    const auto worst = std::max_element(
        sets.begin(), sets.end(),
        [](const Coverage::Set& a, const Coverage::Set& b) { return a.missing < b.missing; });
    if (worst == sets.end() || worst->missing == 0) return rows;
    std::vector<int> best;
    std::size_t best_gain = 0;
    for (int attempt = 0; attempt < 4 || (best.empty() && attempt < 100); ++attempt) {
      // Starts from a combination that is still missing. Then fills the other factors in random
      // order, each with the level that completes the most missing combinations.
      std::vector<int> row(factors, -1);
      std::size_t skip = random.below(worst->missing), code = 0;
      while (worst->covered[code] || skip-- > 0) ++code;
      put_combination(worst->factors, plan.levels, code, row);
      std::vector<std::size_t> order(factors);
      std::iota(order.begin(), order.end(), 0u);
      for (std::size_t k = factors; k > 1; --k) std::swap(order[k - 1], order[random.below(k)]);
      for (std::size_t f : order) {
        if (row[f] >= 0) continue;
        const int n = plan.levels[f],
                  start = static_cast<int>(random.below(static_cast<std::uint64_t>(n)));
        int chosen = -1;
        std::size_t most = 0;
        for (int k = 0; k < n; ++k) {
          row[f] = (start + k) % n;
          if (is_excluded(plan, row)) continue;
          std::size_t gain = 0;
          for (std::size_t s : sets_ending_at[f]) {
            if (sets[s].missing == 0) continue;
            const bool complete = std::all_of(sets[s].factors.begin(), sets[s].factors.end(),
                                              [&](int g) { return row[usize(g)] >= 0; });
            if (complete && !sets[s].covered[coverage.code_of(sets[s], row)]) ++gain;
          }
          if (gain > most || chosen < 0) most = gain, chosen = row[f];
        }
        row[f] = chosen;
        if (chosen < 0) break;
      }
      if (std::ranges::count(row, -1) > 0)
        // Some factor has no level left. With other levels of the factors before it, it may have
        // one.
        continue;
      std::size_t gain = 0;
      for (const Coverage::Set& s : sets) gain += !s.covered[coverage.code_of(s, row)];
      if (gain > best_gain) best_gain = gain, best = row;
    }
    if (best.empty()) throw std::logic_error("a combination of a covering array fits into no row");
    coverage.add(best);
    rows.push_back(std::move(best));
  }
}

}  // namespace assay
