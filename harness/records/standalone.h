// Writes a case as a C++ file that does not need Assay.
#pragma once

#include <optional>
#include <string>

#include "problem/case.h"

namespace assay {

// Returns a C++ file without dependencies. It holds the inputs of the case, the exact outputs and
// their bounds, and a main() that calls a function, which the reader supplies, and compares its
// outputs. Throws CaseError with the text of has_no_standalone().
std::string standalone_program(const Case& c);
// Why there is no such file: the operation is another one, or the case has more than 65,536
// elements (such a file is for small, shrunk cases).
std::optional<std::string> has_no_standalone(const Case& c);

}  // namespace assay
