// How a process of Python is started that has the package `assay`.
#pragma once

#include <string>
#include <vector>

#include "harness/process.h"

namespace assay {

// Starts `python3 ARGUMENTS`, or the interpreter that ASSAY_PYTHON in the environment names. It
// finds the package and the judge's library beside an installed command, or in the checkout that
// built this one. The process ends with the thread that starts it.
ProcessStart python_start(std::vector<std::string> arguments);

}  // namespace assay
