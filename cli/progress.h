// Inside cli/: shows on the terminal how far a command is while it runs.
#pragma once

#include <string>

#include "problem/clock.h"

namespace assay {

// Shows a bar on a terminal, otherwise a plain line now and then. It uses standard error, so that
// output can be piped.
class Progress {
 public:
  Progress(std::string what, std::size_t total);
  ~Progress();
  void advance(const std::string& note);
  // Prints a line above the bar.
  void say(const std::string& line);

 private:
  void draw();
  std::string what_, note_;
  std::size_t done_ = 0, total_;
  bool terminal_;
  Clock::time_point start_, last_;
};

}  // namespace assay
