// Inside cli/: a limit for work that this process cannot interrupt, like the calls of a library.
#pragma once

#include <string>

#include "cli/exit_status.h"

namespace assay {

// Ends this process if the time is over before the object is gone: prints a sentence to standard
// error and exits with the status. Processes that were started end too (harness/process.h). There
// is one such object at a time. The work "loading lib:./mine.so" gives the sentence "assay: loading
// lib:./mine.so did not end within the 120 s of --timeout".
class TimeLimit {
 public:
  TimeLimit(const std::string& work, double seconds, ExitStatus status);
  ~TimeLimit();
  TimeLimit(const TimeLimit&) = delete;
  TimeLimit& operator=(const TimeLimit&) = delete;
};

}  // namespace assay
