// A candidate that is somebody's shared library.
#pragma once

#include <memory>
#include <string>

#include "harness/candidates/candidate.h"

namespace assay {

// A shared library behind include/assay/kernel.h, in a process of its own. Throws LibraryError.
std::unique_ptr<Candidate> make_library_candidate(const std::string& path);

}  // namespace assay
