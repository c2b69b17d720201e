// The command assay faults.
#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/selection.h"
#include "cli/tell.h"
#include "harness/faults/planted_faults.h"
#include "harness/cases/suites.h"
#include "harness/results/common_causes.h"
#include "harness/results/merge_shards.h"
#include "harness/files.h"
#include "harness/results/schema.h"
#include "harness/work.h"
#include "kernels/simd/targets.h"
#include "problem/clock.h"
#include "reports/html.h"
#include "reports/store.h"

namespace assay {
namespace {

struct FaultsOptions {
  std::string suite;   // empty: the suite of each fault's subject
  std::string only;    // one fault by name
  std::string target;  // the SIMD target of cases that name none; empty: the best
  std::uint64_t seed = 1;
  bool undeclared = false;  // kernels are judged as if they declared no arithmetic
  Index causes = 1;         // failing cases whose causes are looked for
  std::string shard;        // i/n
  std::string json, html, store;
  bool list = false;
  WorkerOptions workers;
};

struct Kill {
  bool killed = false;
  std::size_t cases = 0;  // the number of cases run until then
  double seconds = 0;
  std::string line, reason;
  CommonCauses causes;
  Index diagnosed = 0;
};

// Runs the cases until `failures` of them have failed.
Kill hunt(const std::vector<Case>& cases, const std::string& candidate,
          const WorkerOptions& workers, Index failures) {
  std::vector<WorkItem> items;
  for (const Case& c : cases) items.push_back({print_case(c), candidate});
  const auto start = Clock::now();
  Kill kill;
  Index failed = 0;
  run_in_workers(items, workers, [&](std::size_t k, const CaseResult& r) {
    if (!kill.killed) ++kill.cases;
    if (r.outcome == Outcome::error)
      throw std::runtime_error(fmt::format("{}: {}", items[k].line, r.reason));
    if (r.outcome != Outcome::fail) return true;
    if (!kill.killed) {
      kill.killed = true;
      kill.line = items[k].line;
      kill.reason = r.reason;
      kill.seconds = seconds_since(start);
    }
    kill.causes.add(r.diagnosis);
    kill.diagnosed += r.diagnosis.rows_asked > 0;
    return ++failed < failures;
  });
  if (!kill.killed) kill.seconds = seconds_since(start);
  return kill;
}

struct Score {
  std::size_t killed = 0, all = 0;
  void add(bool dead) {
    killed += dead;
    ++all;
  }
};

// Adds what the failing cases of a fault look like.
void note_causes(const PlantedFault& fault, const Kill& kill, FaultHunt& hunt) {
  hunt.cause = fault.cause;
  hunt.rank = kill.causes.rank_of(fault.cause);
  hunt.alone = kill.causes.is_alone(fault.cause);
  hunt.looks_like = kill.causes.ranking();
  if (hunt.looks_like.size() > 5) hunt.looks_like.resize(5);
  hunt.diagnosed = kill.diagnosed;
}

// The cases of a suite, the cheapest first, because these kill most faults.
const std::vector<Case>& cases_of(std::map<std::string, std::vector<Case>>& suites,
                                  const std::string& name, const FaultsOptions& o) {
  const auto [found, made] = suites.try_emplace(name);
  if (!made) return found->second;
  found->second = make_suite(name, o.seed).cases;
  for (Case& c : found->second)
    if (c.target.empty()) c.target = o.target;
  std::ranges::sort(found->second, {},
                    [](const Case& c) { return std::pair(multiply_adds(c), c.seed); });
  return found->second;
}

void list_faults() {
  for (const PlantedFault& f : planted_faults) {
    tell("{:<38} {}  {:<8}  {}\n", f.name, f.fault_class, f.equivalent.empty() ? f.suite() : "-",
         f.what);
    if (!f.equivalent.empty()) tell("{:<54}equivalent: {}\n", "", f.equivalent);
  }
}

// A fault and the suite that hunts it.
struct Hunt {
  const PlantedFault& fault;
  std::string suite;
};

// The pieces of the work are the hunts, and behind them the suites that run without a fault.
struct Plan {
  std::map<std::string, std::vector<Case>> suites;
  std::vector<Hunt> hunts;
  std::vector<std::string> unplanted;
};

// The faults that were asked for. The faults that are not hunted are noted in the score. Throws
// std::invalid_argument if no fault is left to hunt.
Plan plan_hunts(const FaultsOptions& o, FaultsScore& score) {
  Plan plan;
  std::size_t named = 0;
  for (const PlantedFault& f : planted_faults) {
    if (!o.only.empty() && o.only != f.name) continue;
    ++named;
    if (!f.equivalent.empty()) {
      score.equivalent.push_back(
          {std::string(f.name), std::string(f.fault_class), std::string(f.equivalent)});
      continue;
    }
    const std::string suite = o.suite.empty() ? std::string(f.suite()) : o.suite;
    const std::vector<Case>& cases = cases_of(plan.suites, suite, o);
    if (std::ranges::any_of(cases, [&](const Case& c) { return reaches(f, c); }))
      plan.hunts.push_back({f, suite});
    else ++score.out_of_reach;
  }
  if (named == 0)
    throw std::invalid_argument(
        fmt::format("--only={}: no such fault; `assay faults --list` names them", o.only));
  if (plan.hunts.empty())
    throw std::invalid_argument(
        score.out_of_reach == 0
            ? fmt::format("nothing to hunt: {} of {} named {} equivalent", score.equivalent.size(),
                          counted(named, "fault"), score.equivalent.size() == 1 ? "is" : "are")
            : fmt::format("nothing to hunt: suite {} runs no case of {} of {} named", o.suite,
                          score.out_of_reach, counted(named, "fault")));
  std::set<std::string> hunting;
  for (const Hunt& hunt : plan.hunts) hunting.insert(hunt.suite);
  plan.unplanted.assign(hunting.begin(), hunting.end());
  return plan;
}

// Leaves the part of the shard in the plan. Throws UsageError if that is nothing.
void take_shard(Plan& plan, const std::string& text) {
  const Shard shard = parse_shard(text);
  Plan whole;
  std::swap(whole.hunts, plan.hunts);
  std::swap(whole.unplanted, plan.unplanted);
  const std::size_t hunts = whole.hunts.size(), pieces = hunts + whole.unplanted.size();
  for (std::size_t k = shard.i; k < pieces; k += shard.n) {
    if (k < hunts) plan.hunts.push_back(whole.hunts[k]);
    else plan.unplanted.push_back(whole.unplanted[k - hunts]);
  }
  if (shard.i >= pieces)
    throw UsageError(fmt::format("--shard={}: nothing of {} and {} without a fault falls into it",
                                 text, counted(hunts, "hunt"), counted(pieces - hunts, "suite")));
}

// "the cause, causal-late, is named alone", or what else it looks like.
std::string sentence_on(const FaultHunt& f) {
  if (f.diagnosed == 0) return "cause: not looked for, because no output was judged";
  const std::string like = f.looks_like.empty()
                               ? "like no known fault"
                               : fmt::format("like {}", fmt::join(f.looks_like, ", "));
  if (f.cause.empty()) return fmt::format("cause: no hypothesis; it looks {}", like);
  if (f.rank == 0) return fmt::format("cause: {} is not named; it looks {}", f.cause, like);
  return fmt::format("cause: {} is number {}{}", f.cause, f.rank,
                     f.alone ? ", alone" : fmt::format("; it looks {}", like));
}

void tell_hunt(const FaultHunt& f) {
  tell("{} {} ({}, {}): {}, {:.2f} s\n", f.killed ? "killed  " : "SURVIVED", f.fault, f.fault_class,
       f.suite, counted(f.cases, "case"), f.seconds);
  if (f.killed) tell("  {}\n  {}\n  {}\n", f.line, f.reason, sentence_on(f));
  std::fflush(stdout);
}

void tell_unplanted(const UnplantedRun& u) {
  tell("suite {}: unplanted kernel: {} run, {}, {:.0f} s\n", u.suite, counted(u.cases, "case"),
       u.false_alarm ? "A FALSE ALARM" : "no false alarm", u.seconds);
  if (u.false_alarm) tell("  {}\n  {}\n", u.line, u.reason);
  std::fflush(stdout);
}

void hunt_faults(Plan& plan, WorkerOptions workers, const FaultsOptions& o, FaultsScore& score) {
  Progress progress("faults", plan.hunts.size());
  for (const auto& [f, suite] : plan.hunts) {
    std::vector<Case> cases;
    std::ranges::copy_if(plan.suites[suite], std::back_inserter(cases),
                         [&fault = f](const Case& c) { return reaches(fault, c); });
    workers.execute.relations = f.by_relation;
    const Kill kill =
        hunt(cases, (o.undeclared ? "fault-undeclared:" : "fault:") + std::string(f.name), workers,
             o.causes);
    score.killed += kill.killed;
    progress.advance(std::string(f.name));
    score.faults.push_back({std::string(f.name), std::string(f.fault_class), suite, kill.killed,
                            kill.cases, kill.seconds, kill.line, kill.reason});
    note_causes(f, kill, score.faults.back());
    tell_hunt(score.faults.back());
  }
}

// Runs the same cases on the kernels without a fault. A suite with false alarms proves nothing.
void run_unplanted(Plan& plan, const WorkerOptions& workers, bool undeclared, FaultsScore& score) {
  for (const std::string& name : plan.unplanted) {
    const Kill alarm = hunt(plan.suites[name], undeclared ? "host-undeclared" : "host", workers, 1);
    score.unplanted.push_back(
        {name, alarm.cases, alarm.seconds, alarm.killed, alarm.line, alarm.reason});
    tell_unplanted(score.unplanted.back());
  }
}

void print_scores(const FaultsScore& score) {
  std::map<std::string, Score> by_class, by_suite;
  for (const FaultHunt& f : score.faults) {
    by_class[f.fault_class].add(f.killed);
    by_suite[f.suite].add(f.killed);
  }
  for (const auto& [name, s] : by_class) tell("{}: {} of {} killed\n", name, s.killed, s.all);
  for (const auto& [name, s] : by_suite)
    tell("suite {}: {} of {} killed\n", name, s.killed, counted(s.all, "fault"));
}

// How often the true cause is named.
void print_causes(const FaultsScore& score) {
  std::size_t killed = 0, known = 0, first = 0, alone = 0, first_three = 0;
  for (const FaultHunt& f : score.faults) {
    if (!f.killed) continue;
    ++killed;
    known += !f.cause.empty();
    first += f.rank == 1;
    alone += f.rank == 1 && f.alone;
    first_three += f.rank >= 1 && f.rank <= 3;
  }
  tell("cause: of {} killed, {} with a hypothesis; named first {} (alone {}), among three {}\n",
       counted(killed, "fault"), known, first, alone, first_three);
}

void print_times(const FaultsScore& score) {
  std::vector<double> seconds;
  for (const FaultHunt& f : score.faults)
    if (f.killed) seconds.push_back(f.seconds);
  std::ranges::sort(seconds);
  if (!seconds.empty())
    tell("time to kill: median {:.2f} s, worst {:.2f} s\n", seconds[seconds.size() / 2],
         seconds.back());
}

void write_score(const FaultsOptions& o, const FaultsScore& score, const Machine& machine) {
  if (!o.json.empty()) write_file(o.json, to_json(score).dump(1) + "\n");
  if (!o.html.empty()) {
    const Run page{
        o.suite.empty() ? "their suites" : o.suite, "planted faults", o.seed, machine, {}, {}};
    write_file(o.html, html_report(page, {.faults = score, .fuzz = {}}));
  }
  if (!o.store.empty())
    tell("store: run {} of {}\n", Store(o.store).append(score, machine), o.store);
}

// Prints and writes the score, and returns the exit status.
int report(const FaultsOptions& o, const FaultsScore& score, const Machine& machine) {
  print_scores(score);
  print_causes(score);
  const bool alarmed = std::ranges::any_of(score.unplanted, &UnplantedRun::false_alarm);
  if (score.out_of_reach > 0)
    tell("{} left out: suite {} runs no case of {} operation\n",
         counted(score.out_of_reach, "fault"), o.suite, score.out_of_reach == 1 ? "its" : "their");
  print_times(score);
  tell("{} of {} killed, {} equivalent left out; {}; seed {}; SIMD target {}\n", score.killed,
       counted(score.faults.size(), "fault"), score.equivalent.size(),
       alarmed ? "A FALSE ALARM" : "no false alarm", o.seed,
       planted_fault_target(kernels::Target::named(o.target).value()).name());
  write_score(o, score, machine);
  return score.killed == score.faults.size() && !alarmed ? all_passed : some_failed;
}

int run(const FaultsOptions& o) {
  if (o.list) {
    list_faults();
    return all_passed;
  }
  FaultsScore score;
  score.seed = o.seed;
  Plan plan = plan_hunts(o, score);
  take_shard(plan, o.shard);
  WorkerOptions workers = o.workers;
  workers.execute.power = false;
  workers.execute.relations = false;
  hunt_faults(plan, workers, o, score);
  run_unplanted(plan, workers, o.undeclared, score);
  return report(o, score, this_machine());
}

std::size_t pieces(const FaultsOptions& o) {
  FaultsScore score;
  const Plan plan = plan_hunts(o, score);
  return plan.hunts.size() + plan.unplanted.size();
}

int merge(const FaultsOptions& o, const std::vector<Json>& shards, const Machine& machine) {
  std::vector<FaultsScore> scores;
  for (const Json& shard : shards) scores.push_back(from_json<FaultsScore>(shard, "score"));
  const FaultsScore whole = merged(scores);
  std::ranges::for_each(whole.faults, tell_hunt);
  std::ranges::for_each(whole.unplanted, tell_unplanted);
  return report(o, whole, machine);
}

}  // namespace

Command add_faults(CLI::App& app) {
  const auto o = std::make_shared<FaultsOptions>();
  CLI::App* command = app.add_subcommand("faults",
                                         "Plant every known bug in the kernels and show which case "
                                         "kills it; then show that the kernels themselves pass");
  command->add_option("--suite", o->suite,
                      "The suite that must kill the faults, instead of each fault's own suite; "
                      "names as for `assay check --suite`");
  command->add_option("--only", o->only, "Only the fault of this name, as --list prints it");
  command
      ->add_option(
          "--target", o->target,
          "The SIMD target of cases that name none, instead of the best. Faults are compiled "
          "for some: those of another run on the baseline")
      ->check(CLI::IsMember(kernels::runnable_targets()));
  command->add_option("--seed", o->seed, "The seed of the inputs")
      ->transform(any_number())
      ->capture_default_str();
  command->add_flag("--undeclared", o->undeclared,
                    "Judge the kernels as if they declared no arithmetic");
  command
      ->add_option("--causes", o->causes,
                   "The number of failing cases of each fault, the cheapest, that are diagnosed "
                   "together")
      ->transform(number_in(1, 64))
      ->capture_default_str();
  add_shard(*command, o->shard, "fault (and suite without one)");
  command->add_option("--json", o->json, "Write the score as JSON")->check(writable());
  command->add_option("--html", o->html, "Write the score as one HTML page")->check(writable());
  command->add_option("--store", o->store, "Append the score to this store")->check(appended());
  command->add_flag("--list", o->list,
                    "Print name, class, suite and meaning of each fault, and run nothing");
  add_workers(*command, o->workers);
  command->footer(
      "Exit status: 0 every fault was killed and the kernels without one pass, 1 one survived or a "
      "false alarm, 2 bad usage, or nothing\n"
      "to hunt, 3 the machine failed.\n\nExamples:\n"
      "  assay faults --list\n"
      "  assay faults --only causal-off-by-one --suite plain\n"
      "  assay faults --suite smoke --json score.json");
  return {.app = command,
          .run =
              [o] {
                // The reader of the output may stop reading. The files are written all the same.
                std::signal(SIGPIPE, SIG_IGN);
                return run(*o);
              },
          .division = Division{
              .pieces = [o] { return pieces(*o); },
              .merge = [o](const auto& shards, const Machine& m) { return merge(*o, shards, m); }}};
}

}  // namespace assay
