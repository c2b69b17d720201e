// Writes a run as JUnit XML, which continuous integration systems read.
#pragma once

#include <string>

#include "harness/results/run.h"

namespace assay {

// A failed case becomes a failure with its kind (proved, by evidence), its reason, the line that
// reproduces it and, if it fails by evidence, the rows and filters that tell so. An unsupported
// or inconclusive case becomes a skipped one with its reason.
std::string junit_xml(const Run& run);

}  // namespace assay
