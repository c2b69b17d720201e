#include "cli/check_definition.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <stdexcept>

#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "harness/process.h"
#include "harness/python_start.h"

namespace assay {
namespace {

// The options of `assay check` that mean something for a solution.
constexpr std::array understood = {"--definition", "--workload", "--solution", "--trace",
                                   "--root",       "--causal",   "--coverage", "--device",
                                   "--seed",       "--evidence", "--timeout"};

// A package that cannot be imported is a fault of the machine, and no wrong solution: an exception
// would end Python with the status of one.
constexpr const char* judging = R"(import sys
try:
    from assay.flashinfer import main
except ImportError as e:
    print(f"assay: {e}", file=sys.stderr)
    sys.exit(3)
sys.exit(main())
)";

void refuse_other_options(const CLI::App& check) {
  for (const CLI::Option* option : check.get_options())
    if (option->count() > 0 && std::ranges::count(understood, option->get_name()) == 0)
      throw UsageError(
          fmt::format("{} means nothing for the solution of a --definition", option->get_name()));
}

}  // namespace

void add_definition(CLI::App& check, DefinitionOptions& o) {
  auto* definition =
      check
          .add_option("--definition", o.definition,
                      "Judge a solution of FlashInfer-Trace: this file holds its definition, or "
                      "several; docs/python.md")
          ->check(read_only());
  check
      .add_option(
          "--workload", o.workload,
          "With --definition: the workloads, as JSON lines. Each runs in a process of its own")
      ->check(read_only())
      ->needs(definition);
  check
      .add_option("--solution", o.solution,
                  "With --definition: the solution, in Python or Triton; --device says where its "
                  "inputs lie")
      ->check(read_only())
      ->needs(definition);
  check
      .add_option("--trace", o.trace,
                  "With --definition: write the traces to this file, as JSON lines")
      ->check(writable())
      ->needs(definition);
  check
      .add_option("--root", o.root,
                  "With --definition: the folder of files of tensors; without it, that of "
                  "--workload")
      ->needs(definition);
  check
      .add_option("--causal", o.causal,
                  "With --definition: whether a row of a prefill sees no later token")
      ->check(CLI::IsMember({"yes", "no"}))
      ->needs(definition);
  check
      .add_flag("--coverage", o.coverage,
                "With --definition: count which definitions are judged, name why others are not, "
                "and stop")
      ->needs(definition);
}

int check_definition(const CLI::App& check, const DefinitionOptions& o,
                     const std::vector<std::string>& shared) {
  refuse_other_options(check);
  std::vector<std::string> arguments = {"-c", judging, "--isolate", "--threads", "0"};
  arguments.insert(arguments.end(), shared.begin(), shared.end());
  const auto add = [&](const char* name, const std::string& value) {
    if (!value.empty()) arguments.insert(arguments.end(), {name, value});
  };
  add("--definition", o.definition);
  add("--workload", o.workload);
  add("--solution", o.solution);
  add("--trace", o.trace);
  add("--root", o.root);
  add("--causal", o.causal);
  if (o.coverage) arguments.emplace_back("--coverage");
  Process python(python_start(arguments));
  const int ended = python.wait();
  if (WIFEXITED(ended) && WEXITSTATUS(ended) <= machine_failed) return WEXITSTATUS(ended);
  throw std::runtime_error("the process that judges the solution " + how_it_ended(ended));
}

}  // namespace assay
