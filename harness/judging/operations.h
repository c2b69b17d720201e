// Inside harness/judging/: the operations, a row each, and the one way in which a case of any of
// them is judged.
#pragma once

#include "harness/judging/case_run.h"

namespace assay {

struct JudgedOperation {
  Operation operation{};
  void (*judge)(const CaseRun&) = nullptr;  // completes the result
};
const JudgedOperation& row_of(Operation operation);

}  // namespace assay
