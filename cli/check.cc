#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/progress.h"
#include "cli/run_report.h"
#include "harness/files.h"
#include "harness/shrink.h"
#include "harness/standalone.h"
#include "problem/clock.h"

namespace assay {
namespace {

// Follows one failing case down; every step runs in a worker, for a minute at most.
std::string shrink_line(const Json& failed, const WorkerOptions& options) {
  const auto deadline = seconds_from_now(60);
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

}  // namespace

int check(const CheckOptions& options) {
  return exit_status_of([&] { return run(options); });
}

}  // namespace assay
