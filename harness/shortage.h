// The error of a machine that lacks something.
#pragma once

#include <stdexcept>

namespace assay {

// The machine lacked memory, descriptors or processes, so nothing was found out about a candidate.
struct ShortageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace assay
