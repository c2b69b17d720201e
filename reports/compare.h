// Compares two runs of the same cases: how near they came to their bounds, and how fast they were.
#pragma once

#include <string>
#include <vector>

#include "reports/stored_run.h"

namespace assay {

// The geometric mean of the ratios b / a over the cases that both runs have, with a 95% interval.
// The interval is a percentile bootstrap over cases with 2,000 seeded resamples.
struct Effect {
  std::size_t cases = 0;
  double mean = 1, low = 1, high = 1;
};

struct Comparison {
  std::size_t shared = 0, only_a = 0, only_b = 0;
  // Of the largest error/bound. Cases whose ratio is 0 or no number in either run are left out.
  Effect accuracy;
  // Of the candidate's time, or of the inverse fraction of the machine's limit where both runs have
  // it.
  Effect seconds;
  std::vector<std::string> changed;  // cases whose outcome differs, as "pass -> fail: LINE"
};

// Throws std::invalid_argument if the runs share no case.
Comparison compare_runs(const StoredRun& a, const StoredRun& b);

}  // namespace assay
