// Puts together what the shards of a sweep wrote. Shard i of n holds every n-th piece of the work
// from the i-th on, so the whole has the pieces in the order in which one process has them.
#pragma once

#include <vector>

#include "harness/results/faults_score.h"
#include "harness/results/fuzz_summary.h"
#include "harness/results/run.h"

namespace assay {

// Each function takes the documents of all shards in order, of which there is at least one. It
// throws SchemaError if their numbers of pieces are not those of one whole.

// The summary has the outcomes and the seconds of all shards and nothing else.
Run merged(const std::vector<Run>& shards);
FaultsScore merged(const std::vector<FaultsScore>& shards);
// Of a target that several shards ran, seconds, executions and inputs are added up. The coverage is
// the largest of one shard.
FuzzSummary merged(const std::vector<FuzzSummary>& shards);

// Where the shards ran: what differs among the machines is listed, and of numbers the smallest is
// taken. There is at least one.
Machine merged(const std::vector<Machine>& machines);

// The document without what time alone changes: the fields "seconds", and sentences with them.
Json without_times(Json document);

}  // namespace assay
