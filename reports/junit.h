// A run as JUnit XML, which continuous integration reads.
#pragma once

#include <string>

#include "harness/results/run.h"

namespace assay {

// A failed case is a failure with its reason and the line that reproduces it; what is unsupported
// or inconclusive is skipped with its reason.
std::string junit_xml(const Run& run);

}  // namespace assay
