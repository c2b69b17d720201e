// The commands of `assay`: each declares itself in a file of its own, and main.cc lists them.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace assay {

struct Command {
  CLI::App* app;  // the name, the options, the help text and the examples
  // Runs the command with the parsed options and returns its exit status. It throws an exception if
  // it cannot do its work; main.cc turns the exception into a sentence and an exit status.
  std::function<int()> run;
  // Only a process of this program starts the command. Its standard output belongs to the
  // candidate.
  bool internal = false;
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
Command add_new_kernel(CLI::App& app);
Command add_notation(CLI::App& app);
Command add_commands(CLI::App& app);
Command add_serve_kernel(CLI::App& app);
Command add_worker(CLI::App& app);

}  // namespace assay
