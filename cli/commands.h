// Inside cli/: the commands of `assay`: each declares itself in a file of its own, and main.cc
// lists them.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "harness/results/machine.h"

namespace CLI {
class App;
}

namespace assay {

// How a command whose work can be divided (--shard) takes part in `assay sweep`.
struct Division {
  // The number of pieces of the work, which is the largest number of shards of which none is empty.
  // Throws an exception if the command refuses its options.
  std::function<std::size_t()> pieces;
  // Reports what the shards wrote with --json, in their order, as run() does if it has done all of
  // the work; `machine` is where they ran. Returns the exit status of run(). Throws SchemaError if
  // the documents are not those of one whole.
  std::function<int(const std::vector<Json>& shards, const Machine& machine)> merge;
};

struct Command {
  CLI::App* app;  // the name, the options, the help text and the examples
  // Runs the command with the parsed options and returns its exit status. It throws an exception if
  // it cannot do its work; main.cc turns the exception into a sentence and an exit status.
  std::function<int()> run;
  // Only a process of this program starts the command. Its standard output belongs to the
  // candidate.
  bool internal = false;
  std::optional<Division> division = {};
};

// Each function declares a command under `app`, which must outlive the returned Command.
Command add_check(CLI::App& app);
Command add_record(CLI::App& app);
Command add_verify(CLI::App& app);
Command add_trace(CLI::App& app);
Command add_identify(CLI::App& app);
Command add_store(CLI::App& app);
Command add_compare(CLI::App& app);
Command add_faults(CLI::App& app);
Command add_fuzz(CLI::App& app);
Command add_bench(CLI::App& app);
Command add_sweep(CLI::App& app);
Command add_new_kernel(CLI::App& app);
Command add_notation(CLI::App& app);
Command add_commands(CLI::App& app);
Command add_serve_kernel(CLI::App& app);
Command add_worker(CLI::App& app);

}  // namespace assay
