// The command assay check.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <utility>
#include <vector>

#include "cli/check_definition.h"
#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/run_report.h"
#include "cli/selection.h"
#include "cli/tell.h"
#include "cli/time_limit.h"
#include "harness/files.h"
#include "harness/cases/shrink.h"
#include "harness/records/standalone.h"
#include "harness/results/merge_shards.h"
#include "harness/results/schema.h"
#include "harness/results/told_outcome.h"
#include "problem/clock.h"

namespace assay {
namespace {

struct CheckOptions {
  SelectionOptions selection;
  std::string candidate = "host";
  std::string device;            // it takes the place of a candidate, as device:NAME
  std::string library;           // it takes the place of a candidate, as lib:PATH
  std::string python;            // it takes the place of a candidate, as python:FILE::FUNCTION
  DefinitionOptions definition;  // it takes the place of a candidate and of cases
  double time_seconds = 0;       // repeat with new seeds for that long; 0: run once
  double most_unsupported = 90;  // the most unsupported cases that are allowed, in percent
  bool stop_at_first_failure = false;
  bool list = false;
  bool no_shrink = false;
  ConventionOptions conventions;
  bool explain = false;
  ReportFiles files;
  std::string standalone;
  WorkerOptions workers;
};

// Shrinks one failing case, and finds the command that reproduces the small one. Every step runs in
// a worker, for a minute at most.
void shrink_result(CaseResult& failed, const WorkerOptions& options) {
  const auto deadline = seconds_from_now(60);
  WorkerOptions quick = options;
  quick.jobs = 1;
  quick.timeout_seconds = std::min(options.timeout_seconds, 20.0);
  quick.execute.power = quick.execute.diagnosis = false;
  if (quick.execute.state_of_every > 0) quick.execute.state_of_every = 1;
  const auto in_time = [&] { return Clock::now() < deadline; };
  // The steps from one case go to one worker, because a candidate may take seconds to start.
  const FirstFailing first_failing = [&](const std::vector<Case>& steps) {
    std::vector<WorkItem> items;
    for (const Case& c : steps) items.push_back({print_case(c), failed.candidate});
    std::optional<std::size_t> found;
    run_in_workers(items, quick, [&](std::size_t k, const CaseResult& r) {
      if (r.outcome == Outcome::fail) {
        found = k;
        failed.reproduce = r.reproduce;
      }
      return !found && in_time();
    });
    return found;
  };
  failed.shrunk = print_case(shrink(parse_case(failed.line), first_failing, in_time));
}

// A page draws pictures of some cases, which run once more for that.
void add_pictures(std::vector<CaseResult>& results, const WorkerOptions& options) {
  const std::vector<std::size_t> chosen = worth_drawing(results);
  std::vector<WorkItem> items;
  for (const std::size_t k : chosen) items.push_back({results[k].line, results[k].candidate});
  WorkerOptions drawing = options;
  drawing.execute.pictures = true;
  drawing.execute.power = drawing.execute.relations = false;
  run_in_workers(items, drawing, [&](std::size_t item, const CaseResult& r) {
    take_pictures(results[chosen[item]], r);
    return true;
  });
}

// A library is asked what it supports, which may not take longer than a case.
Selection asked_selection(const CheckOptions& o, std::uint64_t seed, const Features& has) {
  const TimeLimit limit("asking what " + o.candidate + " supports", o.workers.timeout_seconds,
                        bad_usage);
  Selection selection = select_cases(o.selection, seed, has);
  for (Case& c : selection.cases)
    if (c.operation != Operation::product)
      c.conventions = c.conventions.over(o.conventions.accepted);
  return selection;
}

struct Round {
  std::vector<CaseResult> results;
  std::size_t not_run = 0;  // for lack of time, or after the first failure
  bool stopped = false;     // after the first failure
};

template <class InTime>
Round run_round(const CheckOptions& o, const Selection& selection, const InTime& in_time) {
  std::vector<WorkItem> items;
  for (const Case& c : selection.cases) items.push_back({print_case(c), o.candidate});
  Progress progress(selection.title, items.size());
  std::vector<std::optional<CaseResult>> answers(items.size());
  Round round;
  run_in_workers(items, o.workers, [&](std::size_t k, CaseResult r) {
    if (r.outcome == Outcome::fail || r.outcome == Outcome::error)
      progress.say(told_in("{}\n  {}", told_outcome(r), items[k].line));
    progress.advance(items[k].line);
    round.stopped = round.stopped || (o.stop_at_first_failure && r.outcome == Outcome::fail);
    answers[k] = std::move(r);
    return !round.stopped && in_time();
  });
  for (std::optional<CaseResult>& r : answers)
    if (r) round.results.push_back(std::move(*r));
  round.not_run = items.size() - round.results.size();
  return round;
}

// About so many cases of a run are asked what the candidate keeps from one call to the next.
constexpr std::size_t asked_of_state = 24;

// Runs the cases that were asked of state, and that passed, once more, in the other order and in
// one process. A case that fails then takes the place of its result. Returns the number of cases
// that were asked.
std::size_t ask_of_state(const CheckOptions& o, std::vector<CaseResult>& results) {
  std::vector<std::size_t> chosen;
  for (std::size_t k = results.size(); k-- > 0;)
    if (passed(results[k].outcome) &&
        is_asked_of_state(results[k].line, o.workers.execute.state_of_every))
      chosen.push_back(k);
  WorkerOptions again = o.workers;
  again.jobs = 1;
  again.execute.power = again.execute.relations = false;
  std::vector<WorkItem> items;
  for (const std::size_t k : chosen) items.push_back({results[k].line, results[k].candidate});
  if (items.size() > 1)
    run_in_workers(items, again, [&](std::size_t item, CaseResult r) {
      if (!passed(r.outcome)) results[chosen[item]] = std::move(r);
      return true;
    });
  return items.size() > 1 ? items.size() : 0;
}

// Each failure takes a minute at most. The first three of a run tell most of what failures can
// tell.
void shrink_failures(std::vector<CaseResult>& results, const CheckOptions& o, int& shrunk) {
  for (CaseResult& r : results) {
    if (r.outcome != Outcome::fail || shrunk == 3) continue;
    ++shrunk;
    tell(stderr, "shrinking: {}\n", r.line);
    shrink_result(r, o.workers);
  }
}

// Runs the selection. If a time is given, repeats it with new seeds until the time is over.
void run_selection(const CheckOptions& o, Selection selection, const Features& has,
                   Clock::time_point start, RunReport& report) {
  std::uint64_t seed = o.selection.seed;
  int shrunk = 0;
  std::size_t asked = 0, asked_of = 0;
  const auto in_time = [&] { return o.time_seconds == 0 || seconds_since(start) < o.time_seconds; };
  for (bool first = true;; first = false) {
    Round round = run_round(o, selection, in_time);
    if (o.workers.execute.state_of_every > 0 && round.results.size() > 1 && round.not_run == 0) {
      asked += ask_of_state(o, round.results);
      asked_of += round.results.size();
      round.stopped = o.stop_at_first_failure && count_outcomes(round.results).fail > 0;
      report.facts.state = fmt::format(
          "state between calls: asked of {} of {}, which their lines choose, and run again in the "
          "other order",
          asked, counted(asked_of, "case"));
    }
    if (!o.no_shrink) shrink_failures(round.results, o, shrunk);
    // With the next seeds, the suite goes on as long as there is time.
    if (first) report.facts.not_run = round.not_run;
    if (round.stopped) report.facts.why_not_run = "after the first failure";
    report.add(std::move(round.results));
    report.facts.seconds = seconds_since(start);
    if (round.stopped || o.time_seconds == 0 || !in_time()) return;
    report.store_part();
    selection = asked_selection(o, seed += 1000003, has);
  }
}

// The first failure that can be written as a standalone file, or else the first case that can.
// Throws UsageError if no case can.
Case standalone_case(const std::vector<CaseResult>& results, const std::string& file) {
  std::optional<Case> chosen;
  std::optional<std::string> why;
  for (const CaseResult& r : results) {
    const Case c = parse_case(r.shrunk.empty() ? r.line : r.shrunk);
    const std::optional<std::string> cannot = has_no_standalone(c);
    if (!why) why = cannot;
    if (cannot) continue;
    if (r.outcome == Outcome::fail) return c;
    if (!chosen) chosen = c;
  }
  if (!chosen)
    throw UsageError(fmt::format("--standalone={}: nothing was written: {}", file, *why));
  return *chosen;
}

// An unknown name, or a library or device that does not open, is an error before anything runs.
std::unique_ptr<Candidate> open_candidate(CheckOptions& o) {
  o.workers.library = std::make_shared<LibraryFile>(o.candidate);
  const TimeLimit limit("loading " + o.candidate, o.workers.timeout_seconds, bad_usage);
  return make_candidate(o.candidate);
}

std::size_t pieces(CheckOptions& o) {
  if (!o.definition.definition.empty())
    throw UsageError("--definition: its workloads cannot be divided");
  const std::unique_ptr<Candidate> candidate = open_candidate(o);  // which is asked what it does
  return asked_selection(o, o.selection.seed, drawn_features(*candidate)).cases.size();
}

int run(CheckOptions& o) {
  const auto start = Clock::now();
  const PageSections sections = sections_of_page(o.files);
  std::unique_ptr<Candidate> candidate = open_candidate(o);
  const Features has = drawn_features(*candidate);
  const std::vector<std::string> remarks = candidate->remarks();
  if (!candidate->guest()) candidate.reset();  // it may hold a device
  const Selection selection = asked_selection(o, o.selection.seed, has);
  if (o.list) {
    for (const Case& c : selection.cases) tell("{}\n", print_case(c));
    return all_passed;
  }
  for (const std::string& note : selection.notes) tell("{}\n", note);

  if (o.selection.suite == "refusals") o.workers.execute.refusals = true;
  const bool keeps = o.candidate.starts_with("lib:") || o.candidate.starts_with("python:");
  if (keeps)
    o.workers.execute.state_of_every =
        static_cast<int>((selection.cases.size() + asked_of_state - 1) / asked_of_state);
  RunReport report({.title = selection.title,
                    .candidate = o.candidate,
                    .seed = o.selection.seed,
                    .left_out = selection.left_out,
                    .share_drawn = selection.share_drawn,
                    .remarks = remarks,
                    .goes_on = o.time_seconds > 0,
                    .required = o.workers.execute.required,
                    .most_unsupported = o.most_unsupported,
                    .conventions = o.conventions.rule,
                    .explain = o.explain,
                    .files = o.files,
                    .sections = sections});
  run_selection(o, selection, has, start, report);
  if (!o.files.html.empty()) add_pictures(report.tally.kept, o.workers);
  report.facts.seconds = seconds_since(start);
  const int status = report.finish();
  if (!o.standalone.empty()) {
    write_file(o.standalone, standalone_program(standalone_case(report.tally.kept, o.standalone)));
    tell("standalone program: {}\n", o.standalone);
  }
  return status;
}

// Reports the results of the shards of a sweep, which shrank nothing.
int merge(CheckOptions& o, const std::vector<Json>& shards, const Machine& machine) {
  const PageSections sections = sections_of_page(o.files);
  std::vector<Run> runs;
  for (const Json& shard : shards) runs.push_back(from_json<Run>(shard, "run"));
  Run whole = merged(runs);
  o.workers.library = std::make_shared<LibraryFile>(o.candidate);
  int shrunk = 0;
  if (!o.no_shrink) shrink_failures(whole.results, o, shrunk);
  if (!o.files.html.empty()) add_pictures(whole.results, o.workers);
  RunReport report({.title = whole.suite,
                    .candidate = whole.candidate,
                    .seed = whole.seed,
                    .seconds = whole.summary.seconds,
                    .most_unsupported = o.most_unsupported,
                    .explain = o.explain,
                    .machine = machine,
                    .files = o.files,
                    .sections = sections});
  report.add(std::move(whole.results));
  return report.finish();
}

void add_candidates(CLI::App& check, CheckOptions& o) {
  check
      .add_option("--candidate", o.candidate,
                  "What is judged: host, host-undeclared (declares no contract, so a ladder is "
                  "tried), unfused (the fallback), sdpa (what the dispatcher chooses), "
                  "device:NAME, lib:PATH, python:FILE::FUNCTION or fault:NAME")
      ->check(judged())
      ->capture_default_str();
  check
      .add_option("--device", o.device,
                  "Judge the kernels of a device instead: opencl (the first GPU, or else the first "
                  "device), opencl:TEXT (the first whose platform or device\n"
                  "name contains TEXT) or host. Exit status 3 where there is none")
      ->excludes("--candidate");
  check
      .add_option("--kernel", o.library,
                  "Judge a shared library of yours, in a process of its own; "
                  "include/assay/kernel.h and `assay new-kernel DIR` show how to write one")
      ->check(read_only())
      ->excludes("--candidate")
      ->excludes("--device");
  check
      .add_option("--python", o.python,
                  "Judge a Python function, as FILE.py::FUNCTION, in a process of its own; with "
                  "--device its inputs lie there (cpu, cuda, cuda:1).\ndocs/python.md shows how to "
                  "write one; the environment variable ASSAY_PYTHON names another python3")
      ->check(judged())
      ->excludes("--candidate")
      ->excludes("--kernel");
}

void add_extent(CLI::App& check, CheckOptions& o) {
  check
      .add_option("--time", o.time_seconds,
                  "Repeat the suite with new seeds for so many seconds; cases that the time is too "
                  "short for are counted and not run")
      ->transform(seconds_number());
  check
      .add_option(
          "--max-unsupported", o.most_unsupported,
          "Percent of the cases that may be unsupported; if there are more, the exit status is 1. "
          "What a drawn suite has\nless than the whole one counts too")
      ->transform(number_in(0.0, 100.0))
      ->capture_default_str();
  check.add_flag("--stop-at-first-failure", o.stop_at_first_failure,
                 "End the run when a case has failed; the cases that are left are counted and not "
                 "run");
  check
      .add_option(
          "--repeat", o.workers.execute.repeat,
          "How often each call of a case runs; all runs must agree bit for bit. A case that "
          "fails so is not deterministic, and the reason counts the runs")
      ->transform(number_in(2, 10000))
      ->capture_default_str();
  check.add_flag(
      "--refusals", o.workers.execute.refusals,
      "Make calls of a library that no kernel can answer, too (shapes that do not match, "
      "lengths beyond the keys,\nnull pointers): it must refuse them and write nothing. "
      "--suite refusals does so");
  add_required(check, o.workers.execute.required);
  check.add_flag("--list", o.list, "Print the case lines and run nothing");
  check.add_flag("--no-shrink", o.no_shrink,
                 "Report failures as they are, without making them smaller");
}

void add_outputs(CLI::App& check, CheckOptions& o) {
  add_explain(check, o.explain);
  add_report_files(check, o.files);
  check
      .add_option("--with-faults", o.files.faults,
                  "With --html: show this score too, which `assay faults --json` wrote")
      ->check(read_only())
      ->needs("--html");
  check
      .add_option("--with-fuzz", o.files.fuzz,
                  "With --html: show this summary too, which `assay fuzz --json` wrote")
      ->check(read_only())
      ->needs("--html");
  check
      .add_option("--standalone", o.standalone,
                  "Write the first failing case (shrunk), or the first case if none fails, as a "
                  "C++ file without dependencies; only for attention")
      ->check(writable());
}

int judge_definition(const CLI::App& check, const CheckOptions& o) {
  std::vector<std::string> shared = {
      "--seed",     fmt::format("{}", o.selection.seed),
      "--timeout",  fmt::format("{}", o.workers.timeout_seconds),
      "--evidence", std::string(name_of(o.workers.execute.evidence))};
  if (!o.device.empty()) shared.insert(shared.end(), {"--device", o.device});
  return check_definition(check, o.definition, shared);
}

// Names the candidate that the options mean, and gives up the limit of memory that it cannot have.
void settle_candidate(const CLI::App& check, CheckOptions& o) {
  if (!o.python.empty())
    o.candidate = "python:" + o.python + (o.device.empty() ? "" : "@" + o.device);
  else if (!o.device.empty()) o.candidate = "device:" + o.device;
  if (!o.library.empty()) o.candidate = candidate_of_library(o.library);
  // The drivers of devices reserve far more address space than they use, and Python may load them.
  if ((o.candidate.starts_with("device:") || o.candidate.starts_with("python:")) &&
      check.count("--memory") == 0)
    o.workers.memory_mib = 0;
}

}  // namespace

Command add_check(CLI::App& app) {
  const auto o = std::make_shared<CheckOptions>();
  CLI::App* check = app.add_subcommand(
      "check",
      "Judge a candidate on a suite or on cases: a verdict with a proved bound for every element");
  add_selection(*check, o->selection);
  add_candidates(*check, *o);
  add_definition(*check, o->definition);
  add_extent(*check, *o);
  add_outputs(*check, *o);
  add_evidence(*check, o->workers.execute.evidence);
  add_conventions(*check, o->conventions);
  add_guard_pages(*check, o->workers.execute);
  check
      ->add_option("--ball-rows", o->workers.execute.ball_rows,
                   "How many rows of a case are computed again in ball arithmetic, as a check")
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
      "  assay check --device opencl --suite tiny\n"
      "  assay check --python kernels.py::mine --device cuda --suite smoke\n"
      "  assay check --definition D.json --workload W.jsonl --solution S.json --trace T.jsonl");
  const auto settled = [check, o]() -> CheckOptions& {
    // The reader of the output may stop reading. The files are written all the same.
    std::signal(SIGPIPE, SIG_IGN);
    settle_candidate(*check, *o);
    return *o;
  };
  return {.app = check,
          .run =
              [settled, check] {
                CheckOptions& chosen = settled();
                return chosen.definition.definition.empty() ? run(chosen)
                                                            : judge_definition(*check, chosen);
              },
          .division = Division{
              .pieces = [settled] { return pieces(settled()); },
              .merge = [settled](const auto& shards,
                                 const Machine& m) { return merge(settled(), shards, m); }}};
}

}  // namespace assay
