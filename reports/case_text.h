// What a run says about one case on a terminal: in few lines, or with every number explained. The
// texts of others in these lines (a reason, a contract) are as they came; printing makes them
// visible.
#pragma once

#include <string>
#include <vector>

#include "harness/results/result.h"

namespace assay {

// The case line and what has to be known: five lines at most if it passed, ten if it failed, of
// which the last one is the command that reproduces the failure. Lines but the first are indented.
std::vector<std::string> told_case(const CaseResult& result);

// Every number that was measured, each with a line that says what it means.
std::vector<std::string> explained_case(const CaseResult& result);

// The evidence in one line: of each output the row whose errors are furthest from typical ones, and
// the fault of which the errors hold most. Empty if nothing was asked.
std::string told_evidence(const Evidence& evidence);

// The same in full, one line for the largest row of each output and one for each filter.
std::vector<std::string> listed_evidence(const Evidence& evidence);

}  // namespace assay
