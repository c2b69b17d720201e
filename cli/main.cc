#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <string>

#include "cli/commands.h"
#include "harness/files.h"
#include "harness/kernel_process.h"
#include "harness/suites.h"
#include "problem/parallel.h"

namespace {

// A bare name is a library of this folder, where there is one; the loader would look for it in the system's folders alone.
std::string here_or_as_named(const std::string& library) { return std::filesystem::exists(library) ? std::filesystem::absolute(library).string() : library; }

// What would otherwise be found out when everything is computed. Opens nothing that is there, and leaves nothing behind.
const CLI::Validator writable(
    [](std::string& path) -> std::string {
      if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path) && !std::filesystem::is_directory(path)) return {};  // a pipe, /dev/stdout
      try {
        assay::NewFile probe(path);
        return {};
      } catch (const std::system_error& e) {
        return e.what();
      }
    },
    "FILE");

// With ends that a message can print; ten years are as good as no limit.
const CLI::Range seconds(0.001, 3e8);

}  // namespace

int main(int argc, char** argv) {
  using namespace assay;
  CLI::App app{"Assay proves an attention kernel or a low-bit product right, or shows where it goes wrong."};
  app.set_version_flag("--version", std::string("assay ") + ASSAY_RELEASE);
  app.require_subcommand(1);
  app.footer(
      "Exit status: 0 all passed, 1 some candidate was wrong, 2 bad usage or input (also: nothing was run or\n"
      "compared), 3 the machine or a device failed.\n\nExamples:\n"
      "  assay check --suite smoke\n"
      "  assay check --case 'attention b=1 h=8/2 l=37x53 d=64 dtype=bf16 causal lengths=41 scores=growing'\n"
      "  assay new-kernel mine && cmake -S mine -B mine/build && cmake --build mine/build\n"
      "  assay check --kernel mine/build/libmy_kernel.so --suite plain --html run.html\n"
      "  assay check --help     the options of a command, with examples; docs/commands/ says more");

  auto add_workers = [](CLI::App* command, WorkerOptions& w) {
    w.jobs = hardware_threads();
    w.memory_mib = static_cast<Index>(sysconf(_SC_PHYS_PAGES)) * static_cast<Index>(sysconf(_SC_PAGESIZE)) >> 20;
    command->add_option("--jobs", w.jobs, "Worker processes")->check(CLI::Range(1, 1024))->capture_default_str();
    command->add_option("--timeout", w.timeout_seconds, "Seconds that one case may take, judging it included; beyond them it has failed")->check(seconds)->capture_default_str();
    command->add_flag("--in-process", w.in_process, "Run the cases in this process, one after the other: for debuggers and emulators");
    command->add_option("--memory", w.memory_mib, "Memory of a worker in MiB, all there is by default; 0: no limit")
        ->check(CLI::Range(Index{0}, Index{1} << 30))
        ->capture_default_str();
  };

  auto add_report_files = [](CLI::App* command, ReportFiles& files) {
    command->add_option("--json", files.json, "Write the run as JSON")->check(writable);
    command->add_option("--junit", files.junit, "Write the run as JUnit XML")->check(writable);
    command->add_option("--html", files.html, "Write the run as one HTML page")->check(writable);
    command->add_option("--markdown", files.markdown, "Write a summary of the run as Markdown, as a comment on a pull request")->check(writable);
    command->add_option("--store", files.store, "Append the run to this store, which is made if it is not there; `assay store` reads it")->check(writable);
  };

  auto add_selection = [](CLI::App* command, SelectionOptions& s) {
    auto* suite = command->add_option("--suite", s.suite, fmt::format("One of {}", fmt::join(suite_names(), ", ")));
    auto* lines = command->add_option("--case", s.cases, "A case line (repeatable); `assay notation` explains them");
    auto* file = command->add_option("--cases", s.cases_file, "A file of case lines; a line that begins with # is a comment");
    suite->excludes(lines)->excludes(file);
    command->add_option("--filter", s.filter, "Only cases whose line contains this text");
    command->add_option("--seed", s.seed, "Of the inputs of a suite; a case line has a seed of its own")->capture_default_str();
    command->add_option("--shard", s.shard, "i/n: every n-th case, from the i-th (0-based) on, as 0/4");
  };

  CheckOptions check_options;
  CLI::App* check_command = app.add_subcommand("check", "Judge a candidate on a suite or on cases: a verdict with a proved bound for every element");
  add_selection(check_command, check_options.selection);
  check_command
      ->add_option("--candidate", check_options.candidate,
                   "host, host-undeclared (no contract: a ladder is tried), unfused (the fallback), sdpa (what the dispatcher chooses), device:NAME, lib:PATH or fault:NAME")
      ->capture_default_str();
  check_command
      ->add_option("--device", check_options.device,
                   "Judge the kernels of a device instead: opencl (the first GPU, or else the first device), opencl:TEXT (the first whose platform or device\n"
                   "name contains TEXT) or host. Exit status 3 where there is none")
      ->excludes("--candidate");
  check_command
      ->add_option("--kernel", check_options.library,
                   "Judge a shared library of yours, in a process of its own: include/assay/kernel.h, or `assay new-kernel DIR`, says how it looks")
      ->excludes("--candidate")
      ->excludes("--device");
  check_command->add_option("--time", check_options.time_seconds, "Repeat the suite with new seeds for so many seconds; what no time was left for is counted and not run")
      ->check(seconds);
  check_command->add_option("--max-unsupported", check_options.most_unsupported, "Percent of the cases that may be unsupported; more of them is exit status 1")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  check_command->add_flag("--list", check_options.list, "Print the case lines and run nothing");
  check_command->add_flag("--no-shrink", check_options.no_shrink, "Report failures as they are, without making them smaller");
  add_report_files(check_command, check_options.files);
  check_command->add_option("--with-faults", check_options.files.faults, "With --html: show this score too, which `assay faults --json` wrote")->needs("--html");
  check_command->add_option("--with-fuzz", check_options.files.fuzz, "With --html: show this summary too, which `assay fuzz --json` wrote")->needs("--html");
  check_command->add_option("--standalone", check_options.standalone,
                            "Write the first failing case (shrunk), or the first case, as a C++ file without dependencies; of attention alone")->check(writable);
  const std::map<std::string, Surroundings> surroundings = {{"none", Surroundings::bands}, {"behind", Surroundings::page_behind}, {"before", Surroundings::page_before}};
  const auto add_guard_pages = [&](CLI::App* command, ExecuteOptions& execute) {
    command
        ->add_option("--guard-pages", execute.around,
                     "behind or before: a page that cannot be touched lies there next to every tensor, so that one element read or written beyond it is a crash.\n"
                     "A library always has them behind its tensors")
        ->transform(CLI::CheckedTransformer(surroundings).description("none|behind|before"));
  };
  add_guard_pages(check_command, check_options.workers.execute);
  check_command->add_option("--ball-rows", check_options.workers.execute.ball_rows, "Rows of a case cross-checked in ball arithmetic")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  add_workers(check_command, check_options.workers);
  check_command->footer(
      "Exit status: 0 all passed, 1 a case failed or too many were unsupported, 2 bad usage or input, or nothing was compared,\n"
      "3 the machine or a device failed.\n\nExamples:\n"
      "  assay check --suite smoke --html run.html\n"
      "  assay check --case 'product m=5 n=70 k=100 dtype=bf16 w=nvfp4'\n"
      "  assay check --kernel mine/build/libmy_kernel.so --suite plain --max-unsupported 80\n"
      "  assay check --device opencl --suite tiny");

  RecordOptions record_options;
  CLI::App* record_command = app.add_subcommand("record", "Write cases as tensors, so that they travel to another machine or framework and its answer comes back");
  add_selection(record_command, record_options.selection);
  record_command->add_option("--candidate", record_options.candidate, "Also what this candidate makes of them: host, lib:PATH, fault:NAME, ...");
  record_command->add_option("-o,--output", record_options.file, "The file: NAME.safetensors")->check(writable)->required();
  record_command->footer(
      "Caches and dtype=f64 have no record. Exit status: 0 written, 2 bad usage or input, 3 the file could not be written.\n\nExamples:\n"
      "  assay record --case 'attention b=1 h=4 l=300 d=64 dtype=bf16 causal' -o inputs.safetensors\n"
      "  assay record --suite tiny --candidate host -o answers.safetensors && assay verify answers.safetensors");

  VerifyCommandOptions verify_options;
  verify_options.threads = hardware_threads();
  CLI::App* verify_command = app.add_subcommand("verify", "Judge recorded tensors: inputs and outputs in safetensors files, whoever made them; docs/records.md");
  verify_command->add_option("FILE", verify_options.files, "A file of one or more records")->required();
  verify_command->add_option("--record", verify_options.record, "Only the record of this name");
  verify_command->add_flag("--list", verify_options.list, "Print the lines of the records, and judge nothing");
  verify_command->add_option("--rows", verify_options.rows, "Judge so many seeded rows of each head (of C); 0: all")->check(CLI::Range(Index{0}, Index{1} << 40))->capture_default_str();
  verify_command->add_option("--seed", verify_options.seed, "Of the choice of --rows")->capture_default_str();
  verify_command->add_option("--threads", verify_options.threads, "Threads of the oracle")->check(CLI::Range(1, 1024))->capture_default_str();
  add_report_files(verify_command, verify_options.files_to_write);
  verify_command->footer(
      "Exit status: 0 all passed, 1 a record failed, 2 a file or record cannot be read, or nothing was compared, 3 the machine failed.\n\nExamples:\n"
      "  assay record --suite tiny --candidate host -o answers.safetensors\n"
      "  assay verify answers.safetensors --list\n"
      "  assay verify answers.safetensors --record 00 --html run.html\n"
      "  assay verify answers.safetensors --rows 16 --seed 7");

  TraceOptions trace_options;
  std::string traced_library;
  CLI::App* trace_command = app.add_subcommand("trace", "Follow one case stage by stage: the first stage, tile, row and lane that leaves its enclosure; docs/trace.md");
  trace_command->add_option("CASE", trace_options.line, "A case line, as `assay check` prints it")->required();
  trace_command->add_option("--candidate", trace_options.candidate, "host, fault:NAME or lib:PATH (of a library that calls the probe)")->capture_default_str();
  trace_command->add_option("--kernel", traced_library, "A shared library of yours that calls the probe")->excludes("--candidate");
  trace_command->add_option("--timeout", trace_options.timeout_seconds, "Seconds that it may take; beyond them exit status 1")->check(CLI::Range(1, 86400))->capture_default_str();
  trace_command->footer(
      "At most 4,194,304 (row, key) pairs over all heads. Exit status: 0 every stage and output holds, 1 a stage or an output is wrong,\n"
      "2 bad usage, or nothing could be compared.\n\nExamples:\n"
      "  assay trace 'attention b=1 h=1 l=70x200 d=16'\n"
      "  assay trace --candidate fault:row-max-arguments-swapped 'attention b=1 h=1 l=70x200 d=16'\n"
      "  assay trace --kernel mine/build/libmy_kernel.so 'attention b=1 h=1 l=9x13 d=8 causal'");

  StoreOptions store_options;
  CLI::App* store_command = app.add_subcommand("store", "Runs over time, in one SQLite file: list them, export and import them");
  store_command->add_option("STORE", store_options.file, "The file that --store appends to")->required();
  store_command->add_option("--export", store_options.export_to, "Write all runs to this file as JSON, a line each")->check(writable);
  store_command->add_option("--import", store_options.import, "Append the runs of such a file: all or none");
  store_command->add_option("--dashboard", store_options.dashboard, "Write accuracy and speed over time as one HTML page")->check(writable);
  store_command->add_option("--benchmarks", store_options.benchmarks, "Append what Google Benchmark wrote with --benchmark_out_format=json");
  store_command->footer(
      "Without an option the runs are listed. Exit status: 0, 2 a file is no store, is damaged or cannot be read, 3 one cannot be written.\n\nExamples:\n"
      "  assay check --suite tiny --store runs.db\n"
      "  assay store runs.db\n"
      "  assay store runs.db --dashboard runs.html\n"
      "  assay store runs.db --export runs.jsonl && assay store copy.db --import runs.jsonl");

  CompareOptions compare_options;
  CLI::App* compare_command = app.add_subcommand("compare", "Two runs of a store: how much nearer to the bounds, how much slower, with intervals; exit status 1 beyond the margins");
  compare_command->add_option("A", compare_options.a, "STORE#RUN, as runs.db#3")->required();
  compare_command->add_option("B", compare_options.b, "Likewise; ratios are B over A")->required();
  compare_command->add_option("--accuracy-margin", compare_options.accuracy_margin, "Percent that the largest error/bound may grow")->check(CLI::Range(0.0, 1e6))->capture_default_str();
  compare_command->add_option("--time-margin", compare_options.time_margin, "Percent that the candidate may slow down")->check(CLI::Range(0.0, 1e6))->capture_default_str();
  compare_command->add_option("--markdown", compare_options.markdown, "Write the comparison as Markdown, as a comment on a pull request")->check(writable);
  compare_command->footer(
      "Cases are matched by their line, so both runs need the same --seed. Exit status: 0 within the margins, 1 a whole interval lies\n"
      "beyond its margin or a case fails that did not, 2 bad usage, or no case in common.\n\nExamples:\n"
      "  assay check --suite tiny --store runs.db && assay check --suite tiny --candidate unfused --store runs.db\n"
      "  assay compare runs.db#1 runs.db#2\n"
      "  assay compare runs.db#1 runs.db#2 --accuracy-margin 0 --time-margin 50");

  FaultsOptions faults_options;
  CLI::App* faults_command =
      app.add_subcommand("faults", "Plant every known bug in the kernel and see which case kills it; then see that the kernel itself passes");
  faults_command->add_option("--suite", faults_options.suite, "The suite that has to kill them, instead of each fault's own; names as for `assay check --suite`");
  faults_command->add_option("--only", faults_options.only, "One fault by name, as --list prints it");
  faults_command->add_option("--seed", faults_options.seed, "Of the inputs")->capture_default_str();
  faults_command->add_option("--json", faults_options.json, "Write the score as JSON")->check(writable);
  faults_command->add_option("--html", faults_options.html, "Write the score as one HTML page")->check(writable);
  faults_command->add_option("--store", faults_options.store, "Append the score to this store")->check(writable);
  faults_command->add_flag("--list", faults_options.list, "Print name, class, suite and meaning of each fault, and run nothing");
  add_workers(faults_command, faults_options.workers);
  faults_command->footer(
      "Exit status: 0 every fault was killed and the kernels without one pass, 1 one survived or a false alarm, 2 bad usage, or nothing\n"
      "to hunt, 3 the machine failed.\n\nExamples:\n"
      "  assay faults --list\n"
      "  assay faults --only causal-off-by-one --suite plain\n"
      "  assay faults --suite smoke --json score.json");

  FuzzCommandOptions fuzz_options;
  fuzz_options.jobs.jobs = hardware_threads();
  CLI::App* fuzz_sub = app.add_subcommand("fuzz", "Long fuzz jobs over libFuzzer targets: budget shared by who still finds something, killed and gone on with at will; docs/fuzzing.md");
  fuzz_sub->add_option("TARGET", fuzz_options.jobs.targets, "Only these; all by default");
  fuzz_sub->add_option("--bin", fuzz_options.jobs.binaries, "Where the targets lie (TARGET_fuzz), as the presets fuzz and fuzz-fast build them")->required();
  fuzz_sub->add_option("--work", fuzz_options.jobs.work, "Folder of corpora, findings and state; the same folder goes on where it was")->required();
  fuzz_sub->add_option("--seeds", fuzz_options.jobs.seeds, "A folder of folders of inputs, by target");
  fuzz_sub->add_option("--keep", fuzz_options.jobs.keep, "Where minimised inputs of findings go, by target, to be replayed as tests; else WORK/regressions");
  fuzz_sub->add_option("--hours", fuzz_options.hours, "Altogether, earlier runs in the same folder included")->check(CLI::Range(1e-5, 1e5))->capture_default_str();
  fuzz_sub->add_option("--jobs", fuzz_options.jobs.jobs, "Processes at a time")->check(CLI::Range(1, 1024))->capture_default_str();
  fuzz_sub->add_option("--slice", fuzz_options.jobs.slice, "Seconds that a target gets at a time")->check(CLI::Range(2.0, 86400.0))->capture_default_str();
  fuzz_sub->add_option("--corpus-mib", fuzz_options.jobs.corpus_mib, "Of a target; a larger corpus is merged to what adds coverage")->check(CLI::Range(1, 1 << 20))->capture_default_str();
  fuzz_sub->add_option("--memory", fuzz_options.jobs.memory_mib, "MiB of a process")->check(CLI::Range(64, 1 << 20))->capture_default_str();
  fuzz_sub->add_option("--seed", fuzz_options.jobs.seed, "Of the fuzzers")->capture_default_str();
  fuzz_sub->add_flag("--faults", fuzz_options.faults, "Instead: each planted fault against its target from an empty corpus, and how long it takes to be found");
  fuzz_sub->add_option("--fault-seconds", fuzz_options.fault_seconds, "With --faults: seconds that each is looked for")->check(seconds)->capture_default_str();
  fuzz_sub->add_option("--only", fuzz_options.only, "With --faults: one fault by name");
  fuzz_sub->add_option("--json", fuzz_options.json, "Write the summary as JSON")->check(writable);
  fuzz_sub->add_option("--html", fuzz_options.html, "Write the summary as one HTML page")->check(writable);
  fuzz_sub->add_option("--store", fuzz_options.store, "Append the summary to this store")->check(writable);
  fuzz_sub->footer(
      "`./dev fuzz` builds the targets and fills in --bin, --work, --seeds and --keep. Exit status: 0 no findings, 1 findings (or, with\n"
      "--faults, one that was not found), 2 bad usage, 3 the machine failed.\n\nExamples:\n"
      "  ./dev fuzz --hours 8 --jobs 2\n"
      "  ./dev fuzz --hours 1 forward cache\n"
      "  assay fuzz --bin build/fuzz/fuzz --work build/fuzzing --seeds fuzz/corpus --hours 0.1 forward\n"
      "  assay fuzz --bin build/fuzz-fast/fuzz --work build/fuzzing --faults --fault-seconds 60 --only causal-off-by-one");

  BenchOptions bench_options;
  CLI::App* bench_command = app.add_subcommand("bench", "Measure kernels, caches, products, verdicts and generators: fractions of the machine's limits, ratios to peers with intervals; docs/commands/bench.md");
  bench_command->add_option("WHAT", bench_options.modes, fmt::format("Some of {}; all by default", fmt::join(bench_modes(), ", ")));
  bench_command->add_option("--threads", bench_options.threads, "Counts of threads, as 1,2")->delimiter(',')->check(CLI::Range(1, 4096));
  bench_command->add_option("--shapes", bench_options.shapes, "quick or full")->check(CLI::IsMember({"quick", "full"}))->capture_default_str();
  bench_command->add_option("--filter", bench_options.filter, "Only benchmarks whose name this regular expression finds; those that are not measured leave gaps in the tables");
  bench_command->add_option("--repetitions", bench_options.repetitions, "Of each benchmark, in random order among those it is compared with; 6 are the fewest of a 95% interval of a median")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  bench_command->add_option("--min-time", bench_options.min_time, "Seconds of a repetition, at least")->check(CLI::Range(0.001, 60.0))->capture_default_str();
  bench_command->add_flag("--list", bench_options.list, "Name the benchmarks and run nothing");
  bench_command->add_option("--bin", bench_options.bin, "Where attention_bench and oracle_bench lie; beside this command's folder by default");
  bench_command->add_option("--json", bench_options.json, "Write what was measured as JSON")->check(writable);
  bench_command->add_option("--store", bench_options.store, "Append what was measured to this store")->check(writable);
  bench_command->footer(
      "Exit status: 0, 1 a candidate failed, 2 bad usage, or nothing was measured, 3 a benchmark program failed.\n\nExamples:\n"
      "  assay bench --list\n"
      "  assay bench overhead\n"
      "  assay bench forward --threads 1 --store runs.db\n"
      "  assay bench decode products --filter 'mxfp4|cache' --repetitions 20");

  std::string project_folder;
  CLI::App* new_kernel_command =
      app.add_subcommand("new-kernel", "Write a CMake project of a kernel library, which builds and passes: put your kernel in the place of its");
  new_kernel_command->add_option("DIR", project_folder, "A folder that is not there yet, or empty")->required();
  new_kernel_command->footer(
      "Exit status: 0 written, 2 the folder holds something, or cannot be made.\n\nExamples:\n"
      "  assay new-kernel mine && cmake -S mine -B mine/build && cmake --build mine/build\n"
      "  assay check --kernel mine/build/libmy_kernel.so --suite plain");

  CLI::App* notation = app.add_subcommand("notation", "Explain the one-line case notation, field by field");
  notation->footer(
      "Examples:\n"
      "  assay notation\n"
      "  assay check --suite tiny --list     lines of that notation");

  std::string served_library;
  std::size_t served_base = 0;
  CLI::App* server = app.add_subcommand("serve-kernel", "")->group("");
  server->add_option("library", served_library)->required();
  server->add_option("base", served_base)->required();

  CLI::App* worker = app.add_subcommand("worker", "")->group("");
  Index worker_memory = 0;
  ExecuteOptions execute;
  bool no_power = false, no_relations = false;
  worker->add_option("--memory", worker_memory);
  worker->add_option("--ball-rows", execute.ball_rows);
  add_guard_pages(worker, execute);
  worker->add_option("--oracle-threads", execute.oracle_threads);
  worker->add_flag("--pictures", execute.pictures);
  worker->add_flag("--no-power", no_power);
  worker->add_flag("--no-relations", no_relations);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? all_passed : bad_usage;
  }
  if (*worker) {
    execute.power = !no_power;
    execute.relations = !no_relations;
    return worker_main(worker_memory, execute);
  }
  if (*server) return KernelProcess::serve(served_library, served_base);
  if (*notation) {
    fmt::print("{}", case_help());
    return all_passed;
  }
  if (*new_kernel_command) return new_kernel(project_folder);
  if (*record_command) return record(record_options);
  if (*verify_command) return verify(verify_options);
  if (*trace_command) {
    if (!traced_library.empty()) trace_options.candidate = "lib:" + here_or_as_named(traced_library);
    return trace(trace_options);
  }
  if (*store_command) return store(store_options);
  if (*compare_command) return compare(compare_options);
  if (*faults_command) return faults(faults_options);
  if (*bench_command) return bench(bench_options);
  if (*fuzz_sub) return fuzz_command(fuzz_options);
  if (!check_options.device.empty()) check_options.candidate = "device:" + check_options.device;
  if (!check_options.library.empty()) check_options.candidate = "lib:" + here_or_as_named(check_options.library);
  // Drivers of devices reserve far more addresses than they use.
  if (check_options.candidate.starts_with("device:") && check_command->count("--memory") == 0) check_options.workers.memory_mib = 0;
  return check(check_options);
}
