// Writes a run as JUnit XML, which continuous integration systems read.
#pragma once

#include <string>

#include "harness/results/run.h"

namespace assay {

// A failed case becomes a failure with its reason and the line that reproduces it. An unsupported
// or inconclusive case becomes a skipped one with its reason.
std::string junit_xml(const Run& run);

}  // namespace assay
