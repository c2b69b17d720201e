// assay faults.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>
#include <memory>
#include <utility>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "harness/planted_faults.h"
#include "harness/suites.h"
#include "harness/files.h"
#include "reports/html.h"
#include "reports/store.h"

namespace assay {
namespace {

struct FaultsOptions {
  std::string suite;  // empty: each fault's own
  std::string only;   // one fault by name
  std::uint64_t seed = 1;
  std::string json, html, store;
  bool list = false;
  WorkerOptions workers;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

struct Kill {
  bool killed = false;
  std::size_t cases = 0;  // run until then
  double seconds = 0;
  std::string line, reason;
};

Kill hunt(const std::vector<Case>& cases, const std::string& candidate, const WorkerOptions& workers) {
  std::vector<WorkItem> items;
  for (const Case& c : cases) items.push_back({print_case(c), candidate});
  const auto start = Clock::now();
  Kill kill;
  run_in_workers(items, workers, [&](std::size_t k, Json r) {
    ++kill.cases;
    if (r["outcome"] == "error") throw std::runtime_error(fmt::format("{}: {}", items[k].line, r["reason"].get<std::string>()));
    if (r["outcome"] != "fail") return true;
    kill.killed = true;
    kill.line = items[k].line;
    kill.reason = r["reason"];
    return false;
  });
  kill.seconds = seconds_since(start);
  return kill;
}

struct Score {
  std::size_t killed = 0, all = 0;
  void add(bool dead) {
    killed += dead;
    ++all;
  }
};

// The cheapest cases first: most faults die by them.
const std::vector<Case>& cases_of(std::map<std::string, std::vector<Case>>& suites, const std::string& name, std::uint64_t seed) {
  const auto [found, made] = suites.try_emplace(name);
  if (!made) return found->second;
  found->second = make_suite(name, seed).cases;
  std::ranges::sort(found->second, {}, [](const Case& c) {
    const AttentionShape& s = c.shape;
    if (c.operation == Operation::product) return std::pair(c.product.m * c.product.n * c.product.k, c.seed);
    return std::pair(s.batch * s.query_heads * s.rows * s.keys * (s.dim + s.value_dim), c.seed);
  });
  return found->second;
}

void list_faults() {
  for (const PlantedFault& f : planted_faults()) {
    fmt::print("{:<38} {}  {:<8}  {}\n", f.name, f.fault_class, f.equivalent.empty() ? f.suite : "-", f.what);
    if (!f.equivalent.empty()) fmt::print("{:<54}equivalent: {}\n", "", f.equivalent);
  }
}

int run(const FaultsOptions& o) {
  if (o.list) {
    list_faults();
    return all_passed;
  }
  std::map<std::string, std::vector<Case>> suites;
  struct Hunt {
    const PlantedFault& fault;
    std::string suite;
  };
  std::vector<Hunt> hunts;
  Json equivalent = Json::array();
  std::size_t named = 0, out_of_reach = 0;
  for (const PlantedFault& f : planted_faults()) {
    if (!o.only.empty() && o.only != f.name) continue;
    ++named;
    if (!f.equivalent.empty()) {
      equivalent.push_back({{"fault", f.name}, {"class", f.fault_class}, {"proof", f.equivalent}});
      continue;
    }
    const std::string suite = o.suite.empty() ? std::string(f.suite) : o.suite;
    const std::vector<Case>& cases = cases_of(suites, suite, o.seed);
    if (std::ranges::any_of(cases, [&](const Case& c) { return reaches(f, c); })) hunts.push_back({f, suite});
    else ++out_of_reach;
  }
  if (named == 0) throw std::invalid_argument(fmt::format("--only={}: no such fault; `assay faults --list` names them", o.only));
  if (hunts.empty())
    throw std::invalid_argument(out_of_reach == 0 ? fmt::format("nothing to hunt: {} of the faults named is equivalent", equivalent.size())
                                                  : fmt::format("nothing to hunt: suite {} runs no case of {} of the faults named", o.suite, out_of_reach));

  WorkerOptions workers = o.workers;
  workers.execute.power = false;
  workers.execute.relations = false;
  Score score;
  std::map<std::string, Score> by_class, by_suite;
  Json table = Json::array();
  std::vector<double> seconds;  // of each kill
  {
    Progress progress("faults", hunts.size());
    for (const auto& [f, suite] : hunts) {
      std::vector<Case> cases;
      std::ranges::copy_if(suites[suite], std::back_inserter(cases), [&fault = f](const Case& c) { return reaches(fault, c); });
      workers.execute.relations = f.by_relation;
      const Kill kill = hunt(cases, "fault:" + std::string(f.name), workers);
      score.add(kill.killed);
      if (kill.killed) seconds.push_back(kill.seconds);
      by_class[std::string(f.fault_class)].add(kill.killed);
      by_suite[suite].add(kill.killed);
      fmt::print("{} {} ({}, {}): {} cases, {:.2f} s\n", kill.killed ? "killed  " : "SURVIVED", f.name, f.fault_class, suite, kill.cases, kill.seconds);
      if (kill.killed) fmt::print("  {}\n  {}\n", kill.line, kill.reason);
      std::fflush(stdout);
      progress.advance(std::string(f.name));
      table.push_back({{"fault", f.name},
                       {"class", f.fault_class},
                       {"suite", suite},
                       {"killed", kill.killed},
                       {"cases", kill.cases},
                       {"seconds", kill.seconds},
                       {"case", kill.line},
                       {"reason", kill.reason}});
    }
  }
  workers.execute.relations = false;
  for (const auto& [name, s] : by_class) fmt::print("{}: {} of {} killed\n", name, s.killed, s.all);
  // The same cases on the kernels without a fault: a suite that cries wolf proves nothing either.
  Json unplanted = Json::array();
  bool alarmed = false;
  for (const auto& [name, s] : by_suite) {
    const Kill alarm = hunt(suites[name], "host", workers);
    alarmed |= alarm.killed;
    fmt::print("suite {}: {} of {} faults killed; unplanted kernel: {} of {} cases run, {}, {:.0f} s\n", name, s.killed, s.all, alarm.cases,
               suites[name].size(), alarm.killed ? "A FALSE ALARM" : "no false alarm", alarm.seconds);
    if (alarm.killed) fmt::print("  {}\n  {}\n", alarm.line, alarm.reason);
    std::fflush(stdout);
    unplanted.push_back(
        {{"suite", name}, {"cases", alarm.cases}, {"seconds", alarm.seconds}, {"false_alarm", alarm.killed}, {"case", alarm.line}, {"reason", alarm.reason}});
  }
  if (out_of_reach > 0) fmt::print("{} faults left out: suite {} runs no case of their operation\n", out_of_reach, o.suite);
  if (std::ranges::sort(seconds); !seconds.empty()) fmt::print("time to kill: median {:.2f} s, worst {:.2f} s\n", seconds[seconds.size() / 2], seconds.back());
  fmt::print("{} of {} faults killed, {} equivalent left out; {}; seed {}\n", score.killed, score.all, equivalent.size(),
             alarmed ? "A FALSE ALARM" : "no false alarm", o.seed);
  const Json whole = {{"format", 1},          {"seed", o.seed},           {"killed", score.killed},  {"out_of_reach", out_of_reach},
                      {"faults", table}, {"equivalent", equivalent}, {"unplanted", unplanted}};
  if (!o.json.empty()) write_file(o.json, whole.dump(1) + "\n");
  if (!o.html.empty())
    write_file(o.html, html_report({{"candidate", "planted faults"}, {"suite", o.suite.empty() ? "their suites" : o.suite}, {"seed", o.seed}, {"machine", machine_facts()}, {"faults", whole}}));
  if (!o.store.empty()) fmt::print("store: run {} of {}\n", Store(o.store).append_faults(whole, machine_facts()), o.store);
  return score.killed == score.all && !alarmed ? all_passed : some_failed;
}

}  // namespace

Command add_faults(CLI::App& app) {
  const auto o = std::make_shared<FaultsOptions>();
  CLI::App* command = app.add_subcommand(
      "faults",
      "Plant every known bug in the kernel and see which case kills it; then see that the kernel "
      "itself passes");
  command->add_option("--suite", o->suite,
                      "The suite that has to kill them, instead of each fault's own; names as for "
                      "`assay check --suite`");
  command->add_option("--only", o->only, "One fault by name, as --list prints it");
  command->add_option("--seed", o->seed, "Of the inputs")
      ->transform(any_number())
      ->capture_default_str();
  command->add_option("--json", o->json, "Write the score as JSON")->check(writable());
  command->add_option("--html", o->html, "Write the score as one HTML page")->check(writable());
  command->add_option("--store", o->store, "Append the score to this store")->check(writable());
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
  return {command, [o] { return run(*o); }};
}

}  // namespace assay
