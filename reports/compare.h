// Two runs of the same cases: how much nearer to its bound, how much slower.
#pragma once

#include <string>
#include <vector>

#include "reports/stored_run.h"

namespace assay {

// Ratios b / a over the cases that both runs have, as a geometric mean with a 95% interval:
// percentile bootstrap over cases, 2,000 seeded resamples.
struct Effect {
  std::size_t cases = 0;
  double mean = 1, low = 1, high = 1;
};

struct Comparison {
  std::size_t shared = 0, only_a = 0, only_b = 0;
  Effect accuracy;  // of the largest error/bound; cases whose ratio is 0 or no number in either run
                    // are left out
  Effect seconds;   // of the candidate's time, or of the inverse fraction of the machine's limit
                    // where both runs have it
  std::vector<std::string> changed;  // cases whose outcome differs: "pass -> fail: LINE"
};

// Throws std::invalid_argument if the runs share no case.
Comparison compare_runs(const StoredRun& a, const StoredRun& b);

}  // namespace assay
