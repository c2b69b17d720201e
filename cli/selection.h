// Which cases a command is to run: the options, and the cases that they mean.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "problem/case.h"

namespace CLI {
class App;
}

namespace assay {

// Which cases a command is to run.
struct SelectionOptions {
  std::string suite;               // a suite, or
  std::vector<std::string> cases;  // case lines
  std::string cases_file;          // and a file of them, one a line
  std::string filter;              // substring of the line
  std::uint64_t seed = 1;          // of the inputs of a suite
  std::string shard;               // i/n, i from 0
};

// --suite, --case, --cases, --filter, --seed, --shard.
void add_selection(CLI::App& command, SelectionOptions& options);

struct Selection {
  std::string title;
  std::vector<std::string> notes;
  std::vector<Case> cases;
};

// Throws UsageError, CaseError or std::invalid_argument; never an empty selection.
Selection select_cases(const SelectionOptions& options, std::uint64_t seed);

}  // namespace assay
