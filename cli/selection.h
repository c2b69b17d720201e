// Inside cli/: the cases that a command runs: the options, and the cases that they select.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "problem/case.h"
#include "problem/features.h"

namespace CLI {
class App;
}

namespace assay {

// One of n parts of some work: every n-th piece of it, from the i-th on.
struct Shard {
  std::size_t i = 0, n = 1;
  bool takes(std::size_t piece) const { return piece % n == i; }
};
// Reads "i/n" with i < n; an empty text means all of the work. Throws UsageError.
Shard parse_shard(const std::string& text);
// Adds --shard. The unit of the work, as "case", is told in the help text.
void add_shard(CLI::App& command, std::string& shard, const std::string& unit);

// The options that select the cases of a command.
struct SelectionOptions {
  std::string suite;               // a suite, or
  std::vector<std::string> cases;  // case lines
  std::string cases_file;          // also a file of case lines, one a line
  std::string filter;              // a substring of the line
  std::uint64_t seed = 1;          // the seed of the inputs of a suite
  std::string shard;               // i/n, where i counts from 0
};

// Adds --suite, --case, --cases, --filter, --seed and --shard.
void add_selection(CLI::App& command, SelectionOptions& options);

struct Selection {
  std::string title;
  std::vector<std::string> notes;
  std::vector<Case> cases;
  // Of a suite that was drawn for a candidate that lacks features: how many cases of the whole
  // suite need which. Otherwise empty.
  std::string left_out;
  // How many cases such a suite has, over those of the whole one; 1 where it has as many or more.
  double share_drawn = 1;
};

// Throws UsageError, CaseError or std::invalid_argument. The selection is never empty. A suite is
// drawn for the features.
Selection select_cases(const SelectionOptions& options, std::uint64_t seed,
                       const Features& has = {});

}  // namespace assay
