// Reports as JUnit XML, which other tools read.
#pragma once

#include <string>

#include "harness/result.h"

namespace assay {

// A run (as `assay check --json` writes it) as JUnit XML: a failed case is a failure with its reason and
// the line that reproduces it; what is unsupported or inconclusive is skipped with its reason.
std::string junit_xml(const Json& run);

}  // namespace assay
