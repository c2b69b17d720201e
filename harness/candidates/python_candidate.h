// Inside harness/candidates/: a Python function in a process of its own:
// "python:FILE.py::function", or "...::function@DEVICE".
#pragma once

#include <memory>
#include <string>

#include "harness/candidates/candidate.h"

namespace assay {

// Starts `python3 -m assay._serve`, which loads the function. The interpreter is that of the
// environment variable ASSAY_PYTHON, or else python3 on PATH. Throws std::invalid_argument if the
// process cannot start or the file has no such kernel.
std::unique_ptr<Candidate> make_python_candidate(const std::string& where);

}  // namespace assay
