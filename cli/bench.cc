// The command assay bench.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <regex>
#include <system_error>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "cli/tell.h"
#include "harness/files.h"
#include "harness/process.h"
#include "harness/results/schema.h"
#include "reports/store.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

struct BenchOptions {
  std::vector<std::string> modes;  // empty: all modes
  std::vector<int> threads;        // empty: 1 and 2 threads
  std::string shapes = "quick", filter;
  int repetitions = 6;
  double min_time = 0.15;  // the least time of a repetition, in seconds
  bool list = false;
  std::string bin, json, store;
};

struct Mode {
  const char *name, *program;
};
// The peers are in a program of their own, so that this program does not need their libraries and
// survives their crashes.
constexpr Mode modes[] = {{"forward", "attention_bench"},  {"backward", "attention_bench"},
                          {"times", "attention_bench"},    {"decode", "attention_bench"},
                          {"products", "attention_bench"}, {"overhead", "attention_bench"},
                          {"verdicts", "oracle_bench"},    {"generators", "oracle_bench"}};

std::vector<std::string> bench_modes() {
  std::vector<std::string> names;
  for (const Mode& m : modes) names.emplace_back(m.name);
  return names;
}

// A program that fails has written its message to standard error already, so only its exit status
// is added.
int run_program(const fs::path& program, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), program.string());
  std::fflush(nullptr);
  std::optional<Process> child;
  try {
    child.emplace(ProcessStart{
        .program = program, .arguments = std::move(arguments), .dies_with_thread = true});
  } catch (const std::system_error& e) {
    throw UsageError(
        fmt::format("{} cannot be run ({}): --bin says where the benchmarks lie; "
                    "builds with -DASSAY_BENCH=ON have them",
                    program.string(), e.code().message()));
  }
  const int status = child->wait();
  if (WIFSIGNALED(status))
    throw std::runtime_error(
        fmt::format("{} was ended by signal {}", program.filename().string(), WTERMSIG(status)));
  return WEXITSTATUS(status);
}

