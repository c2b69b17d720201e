#include <fmt/format.h>

#include <chrono>
#include <map>

#include "cli/commands.h"
#include "cli/progress.h"
#include "harness/planted_faults.h"
#include "harness/suites.h"
#include "reports/files.h"

namespace assay {
namespace {

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

}  // namespace

int faults(const FaultsOptions& o) {
  try {
    if (o.list) {
      for (const PlantedFault& f : planted_faults()) fmt::print("{:<28} {}  {}\n", f.name, f.fault_class, f.what);
      return all_passed;
    }
    std::vector<PlantedFault> chosen;
    for (const PlantedFault& f : planted_faults())
      if (o.only.empty() || o.only == f.name) chosen.push_back(f);
    if (chosen.empty()) throw std::invalid_argument(fmt::format("--only={}: no such fault; `assay faults --list` names them", o.only));
    const Suite suite = make_suite(o.suite, o.seed);

    WorkerOptions workers = o.workers;
    workers.execute.power = false;
    std::size_t killed = 0;
    std::map<std::string, std::pair<std::size_t, std::size_t>> by_class;
    Json table = Json::array();
    {
      Progress progress("faults", chosen.size());
      for (const PlantedFault& f : chosen) {
        const Kill kill = hunt(suite.cases, "fault:" + std::string(f.name), workers);
        killed += kill.killed;
        auto& [dead, all] = by_class[std::string(f.fault_class)];
        dead += kill.killed;
        ++all;
        progress.say("");
        fmt::print("{} {} ({}): {} cases, {:.2f} s\n", kill.killed ? "killed  " : "SURVIVED", f.name, f.fault_class, kill.cases, kill.seconds);
        if (kill.killed) fmt::print("  {}\n  {}\n", kill.line, kill.reason);
        std::fflush(stdout);
        progress.advance(std::string(f.name));
        table.push_back({{"fault", f.name},
                         {"class", f.fault_class},
                         {"killed", kill.killed},
                         {"cases", kill.cases},
                         {"seconds", kill.seconds},
                         {"case", kill.line},
                         {"reason", kill.reason}});
      }
    }
    // The same cases on the kernel without a fault: a suite that cries wolf proves nothing either.
    const Kill alarm = hunt(suite.cases, "host", workers);
    if (alarm.killed) fmt::print("FALSE ALARM on the unplanted kernel\n  {}\n  {}\n", alarm.line, alarm.reason);
    for (const auto& [name, score] : by_class) fmt::print("{}: {} of {} killed\n", name, score.first, score.second);
    fmt::print("{} of {} faults killed by suite {}; unplanted kernel: {} of {} cases run, {}; seed {}\n", killed, chosen.size(), o.suite, alarm.cases,
               suite.cases.size(), alarm.killed ? "A FALSE ALARM" : "no false alarm", o.seed);
    if (!o.json.empty())
      write_file(
          o.json,
          Json{{"format", 1}, {"suite", o.suite}, {"seed", o.seed}, {"killed", killed}, {"faults", table}, {"false_alarm", alarm.killed}}.dump(1) + "\n");
    return killed == chosen.size() && !alarm.killed ? all_passed : some_failed;
  } catch (const std::invalid_argument& e) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return bad_usage;
  } catch (const std::exception& e) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return machine_failed;
  }
}

}  // namespace assay
