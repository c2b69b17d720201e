// Writes runs as Markdown, for comments on pull requests.
#pragma once

#include <string>

#include "harness/results/run.h"
#include "reports/compare.h"

namespace assay {

// Gives the sentence of the run, the failures with the line that reproduces each, and the passes
// nearest to their bounds. It lists at most 20 failures and 5 passes, and tells how many there are.
std::string markdown_summary(const Run& run);

// Gives a comparison of two runs in the same form.
std::string markdown_comparison(const StoredRun& a, const StoredRun& b,
                                const Comparison& comparison, double accuracy_margin,
                                double time_margin);

}  // namespace assay
