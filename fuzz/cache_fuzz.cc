// Fuzz target: prefill in chunks and decode, through caches, under the certified verdict.
#include "fuzz/judge.h"

ASSAY_JUDGE_TARGET(assay::CaseKind::cached)
