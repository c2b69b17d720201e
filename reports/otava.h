// Writes the runs of a store as the JSON that Apache Otava's importer reads, which looks for change
// points.
#pragma once

#include <string>
#include <vector>

#include "reports/stored_run.h"

namespace assay {

// A list of runs, oldest first, each with its time (seconds since 1970), commit, candidate, suite
// and metrics. The metrics are, for every case or benchmark, "NAME: error/bound" and "NAME:
// seconds", and for the run the largest error/bound, its time and the number of failures. Numbers
// that are not finite are left out. Throws std::invalid_argument for a run without a valid time.
std::string otava_history(const std::vector<StoredRun>& runs);

}  // namespace assay
