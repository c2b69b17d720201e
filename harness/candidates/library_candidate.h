// Inside harness/candidates/: a candidate that runs a shared library.
#pragma once

#include <memory>
#include <string>

#include "harness/candidates/candidate.h"

namespace assay {

// Makes a candidate of a shared library that implements include/assay/kernel.h. The library runs in
// a process of its own. Throws LibraryError.
std::unique_ptr<Candidate> make_library_candidate(const std::string& path);

}  // namespace assay
