// Writes a run as SARIF 2.1.0, the exchange format of static analysers, which code hosts show.
#pragma once

#include <string>

#include "harness/results/run.h"

namespace assay {

// One result for every case that failed, could not be judged or is suspect, at most 1,000; a
// notification counts those that are left out. Its place is the case line (a logical location) and,
// for a library or a Python file, the kernel's file.
std::string sarif_log(const Run& run);

}  // namespace assay
