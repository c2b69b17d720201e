// Fuzz target: low-bit products under the certified verdict.
#include "fuzz/judge.h"

ASSAY_JUDGE_TARGET(assay::CaseKind::product)
