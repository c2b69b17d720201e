// Fuzz target: forward and backward passes under the certified verdict.
#include "fuzz/judge.h"

ASSAY_JUDGE_TARGET(assay::CaseKind::backward)
