// The cases that a command runs: the options, and the cases that they select.
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
};

// Throws UsageError, CaseError or std::invalid_argument. The selection is never empty. A suite is
// drawn for the features.
Selection select_cases(const SelectionOptions& options, std::uint64_t seed,
                       const Features& has = {});

}  // namespace assay
