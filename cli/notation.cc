// The command assay notation.
#include <cstdio>
#include <string>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/options.h"
#include "problem/case.h"

namespace assay {

Command add_notation(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("notation", "Explain the one-line case notation, field by field");
  command->footer(
      "Examples:\n"
      "  assay notation\n"
      "  assay check --suite tiny --list     lines of that notation");
  return {command, [] {
            std::fputs(case_help().c_str(), stdout);
            return static_cast<int>(all_passed);
          }};
}

}  // namespace assay
