// Reports as Markdown, for a comment on a pull request.
#pragma once

#include <string>

#include "harness/result.h"
#include "reports/compare.h"

namespace assay {

// A run (as `assay check --json` writes it) as a comment on a pull request: the sentence, what failed with the line that reproduces it, and the passes nearest
// to their bounds. At most 20 failures and 5 passes; it says how many there are.
std::string markdown_summary(const Json& run);

// Two runs, as Store::run() gives them, likewise.
std::string markdown_comparison(const Json& a, const Json& b, const Comparison& comparison, double accuracy_margin, double time_margin);

}  // namespace assay
