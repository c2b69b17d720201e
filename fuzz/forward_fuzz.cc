// Fuzz target: the forward pass under the certified verdict.
#include "fuzz/judge.h"

ASSAY_JUDGE_TARGET(assay::CaseKind::forward)
