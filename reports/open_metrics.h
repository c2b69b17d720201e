// Writes runs as OpenMetrics text, which Prometheus and its relatives read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reports/stored_run.h"

namespace assay {

// One run as it is now, without timestamps: results by outcome, elements compared, the largest
// error/bound by dtype, and seconds. It ends with "# EOF".
std::string open_metrics(const StoredRun& run);

// The runs of a store as series over time: every value has the time at which its run started, in
// seconds since 1970. Of runs of one series that started in the same second the last one counts.
// Throws std::invalid_argument if a run's time is no ISO 8601 time in UTC.
std::string open_metrics(const std::vector<StoredRun>& runs);

// "2026-11-26T06:32:08Z" in seconds since 1970. Throws std::invalid_argument.
std::int64_t seconds_of_time(const std::string& time);

}  // namespace assay
