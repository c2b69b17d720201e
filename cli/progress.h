// How far a command is, told on the terminal while it runs.
#pragma once

#include <string>

#include "problem/clock.h"

namespace assay {

// A bar on a terminal, a plain line now and then otherwise; on standard error, so that output can
// be piped.
class Progress {
 public:
  Progress(std::string what, std::size_t total);
  ~Progress();
  void advance(const std::string& note);
  // Prints a line of its own, above the bar.
  void say(const std::string& line);

 private:
  void draw();
  std::string what_, note_;
  std::size_t done_ = 0, total_;
  bool terminal_;
  Clock::time_point start_, last_;
};

}  // namespace assay
