// The machine, the compiler and the commit of a run.
#pragma once

#include "harness/result.h"

namespace assay {

// Where a run takes place: processor, threads, targets, memory, compiler, flags, commit, release.
Json machine_facts();

}  // namespace assay
