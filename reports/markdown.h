// Runs as Markdown, for comments on pull requests.
#pragma once

#include <string>

#include "harness/results/run.h"
#include "reports/compare.h"

namespace assay {

// The sentence of the run, what failed with the line that reproduces it, and the passes nearest to
// their bounds. At most 20 failures and 5 passes; it says how many there are.
std::string markdown_summary(const Run& run);

// Two runs, likewise.
std::string markdown_comparison(const StoredRun& a, const StoredRun& b,
                                const Comparison& comparison, double accuracy_margin,
                                double time_margin);

}  // namespace assay
