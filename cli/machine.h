// Inside cli/: the machine, the compiler and the commit of a run.
#pragma once

#include "harness/results/run.h"

namespace assay {

// Where this process runs, and how it was built.
Machine this_machine();

}  // namespace assay
