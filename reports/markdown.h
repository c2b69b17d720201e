// Writes runs as Markdown, for comments on pull requests.
#pragma once

#include <string>

#include "harness/results/run.h"
#include "reports/compare.h"

namespace assay {

// Gives the sentence of the run, what failing cases share, the causes of failures with the line
// that reproduces one of each, the evidence of failures inside their bounds, and the passes nearest
// to their bounds. It lists at most 20 causes, 20 cases with evidence and 5 passes, and tells how
// many there are. The causes are those of run.summary.
std::string markdown_summary(const Run& run);

// Gives a comparison of two runs in the same form.
std::string markdown_comparison(const StoredRun& a, const StoredRun& b,
                                const Comparison& comparison, double accuracy_margin,
                                double time_margin);

}  // namespace assay
