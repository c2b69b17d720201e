// The command line of a benchmark program: PROGRAM MODE [--shapes quick|full] [--threads N,...]
// [--json FILE] [any flag of Google Benchmark]
#pragma once

#include <span>
#include <string_view>

#include "bench/modes.h"

namespace assay::bench {

struct Mode {
  std::string_view name;
  void (*run)(Rounds&, const Settings&);
  bool limits;  // whether it prints fractions of the machine's limits
  const char* what;
};

// Returns the exit status: 0, 1 if something failed, 2 for bad usage. --json writes {"format",
// "mode", "limits", "measured"}; Rounds::report() describes the last of these.
int run_program(int argc, char** argv, std::string_view program, std::span<const Mode> modes);

}  // namespace assay::bench
