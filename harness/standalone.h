#pragma once

#include <string>

#include "problem/case.h"

namespace assay {

// A C++ file without dependencies that holds the inputs of the case, the exact outputs and their bounds, and
// a main() that calls a function the reader supplies and compares. Throws CaseError for a case of more than
// 65,536 elements: such a file is for small, shrunk cases.
std::string standalone_program(const Case& c);

}  // namespace assay
