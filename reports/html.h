#pragma once

#include <string>

#include "harness/result.h"

namespace assay {

// A run (as `assay check --json` writes it) as one self-contained page: the verdict, failures with the line that reproduces each and their heat maps,
// the power of the suite, the worst error/bound of every case, the machine.
std::string html_report(const Json& run);

// Runs of a store (as Store::run() gives them) as one: accuracy and speed over time, down to the history of a case.
std::string html_dashboard(const Json& runs, const std::string& generated);

}  // namespace assay
