// Inside cli/: the exit statuses of commands, and the error for wrong usage.
#pragma once

#include <stdexcept>

namespace assay {

// The exit status of a command; --help lists the same.
enum ExitStatus { all_passed = 0, some_failed = 1, bad_usage = 2, machine_failed = 3 };

// Wrong usage or input; its text is a sentence.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace assay
