// Covering arrays: a few cases in which every combination of a few features occurs.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace assay {

struct CoveringPlan {
  std::vector<int> levels;  // the number of levels of each factor
  // Sets of factors. For each set, every combination of levels must occur.
  std::vector<std::vector<int>> sets;
  // Combinations of (factor, level) that cannot occur together. The array need not contain
  // combinations that hold one of them; every other one must fit into some row.
  std::vector<std::vector<std::pair<int, int>>> excluded = {};
};

// All sets of `strength` factors.
std::vector<std::vector<int>> all_sets(const std::vector<int>& factors, int strength);

// The number of combinations in the sets of a plan, and the number of those that hold levels that
// cannot occur together.
struct Combinations {
  std::size_t all = 0, excluded = 0;
};
Combinations count_combinations(const CoveringPlan& plan);

// Which combinations of a plan occur in rows. Those that hold levels that cannot occur together
// count as if they did.
class Coverage {
 public:
  explicit Coverage(const CoveringPlan& plan, const std::vector<std::vector<int>>& rows = {});

  // A combination of the levels of one set of the plan.
  struct Combination {
    std::size_t set, code;
  };
  void add(const std::vector<int>& row);
  bool gains(const std::vector<int>& row) const;  // whether it holds a combination that is missing
  bool has(const Combination& c) const { return sets_[c.set].covered[c.code] != 0; }
  std::vector<Combination> missing() const;
  // The levels of the combination in their places; the others are open (-1).
  std::vector<int> row_of(const Combination& c) const;

  struct Set {
    std::vector<int> factors;
    std::vector<char> covered;  // indexed by the mixed-radix code of the levels
    std::size_t missing;
  };
  const std::vector<Set>& sets() const { return sets_; }
  std::size_t code_of(const Set& s, const std::vector<int>& row) const;

 private:
  const CoveringPlan& plan_;
  std::vector<Set> sets_;
};

// Finds rows of levels, one level for each factor, that cover every combination of every set. The
// search is greedy and seeded: the same arguments give the same rows on any machine. Throws
// std::logic_error if a combination that must occur fits into no row.
std::vector<std::vector<int>> covering_array(const CoveringPlan& plan, std::uint64_t seed);

}  // namespace assay
