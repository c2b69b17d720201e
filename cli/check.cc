// assay check.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/run_report.h"
#include "cli/selection.h"
#include "harness/files.h"
#include "harness/shrink.h"
#include "harness/standalone.h"

namespace assay {
namespace {

struct CheckOptions {
  SelectionOptions selection;
  std::string candidate = "host";
  std::string device;             // instead of a candidate: device:NAME
  std::string library;            // likewise: lib:PATH
  double time_seconds = 0;        // repeat with new seeds until then; 0: once
  double most_unsupported = 100;  // percent of the cases
  bool list = false;
  bool no_shrink = false;
  ReportFiles files;
  std::string standalone;
  WorkerOptions workers;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// Follows one failing case down; every step runs in a worker, for a minute at most.
std::string shrink_line(const Json& failed, const WorkerOptions& options) {
  const auto deadline = Clock::now() + std::chrono::seconds(60);
  WorkerOptions quick = options;
  quick.jobs = 1;
  quick.timeout_seconds = std::min(options.timeout_seconds, 20.0);
  quick.execute.power = false;
  auto fails = [&](const Case& c) {
    bool bad = false;
    run_in_workers({{print_case(c), failed["candidate"]}}, quick, [&](std::size_t, Json r) {
      bad = r["outcome"] == "fail";
      return true;
    });
    return bad;
  };
  return print_case(shrink(parse_case(failed["case"].get<std::string>()), fails, [&] { return Clock::now() < deadline; }));
}

// For a page: what is worth drawing is run once more.
void add_pictures(Json& results, const WorkerOptions& options) {
  const std::vector<std::size_t> chosen = worth_drawing(results);
  std::vector<WorkItem> items;
  for (const std::size_t k : chosen) items.push_back({results[k]["case"], results[k]["candidate"]});
  WorkerOptions drawing = options;
  drawing.execute.pictures = true;
  drawing.execute.power = drawing.execute.relations = false;
  run_in_workers(items, drawing, [&](std::size_t item, Json r) {
    take_pictures(results[chosen[item]], r);
    return true;
  });
}

int run(const CheckOptions& o) {
  const auto start = Clock::now();
  const Json sections = sections_of_page(o.files);
  make_candidate(o.candidate);  // an unknown name is an error before anything runs
  Selection selection = select_cases(o.selection, o.selection.seed);
  if (o.list) {
    for (const Case& c : selection.cases) fmt::print("{}\n", print_case(c));
    return all_passed;
  }
  for (const std::string& note : selection.notes) fmt::print("{}\n", note);

  Json results = Json::array();
  std::size_t not_run = 0, rounds = 0;
  std::uint64_t seed = o.selection.seed;
  do {
    if (rounds > 0) selection = select_cases(o.selection, seed += 1000003);
    ++rounds;
    std::vector<WorkItem> items;
    for (const Case& c : selection.cases) items.push_back({print_case(c), o.candidate});
    Progress progress(selection.title, items.size());
    std::vector<Json> round(items.size());
    std::size_t finished = 0;
    run_in_workers(items, o.workers, [&](std::size_t k, Json r) {
      if (r["outcome"] == "fail" || r["outcome"] == "error")
        progress.say(fmt::format("{}: {}\n  {}", r["outcome"].get<std::string>(), r["reason"].get<std::string>(), items[k].line));
      progress.advance(items[k].line);
      round[k] = std::move(r);
      ++finished;
      return o.time_seconds == 0 || seconds_since(start) < o.time_seconds;
    });
    not_run += items.size() - finished;
    for (Json& r : round)
      if (!r.is_null()) results.push_back(std::move(r));
  } while (o.time_seconds > 0 && seconds_since(start) < o.time_seconds);

  std::size_t shrunk = 0;
  for (Json& r : results)
    // A minute each: the first three tell most of what there is to tell.
    if (r["outcome"] == "fail" && !o.no_shrink && shrunk < 3) {
      ++shrunk;
      fmt::print(stderr, "shrinking: {}\n", r["case"].get<std::string>());
      r["shrunk"] = shrink_line(r, o.workers);
      r["reproduce"] = check_command(o.candidate, r["shrunk"], o.workers.execute.around);
    }
  if (!o.files.html.empty()) add_pictures(results, o.workers);
  const int status = report_run({.title = selection.title,
                                 .candidate = o.candidate,
                                 .seed = o.selection.seed,
                                 .not_run = not_run,
                                 .seconds = seconds_since(start),
                                 .most_unsupported = o.most_unsupported,
                                 .files = o.files,
                                 .sections = sections},
                                results);
  if (!o.standalone.empty()) {
    // The first failure that can stand alone, or the first case.
    const auto line = [](const Json& r) { return r.value("shrunk", r["case"].get<std::string>()); };
    const auto can = [&](const Json& r) { return !has_no_standalone(parse_case(line(r))); };
    auto chosen = std::ranges::find_if(results, [&](const Json& r) { return r["outcome"] == "fail" && can(r); });
    if (chosen == results.end()) chosen = std::ranges::find_if(results, can);
    if (chosen == results.end()) throw UsageError(fmt::format("--standalone={}: nothing was written: {}", o.standalone, *has_no_standalone(parse_case(line(results[0])))));
    write_file(o.standalone, standalone_program(parse_case(line(*chosen))));
    fmt::print("standalone program: {}\n", o.standalone);
  }
  return status;
}

void add_candidates(CLI::App& check, CheckOptions& o) {
  check
      .add_option("--candidate", o.candidate,
                  "host, host-undeclared (no contract: a ladder is tried), unfused (the fallback), "
                  "sdpa (what the dispatcher chooses), device:NAME, lib:PATH or fault:NAME")
      ->capture_default_str();
  check
      .add_option("--device", o.device,
                  "Judge the kernels of a device instead: opencl (the first GPU, or else the first "
                  "device), opencl:TEXT (the first whose platform or device\n"
                  "name contains TEXT) or host. Exit status 3 where there is none")
      ->excludes("--candidate");
  check
      .add_option("--kernel", o.library,
                  "Judge a shared library of yours, in a process of its own: "
                  "include/assay/kernel.h, or `assay new-kernel DIR`, says how it looks")
      ->excludes("--candidate")
      ->excludes("--device");
}

void add_extent(CLI::App& check, CheckOptions& o) {
  check
      .add_option("--time", o.time_seconds,
                  "Repeat the suite with new seeds for so many seconds; what no time was left for "
                  "is counted and not run")
      ->transform(seconds_number());
  check
      .add_option("--max-unsupported", o.most_unsupported,
                  "Percent of the cases that may be unsupported; more of them is exit status 1")
      ->transform(number_in(0.0, 100.0))
      ->capture_default_str();
  check.add_flag("--list", o.list, "Print the case lines and run nothing");
  check.add_flag("--no-shrink", o.no_shrink,
                 "Report failures as they are, without making them smaller");
}

void add_outputs(CLI::App& check, CheckOptions& o) {
  add_report_files(check, o.files);
  check
      .add_option("--with-faults", o.files.faults,
                  "With --html: show this score too, which `assay faults --json` wrote")
      ->needs("--html");
  check
      .add_option("--with-fuzz", o.files.fuzz,
                  "With --html: show this summary too, which `assay fuzz --json` wrote")
      ->needs("--html");
  check
      .add_option("--standalone", o.standalone,
                  "Write the first failing case (shrunk), or the first case, as a C++ file without "
                  "dependencies; of attention alone")
      ->check(writable());
}

int check_as_asked(const CLI::App& check, CheckOptions& o) {
  if (!o.device.empty()) o.candidate = "device:" + o.device;
  if (!o.library.empty()) o.candidate = candidate_of_library(o.library);
  // Drivers of devices reserve far more addresses than they use.
  if (o.candidate.starts_with("device:") && check.count("--memory") == 0) o.workers.memory_mib = 0;
  return run(o);
}

}  // namespace

Command add_check(CLI::App& app) {
  const auto o = std::make_shared<CheckOptions>();
  CLI::App* check = app.add_subcommand(
      "check",
      "Judge a candidate on a suite or on cases: a verdict with a proved bound for every element");
  add_selection(*check, o->selection);
  add_candidates(*check, *o);
  add_extent(*check, *o);
  add_outputs(*check, *o);
  add_guard_pages(*check, o->workers.execute);
  check
      ->add_option("--ball-rows", o->workers.execute.ball_rows,
                   "Rows of a case cross-checked in ball arithmetic")
      ->transform(number_in(0, 1 << 20))
      ->capture_default_str();
  add_workers(*check, o->workers);
  check->footer(
      "Exit status: 0 all passed, 1 a case failed or too many were unsupported, 2 bad usage or "
      "input, or nothing was compared,\n"
      "3 the machine or a device failed.\n\nExamples:\n"
      "  assay check --suite smoke --html run.html\n"
      "  assay check --case 'product m=5 n=70 k=100 dtype=bf16 w=nvfp4'\n"
      "  assay check --kernel mine/build/libmy_kernel.so --suite plain --max-unsupported 80\n"
      "  assay check --device opencl --suite tiny");
  return {check, [check, o] { return check_as_asked(*check, *o); }};
}

}  // namespace assay
