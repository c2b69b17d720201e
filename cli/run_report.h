#pragma once

#include <cstdint>
#include <string>

#include "harness/result.h"

namespace assay {

// Where a run is written besides the terminal; empty: nowhere.
struct ReportFiles {
  std::string json, junit, html, markdown;
  std::string store;  // appended to
};

struct RunFacts {
  std::string title, candidate;
  std::string unit = "cases";
  std::uint64_t seed = 1;
  std::size_t not_run = 0;  // for lack of time
  double seconds = 0;
  double most_unsupported = 100;  // percent
  ReportFiles files;
};

// Prints and writes what came out of a run, and returns its exit status.
int report_run(const RunFacts& run, const Json& results);

}  // namespace assay
