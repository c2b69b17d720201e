#pragma once

#include <string>

#include "harness/result.h"

namespace assay {

// A run (as `assay check --json` writes it) as one self-contained page: the verdict, failures with the line
// that reproduces each, the power of the suite, the worst error/bound of every case, the machine.
std::string html_report(const Json& run);

}  // namespace assay
