// Reports as HTML pages.
#pragma once

#include <string>

#include "harness/result.h"

namespace assay {

// A run (as `assay check --json` writes it, and, in fields `faults` and `fuzz`, the score of `assay faults --json` and what fuzz_of_page() makes of a summary) as one self-contained page: the verdict, failures with the line that reproduces each and their heat maps,
// the power of the suite, the worst error/bound of every case, the machine.
std::string html_report(const Json& run);

// A summary of `assay fuzz --json`: its targets, each with its findings.
Json fuzz_of_page(const Json& summary);

// Runs of a store (as Store::run() gives them) as one: accuracy and speed over time, down to the history of a case.
std::string html_dashboard(const Json& runs, const std::string& generated);

}  // namespace assay
