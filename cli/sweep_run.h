// Inside cli/: runs a shard of a sweep.
#pragma once

#include <string>

#include "cli/sweep_state.h"

namespace assay {

// Runs the shard in a process of its own and writes its file into the folder, whole or not at all.
// If the shard is there already, nothing is run. Returns the exit status: 0 or 1, the answer; 2,
// the command refused its options, so nothing was written; 3, the machine failed. Throws UsageError
// if the file of another plan is in the place, and std::system_error.
int run_shard(const PlanFile& plan, std::size_t shard, const std::string& folder);

}  // namespace assay
