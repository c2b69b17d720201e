// A case as a C++ file that needs nothing of Assay.
#pragma once

#include <optional>
#include <string>

#include "problem/case.h"

namespace assay {

// A C++ file without dependencies that holds the inputs of the case, the exact outputs and their
// bounds, and a main() that calls a function the reader supplies and compares. Throws CaseError
// with what has_no_standalone() says.
std::string standalone_program(const Case& c);
// Why there is none: another operation, or more than 65,536 elements, since such a file is for
// small, shrunk cases.
std::optional<std::string> has_no_standalone(const Case& c);

}  // namespace assay
