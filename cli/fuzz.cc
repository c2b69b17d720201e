// assay fuzz.
#include "fuzz/jobs.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "cli/exit_status.h"
#include "cli/machine.h"
#include "harness/files.h"
#include "harness/planted_faults.h"
#include "reports/html.h"
#include "reports/store.h"

namespace assay {
namespace {

std::string target_of(const PlantedFault& f) {
  switch (f.about) {
    case FaultSubject::product: return "product";
    case FaultSubject::cache: return "cache";
    case FaultSubject::backward: return "backward";
    default: return "forward";
  }
}

// Every fault that some input shows, one after the other, each from no inputs at all.
int find_faults(const FuzzCommandOptions& o) {
  if (!o.store.empty() || !o.html.empty() || !o.jobs.targets.empty()) throw UsageError("--faults takes neither --store, --html nor targets: --only names a fault, and each has its target");
  const std::vector<std::string> targets = fuzz_targets(o.jobs.binaries);
  Json table = Json::array();
  std::size_t found = 0;
  std::vector<double> seconds;
  for (const PlantedFault& f : planted_faults()) {
    if (!f.equivalent.empty() || (!o.only.empty() && o.only != f.name)) continue;
    const std::string target = target_of(f), name(f.name);
    if (std::ranges::find(targets, target) == targets.end()) throw std::invalid_argument(fmt::format("{}: target {} is not there", o.jobs.binaries.string(), target));
    const TimeToFind t = time_to_find(o.jobs.binaries / (target + "_fuzz"), "fault:" + name, o.jobs.work / "faults" / name, o.fault_seconds, o.jobs.seed);
    fmt::print("{} {:<38} {}  {:<8} {:>9.0f} executions {:>7.1f} s\n", t.found ? "found  " : "NOT YET", name, f.fault_class, target, t.executions, t.seconds);
    if (t.found) fmt::print("  {}\n  {}\n", t.line, t.reason);
    std::fflush(stdout);
    found += t.found;
    if (t.found) seconds.push_back(t.seconds);
    table.push_back({{"fault", f.name}, {"class", f.fault_class}, {"target", target}, {"found", t.found}, {"executions", t.executions}, {"seconds", t.seconds}, {"case", t.line}, {"reason", t.reason}});
  }
  if (table.empty()) throw std::invalid_argument(fmt::format("--only={}: no such fault; `assay faults --list` names them", o.only));
  std::ranges::sort(seconds);
  fmt::print("{} of {} faults found within {:.0f} s each", found, table.size(), o.fault_seconds);
  if (!seconds.empty()) fmt::print("; median {:.1f} s, worst {:.1f} s", seconds[seconds.size() / 2], seconds.back());
  fmt::print("; seed {}\n", o.jobs.seed);
  if (!o.json.empty()) write_file(o.json, Json{{"format", 1}, {"seed", o.jobs.seed}, {"faults", table}}.dump(1) + "\n");
  return found == table.size() ? all_passed : some_failed;
}

int run_jobs(const FuzzCommandOptions& o) {
  FuzzOptions jobs = o.jobs;
  jobs.seconds = o.hours * 3600;
  const bool terminal = isatty(STDERR_FILENO) != 0;
  jobs.say = [&](const std::string& line) { fmt::print(stderr, "{}{}\n", terminal ? "\r" : "", line); };
  const FuzzSummary summary = fuzz(jobs);
  for (const FuzzTarget& t : summary.targets)
    fmt::print("{:<10} {:>11.0f} executions, {:>7.0f} a second, coverage {:>6.0f}, corpus {:>6.0f}, {} "
               "findings\n",
               t.target, t.executions, t.executions_per_second, t.coverage, t.corpus, t.findings);
  for (const FuzzFinding& f : summary.findings)
    if (!f.kept.empty())
      fmt::print("{}: {}\n  {}\n  kept as {}\n", f.target, f.reason,
                 f.shrunk.empty() ? f.file : f.shrunk, f.kept);
  fmt::print("{:.0f} s in all, {} findings; seed {}; the folder {} goes on with more --hours\n",
             summary.seconds, summary.findings.size(), o.jobs.seed, o.jobs.work.string());
  if (!o.json.empty()) write_file(o.json, to_json(summary).dump(1) + "\n");
  if (!o.html.empty()) {
    const Run page{o.jobs.work.string(), "fuzzers", o.jobs.seed, this_machine(), {}, {}};
    write_file(o.html, html_report(page, {.faults = {}, .fuzz = summary}));
  }
  if (!o.store.empty())
    fmt::print("run {} of {}\n", Store(o.store).append(summary, this_machine()), o.store);
  return summary.findings.empty() ? all_passed : some_failed;
}

}  // namespace

int fuzz_command(const FuzzCommandOptions& o) {
  return exit_status_of([&] { return o.faults ? find_faults(o) : run_jobs(o); });
}

}  // namespace assay
