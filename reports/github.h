// What a workflow of GitHub Actions shows beside its log.
#pragma once

#include <string>
#include <vector>

#include "harness/results/run.h"

namespace assay {

// Workflow commands, each a line without its end: an error for each cause of failures (at most 9,
// and one that counts the others, because GitHub shows ten of a step), and a notice with the
// sentence of the run. The causes are those of run.summary. No text of others can be a workflow
// command of its own.
std::vector<std::string> github_annotations(const Run& run);

}  // namespace assay
