// The command assay fuzz.
#include "fuzz/jobs.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "cli/selection.h"
#include "cli/tell.h"
#include "harness/files.h"
#include "harness/faults/planted_faults.h"
#include "harness/results/merge_shards.h"
#include "harness/results/schema.h"
#include "problem/parallel.h"
#include "reports/html.h"
#include "reports/store.h"

namespace assay {
namespace {

struct FuzzCommandOptions {
  FuzzOptions jobs;
  double hours = 1;
  bool faults = false;  // measure instead how long the search for each planted fault takes
  double fault_seconds = 600;
  std::string shard;  // i/n
  std::string only, json, html, store;
};

std::string target_of(const PlantedFault& f) {
  // Splits belong to the forward pass.
  return std::string(name_of(f.about == FaultSubject::splits ? FaultSubject::forward : f.about));
}

// Searches every fault that some input shows, one after the other. Each search begins without
// inputs.
int find_faults(const FuzzCommandOptions& o) {
  if (!o.store.empty() || !o.html.empty() || !o.shard.empty() || !o.jobs.targets.empty())
    throw UsageError(
        "--faults takes neither --store, --html, --shard nor targets: --only names a fault, and "
        "each has its target");
  const std::vector<std::string> targets = fuzz_targets(o.jobs.binaries);
  Json table = Json::array();
  std::size_t found = 0;
  std::vector<double> seconds;
  for (const PlantedFault& f : planted_faults) {
    if (!f.equivalent.empty() || (!o.only.empty() && o.only != f.name)) continue;
    const std::string target = target_of(f), name(f.name);
    if (std::ranges::find(targets, target) == targets.end())
      throw std::invalid_argument(
          fmt::format("{}: target {} is not there", o.jobs.binaries.string(), target));
    const TimeToFind t = time_to_find(o.jobs.binaries / (target + "_fuzz"), "fault:" + name,
                                      o.jobs.work / "faults" / name, o.fault_seconds, o.jobs.seed);
    tell("{} {:<38} {}  {:<8} {:>9.0f} executions {:>7.1f} s\n", t.found ? "found  " : "NOT YET",
         name, f.fault_class, target, t.executions, t.seconds);
    if (t.found) tell("  {}\n  {}\n", t.line, t.reason);
    std::fflush(stdout);
    found += t.found;
    if (t.found) seconds.push_back(t.seconds);
    table.push_back({{"fault", f.name},
                     {"class", f.fault_class},
                     {"target", target},
                     {"found", t.found},
                     {"executions", t.executions},
                     {"seconds", t.seconds},
                     {"case", t.line},
                     {"reason", t.reason}});
  }
  if (table.empty())
    throw std::invalid_argument(
        fmt::format("--only={}: no such fault; `assay faults --list` names them", o.only));
  std::ranges::sort(seconds);
  tell("{} of {} found within {:.0f} s each", found, counted(table.size(), "fault"),
       o.fault_seconds);
  if (!seconds.empty())
    tell("; median {:.1f} s, worst {:.1f} s", seconds[seconds.size() / 2], seconds.back());
  tell("; seed {}\n", o.jobs.seed);
  if (!o.json.empty())
    write_file(o.json,
               Json{{"format", 1}, {"seed", o.jobs.seed}, {"faults", table}}.dump(1) + "\n");
  return found == table.size() ? all_passed : some_failed;
}

// The jobs of the shard: its part of the targets and of the hours, in a folder of its own. If there
// are more shards than targets, several shards run one target, each with another seed.
FuzzOptions jobs_of(const FuzzCommandOptions& o) {
  FuzzOptions jobs = o.jobs;
  jobs.seconds = o.hours * 3600;
  if (o.shard.empty()) return jobs;
  const Shard shard = parse_shard(o.shard);
  const std::vector<std::string> all = chosen_targets(o.jobs);
  const std::size_t groups = std::min(shard.n, all.size());
  jobs.targets.clear();
  for (std::size_t k = shard.i % groups; k < all.size(); k += groups)
    jobs.targets.push_back(all[k]);
  jobs.seconds /= static_cast<double>(shard.n);
  jobs.seed += shard.i * 1000003;
  jobs.work /= fmt::format("{}-of-{}", shard.i, shard.n);
  return jobs;
}

// Prints and writes the summary, and returns the exit status.
int report(const FuzzCommandOptions& o, const FuzzSummary& summary, const Machine& machine) {
  for (const FuzzTarget& t : summary.targets)
    tell(
        "{:<10} {:>11.0f} executions, {:>7.0f} a second, coverage {:>6.0f}, corpus {:>6.0f}, "
        "{}\n",
        t.target, t.executions, t.executions_per_second, t.coverage, t.corpus,
        counted(t.findings, "finding"));
  for (const FuzzFinding& f : summary.findings)
    if (!f.kept.empty())
      tell("{}: {}\n  {}\n  kept as {}\n", f.target, f.reason, f.shrunk.empty() ? f.file : f.shrunk,
           f.kept);
  tell("{:.0f} s in all, {}; seed {}; the folder {} goes on with more --hours\n", summary.seconds,
       counted(summary.findings.size(), "finding"), o.jobs.seed, o.jobs.work.string());
  if (!o.json.empty()) write_file(o.json, to_json(summary).dump(1) + "\n");
  if (!o.html.empty()) {
    const Run page{o.jobs.work.string(), "fuzzers", o.jobs.seed, machine, {}, {}};
    write_file(o.html, html_report(page, {.faults = {}, .fuzz = summary}));
  }
  if (!o.store.empty()) tell("run {} of {}\n", Store(o.store).append(summary, machine), o.store);
  return summary.findings.empty() ? all_passed : some_failed;
}

int run_jobs(const FuzzCommandOptions& o) {
  FuzzOptions jobs = jobs_of(o);
  const bool terminal = isatty(STDERR_FILENO) != 0;
  jobs.say = [&](const std::string& line) {
    std::fputs(terminal ? "\r" : "", stderr);
    std::fputs((visible_lines(line) + '\n').c_str(), stderr);
  };
  return report(o, fuzz(jobs), this_machine());
}

// A target may run in any number of shards, each with a seed of its own.
std::size_t pieces(const FuzzCommandOptions& o) {
  if (o.faults) throw UsageError("--faults: this search is not divided");
  chosen_targets(o.jobs);
  return std::numeric_limits<std::size_t>::max();
}

int merge(const FuzzCommandOptions& o, const std::vector<Json>& shards, const Machine& machine) {
  std::vector<FuzzSummary> summaries;
  for (const Json& shard : shards) summaries.push_back(from_json<FuzzSummary>(shard, "summary"));
  return report(o, merged(summaries), machine);
}

void add_budget(CLI::App& fuzz, FuzzCommandOptions& o) {
  fuzz.add_option("--hours", o.hours, "Hours in all, with those of earlier runs in the same folder")
      ->transform(number_in(1e-5, 1e5))
      ->capture_default_str();
  fuzz.add_option("--jobs", o.jobs.jobs, "How many processes run at a time")
      ->transform(number_in(1, 1024))
      ->capture_default_str();
  fuzz.add_option("--slice", o.jobs.slice, "Seconds that a target gets at a time")
      ->transform(number_in(2.0, 86400.0))
      ->capture_default_str();
  fuzz.add_option("--corpus-mib", o.jobs.corpus_mib,
                  "The largest corpus of a target, in MiB; of a larger one, only what adds "
                  "coverage is kept")
      ->transform(number_in(1, 1 << 20))
      ->capture_default_str();
  fuzz.add_option("--memory", o.jobs.memory_mib, "Memory of a process, in MiB")
      ->transform(number_in(64, 1 << 20))
      ->capture_default_str();
}

void add_fault_hunt(CLI::App& fuzz, FuzzCommandOptions& o) {
  fuzz.add_flag("--faults", o.faults,
                "Instead, measure how long each planted fault takes to be found by its target from "
                "an empty corpus");
  fuzz.add_option("--fault-seconds", o.fault_seconds,
                  "With --faults: for how many seconds each fault is looked for")
      ->transform(seconds_number())
      ->capture_default_str();
  fuzz.add_option("--only", o.only, "With --faults: only the fault of this name");
}

}  // namespace

Command add_fuzz(CLI::App& app) {
  const auto o = std::make_shared<FuzzCommandOptions>();
  o->jobs.jobs = hardware_threads();
  CLI::App* command = app.add_subcommand(
      "fuzz",
      "Run long fuzz jobs over libFuzzer targets. Time goes to the targets that still find "
      "something; a job that was killed goes on where it was; docs/fuzzing.md");
  command->add_option("TARGET", o->jobs.targets, "Only these targets; the default is all of them");
  command
      ->add_option(
          "--bin", o->jobs.binaries,
          "The folder of the targets (TARGET_fuzz) that the presets fuzz and fuzz-fast build")
      ->check(programs())
      ->required();
  command
      ->add_option("--work", o->jobs.work,
                   "The folder of corpora, findings and state; with the same folder, jobs go on "
                   "where they were")
      ->required();
  command->add_option("--seeds", o->jobs.seeds, "A folder of folders of inputs, by target");
  command->add_option("--keep", o->jobs.keep,
                      "The folder to which minimised inputs of findings are copied, by target, so "
                      "that tests replay them; the default is WORK/regressions");
  add_budget(*command, *o);
  command->add_option("--seed", o->jobs.seed, "The seed of the fuzzers")
      ->transform(any_number())
      ->capture_default_str();
  add_shard(*command, o->shard, "target, in a folder of its own, for its part of the hours");
  add_fault_hunt(*command, *o);
  command->add_option("--json", o->json, "Write the summary as JSON")->check(writable());
  command->add_option("--html", o->html, "Write the summary as one HTML page")->check(writable());
  command->add_option("--store", o->store, "Append the summary to this store")->check(appended());
  command->footer(
      "`./dev fuzz` builds the targets and fills in --bin, --work, --seeds and --keep. Exit "
      "status: 0 no findings, 1 findings (or, with\n"
      "--faults, one that was not found), 2 bad usage, 3 the machine failed.\n\nExamples:\n"
      "  ./dev fuzz --hours 8 --jobs 2\n"
      "  ./dev fuzz --hours 1 forward cache\n"
      "  assay fuzz --bin build/fuzz/fuzz --work build/fuzzing --seeds fuzz/corpus --hours 0.1 "
      "forward\n"
      "  assay fuzz --bin build/fuzz-fast/fuzz --work build/fuzzing --faults --fault-seconds 60 "
      "--only causal-off-by-one");
  return {.app = command,
          .run = [o] { return o->faults ? find_faults(*o) : run_jobs(*o); },
          .division = Division{
              .pieces = [o] { return pieces(*o); },
              .merge = [o](const auto& shards, const Machine& m) { return merge(*o, shards, m); }}};
}

}  // namespace assay
