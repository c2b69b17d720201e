// The command line that the benchmark programs share: PROGRAM MODE [--shapes quick|full] [--threads N,...] [--json FILE] [any flag of Google Benchmark]
#pragma once

#include <span>
#include <string_view>

#include "bench/modes.h"

namespace assay::bench {

struct Mode {
  std::string_view name;
  void (*run)(Rounds&, const Settings&);
  bool limits;  // what it prints are fractions of the machine's limits
  const char* what;
};

// The exit status: 0, 1 where something failed, 2 for bad usage. --json writes {"format", "mode", "limits", "measured"}, the last as
// Rounds::report() says.
int run_program(int argc, char** argv, std::string_view program, std::span<const Mode> modes);

}  // namespace assay::bench
