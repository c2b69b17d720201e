// Covering arrays: few cases in which every combination of a few features still meets.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace assay {

struct CoveringPlan {
  std::vector<int> levels;  // of each factor
  std::vector<std::vector<int>>
      sets;  // factors of which every combination of levels must occur together
  // Levels, each with its factor, that cannot occur together. Combinations that hold them are not
  // asked for; all others must fit into some row.
  std::vector<std::vector<std::pair<int, int>>> excluded = {};
};

// All sets of `strength` factors.
std::vector<std::vector<int>> all_sets(const std::vector<int>& factors, int strength);

// How many combinations the sets of a plan have, and how many of those hold levels that cannot
// occur together.
struct Combinations {
  std::size_t all = 0, excluded = 0;
};
Combinations count_combinations(const CoveringPlan& plan);

// Rows of levels, one for each factor, that cover every combination of every set. Greedy and
// seeded: the same arguments give the same rows on any machine. Throws std::logic_error if a
// combination that is asked for fits into no row.
std::vector<std::vector<int>> covering_array(const CoveringPlan& plan, std::uint64_t seed);

}  // namespace assay
