// Covering arrays: few cases in which every combination of a few features still meets.
#pragma once

#include <cstdint>
#include <vector>

namespace assay {

struct CoveringPlan {
  std::vector<int> levels;             // of each factor
  std::vector<std::vector<int>> sets;  // factors of which every combination of levels must occur together
};

// All sets of `strength` factors.
std::vector<std::vector<int>> all_sets(const std::vector<int>& factors, int strength);

// Rows of levels, one for each factor, that cover every combination of every set. Greedy and seeded: the same
// arguments give the same rows on any machine.
std::vector<std::vector<int>> covering_array(const CoveringPlan& plan, std::uint64_t seed);

}  // namespace assay
