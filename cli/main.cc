// The program `assay`: the list of its commands, and the handling of their exceptions and output.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "harness/candidates/kernel_process.h"
#include "harness/kept_memory.h"
#include "harness/records/safetensors.h"
#include "harness/text.h"
#include "problem/case.h"
#include "reports/store.h"

namespace assay {
namespace {

// The commands, in the order of the help text.
constexpr Command (*commands[])(CLI::App&) = {
    add_check,    add_record,   add_verify,       add_trace, add_identify, add_store,
    add_compare,  add_faults,   add_fuzz,         add_bench, add_sweep,    add_new_kernel,
    add_notation, add_commands, add_serve_kernel, add_worker};

constexpr const char* footer =
    "Exit status: 0 all passed, 1 some candidate was wrong, 2 bad usage or input (also: nothing "
    "was run or\n"
    "compared), 3 the machine or a device failed.\n\nExamples:\n"
    "  assay check --suite smoke\n"
    "  assay check --case 'attention b=1 h=8/2 l=37x53 d=64 dtype=bf16 causal lengths=41 "
    "scores=growing'\n"
    "  assay new-kernel mine && cmake -S mine -B mine/build && cmake --build mine/build\n"
    "  assay check --kernel mine/build/libmy_kernel.so --suite plain --html run.html\n"
    "  assay check --help     the options of a command, with examples; docs/commands/ says more";

// If a standard stream is closed, the next file that is opened would get its descriptor, and what
// is written to the stream would go into that file. Here standard input becomes empty, an error
// message is lost, and a command that prints something to standard output fails.
void keep_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(stream, F_GETFD) < 0 && errno == EBADF)
      (void)!open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY);
}

// In `--name=`, the library takes the next argument as the value, and in `-n=` it takes the sign.
// The value must be the empty text.
std::vector<const char*> with_empty_values(int argc, char** argv, std::vector<std::string>& texts) {
  for (int k = 0; k < argc; ++k) {
    const std::string text = argv[k];
    const bool named = text.starts_with("--") || (text.starts_with('-') && text.size() == 3);
    const bool empty = named && text.find('=') == text.size() - 1;
    texts.push_back(empty ? text.substr(0, text.size() - 1) : text);
    if (empty) texts.emplace_back();
  }
  std::vector<const char*> pointers;
  for (const std::string& text : texts) pointers.push_back(text.c_str());
  return pointers;
}

void flush_output() {
  const bool lost = std::ferror(stdout) != 0;
  // The reason of an earlier loss is no longer known. Writing one more line end gives the error
  // again.
  if (lost) std::fputc('\n', stdout);
  errno = 0;
  if (std::fflush(stdout) != 0 || lost)
    throw std::system_error(errno != 0 ? errno : EIO, std::generic_category(),
                            "writing standard output");
}

// A command may have commands of its own. What was parsed last has the options.
const CLI::App& innermost(const CLI::App& command) {
  const std::vector<CLI::App*> parsed = command.get_subcommands();
  return parsed.empty() ? command : innermost(*parsed.front());
}

// An exception of a candidate ends its process by a signal, as it would without this program.
int run_internal(const Command& command) noexcept { return command.run(); }

int run(int argc, char** argv) {
  CLI::App app{
      "Assay proves an attention kernel or a low-bit product right, or shows where it goes wrong."};
  app.set_version_flag("--version", std::string("assay ") + ASSAY_RELEASE);
  app.require_subcommand(1);
  app.footer(footer);
  std::vector<Command> declared;
  for (const auto add : commands) declared.push_back(add(app));
  refuse_empty_values(app);

  std::vector<std::string> texts;
  const std::vector<const char*> arguments = with_empty_values(argc, argv, texts);
  try {
    app.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const CLI::Success& e) {
    app.exit(e);  // prints a help text or the version
    flush_output();
    return all_passed;
  } catch (const CLI::ParseError& e) {
    throw UsageError(fmt::format("{}\nRun with --help for more information.", e.what()));
  }
  const auto chosen =
      std::ranges::find_if(declared, [](const Command& c) { return c.app->parsed(); });
  if (chosen->internal) return run_internal(*chosen);
  refuse_shared_files(innermost(*chosen->app));
  const int status = chosen->run();
  flush_output();
  return status;
}

// A path that cannot exist is the user's error. A full disk is the machine's.
bool names_no_file(const std::system_error& e) {
  constexpr int wrong_paths[] = {ENOENT, EACCES, ENOTDIR, EISDIR, EROFS, ELOOP, ENAMETOOLONG};
  return e.code().category() == std::generic_category() &&
         std::ranges::count(wrong_paths, e.code().value()) > 0;
}

// The exit status is kept even if the stream does not take the sentence.
int say(const char* sentence, ExitStatus status) {
  std::fputs(fmt::format("assay: {}\n", visible_lines(sentence)).c_str(), stderr);
  return status;
}

// Turns a wrong input of the user, or something that the machine lacks, into a sentence on standard
// error.
template <class Function>
int exit_status_of(const Function& function) {
  try {
    return function();
  } catch (const UsageError& e) {
    return say(e.what(), bad_usage);
  } catch (const CaseError& e) {
    return say(e.what(), bad_usage);
  } catch (const FileError& e) {
    return say(e.what(), bad_usage);
  } catch (const StoreError& e) {
    return say(e.what(), bad_usage);
  } catch (const LibraryError& e) {
    return say(e.what(), bad_usage);
  } catch (const std::system_error& e) {
    return say(e.what(), names_no_file(e) ? bad_usage : machine_failed);
  } catch (const std::invalid_argument& e) {
    return say(e.what(), bad_usage);
  } catch (const std::exception& e) {
    return say(e.what(), machine_failed);
  } catch (...) {
    return say("something was thrown that is no exception of the standard library", machine_failed);
  }
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  assay::keep_standard_streams();
  assay::keep_freed_memory();
  return assay::exit_status_of([&] { return assay::run(argc, argv); });
}
