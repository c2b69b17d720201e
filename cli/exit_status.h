// What a command leaves to its caller, and how it refuses what it was given.
#pragma once

#include <stdexcept>

namespace assay {

// What a command leaves to its caller; --help lists the same.
enum ExitStatus { all_passed = 0, some_failed = 1, bad_usage = 2, machine_failed = 3 };

// Bad usage or input, as a sentence.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace assay