// A folder of this process alone, in which a program writes its file. It is removed with this
// object.
class Scratch {
 public:
  Scratch() : folder_(fs::temp_directory_path() / "assay-bench.XXXXXX") {
    if (mkdtemp(folder_.data()) == nullptr)
      throw std::system_error(errno, std::generic_category(), fmt::format("making {}", folder_));
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  fs::path file() const { return fs::path(folder_) / "measured.json"; }

 private:
  std::string folder_;
};

// What the program of a mode wrote.
BenchMode measured_by(const Mode& mode, const Scratch& scratch) {
  std::ifstream in(scratch.file(), std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const std::string what = mode.program + std::string(" --json");
  return from_json<BenchMode>(parse_json(text, what), what);
}

std::vector<Mode> chosen(const BenchOptions& o) {
  if (o.modes.empty()) return {std::begin(modes), std::end(modes)};
  std::vector<Mode> all;
  for (const std::string& name : o.modes) {
    const auto found =
        std::ranges::find(modes, name, [](const Mode& m) { return std::string(m.name); });
    if (found == std::end(modes))
      throw UsageError(fmt::format("'{}': no such benchmarks; there are {}", name,
                                   fmt::join(bench_modes(), ", ")));
    all.push_back(*found);
  }
  return all;
}

int run(const BenchOptions& o) {
  try {
    std::regex(o.filter, std::regex::extended);
  } catch (const std::regex_error& e) {
    throw UsageError(fmt::format("--filter={}: {}", o.filter, e.what()));
  }
  const fs::path folder =
      o.bin.empty() ? fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bench"
                    : fs::path(o.bin);
  const Scratch scratch;
  BenchRun whole{this_machine(), {}};
  std::size_t measured = 0;
  std::vector<std::string> failures;
  for (const Mode& mode : chosen(o)) {
    std::vector<std::string> arguments = {mode.name,
                                          "--shapes",
                                          o.shapes,
                                          "--json",
                                          scratch.file().string(),
                                          fmt::format("--benchmark_repetitions={}", o.repetitions),
                                          fmt::format("--benchmark_min_time={}", o.min_time)};
    if (!o.threads.empty())
      arguments.insert(arguments.end(),
                       {"--threads", fmt::format("{}", fmt::join(o.threads, ","))});
    if (!o.filter.empty()) arguments.push_back("--benchmark_filter=" + o.filter);
    if (o.list) arguments.push_back("--benchmark_list_tests=true");
    if (const int status = run_program(folder / mode.program, arguments); status != 0)
      throw std::runtime_error(fmt::format("{} {} ended with exit status {}; nothing was stored",
                                           mode.program, mode.name, status));
    if (o.list) continue;
    whole.modes.push_back(measured_by(mode, scratch));
    for (const Measurement& m : whole.modes.back().measured)
      if (m.failed) failures.push_back(fmt::format("{}: {}", m.name, *m.failed));
      else ++measured;
  }
  if (o.list) return all_passed;
  if (measured + failures.size() == 0)
    throw UsageError(fmt::format(
        "nothing was measured: no benchmark has a name that --filter={} finds; --list names them",
        o.filter));
  tell("\n{} measured, {} failed\n", measured, failures.size());
  for (const std::string& f : failures) tell("  {}\n", f);
  if (!o.json.empty()) write_file(o.json, to_json(whole).dump(1) + "\n");
  if (!o.store.empty()) tell("store: run {} of {}\n", Store(o.store).append(whole), o.store);
  return failures.empty() ? all_passed : some_failed;
}

// Which benchmarks run, on which sizes, and how often.
void add_measurement(CLI::App& bench, BenchOptions& o) {
  bench.add_option("--threads", o.threads, "Counts of threads, as 1,2")
      ->delimiter(',')
      ->transform(number_in(1, 4096));
  bench.add_option("--shapes", o.shapes, "quick or full")
      ->check(CLI::IsMember({"quick", "full"}))
      ->capture_default_str();
  bench.add_option("--filter", o.filter,
                   "Only benchmarks whose name this regular expression finds; those that are not "
                   "measured leave gaps in the tables");
  bench
      .add_option("--repetitions", o.repetitions,
                  "How often each benchmark is repeated, in random order among those that it is "
                  "compared with; a 95% interval of a median needs at least 6")
      ->transform(number_in(1, 100))
      ->capture_default_str();
  bench.add_option("--min-time", o.min_time, "The shortest time of a repetition, in seconds")
      ->transform(number_in(0.001, 60.0))
      ->capture_default_str();
}

}  // namespace

Command add_bench(CLI::App& app) {
  const auto o = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand(
      "bench",
      "Measure kernels, caches, products, verdicts and generators as fractions of the machine's "
      "limits and as ratios to peers, with intervals; docs/commands/bench.md");
  command->add_option("WHAT", o->modes,
                      fmt::format("Some of {}; all by default", fmt::join(bench_modes(), ", ")));
  add_measurement(*command, *o);
  command->add_flag("--list", o->list, "Name the benchmarks and run nothing");
  command
      ->add_option("--bin", o->bin,
                   "The folder of attention_bench and oracle_bench; the default is beside this "
                   "command's folder")
      ->check(programs());
  command->add_option("--json", o->json, "Write what was measured as JSON")->check(writable());
  command->add_option("--store", o->store, "Append what was measured to this store")
      ->check(appended());
  command->footer(
      "Exit status: 0, 1 a candidate failed, 2 bad usage, or nothing was measured, 3 a benchmark "
      "program failed.\n\nExamples:\n"
      "  assay bench --list\n"
      "  assay bench overhead\n"
      "  assay bench forward --threads 1 --store runs.db\n"
      "  assay bench decode products --filter 'mxfp4|cache' --repetitions 20");
  return {command, [o] { return run(*o); }};
}

}  // namespace assay
