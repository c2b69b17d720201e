// Writes a run of a store in the metric format of Bencher (its JSON adapter).
#pragma once

#include <string>

#include "reports/stored_run.h"

namespace assay {

// For every result its time in nanoseconds ("latency"), the largest error/bound ("error-bound") and
// the fraction of the machine's limit, with its interval ("fraction-of-limit"). Numbers that are
// not finite and results without a number are left out. Throws std::invalid_argument if nothing is
// left.
std::string bencher_metrics(const StoredRun& run);

}  // namespace assay
