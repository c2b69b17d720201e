// Alarms over the runs of a store: series of accuracy, evidence and time whose level has changed
// for the worse. docs/alarms.md derives what is asked and how often an alarm is false.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "problem/names.h"
#include "reports/store.h"

namespace assay {

// What a series is made of.
enum class Measure : std::uint8_t {
  accuracy,  // the largest error/bound of a case
  evidence,  // the largest s of a case over its limit
  time,      // seconds of the candidate, or of an iteration of a benchmark
};
template <>
inline constexpr auto table_of<Measure> = complete<Named<Measure>>({
    {Measure::accuracy, "accuracy"},
    {Measure::evidence, "evidence"},
    {Measure::time, "time"},
});

struct AlarmRule {
  std::set<Measure> measures = {Measure::accuracy, Measure::evidence, Measure::time};
  // By how many percent a case has to become worse. For the mean of a suite a tenth of that counts.
  double accuracy_margin = 50, time_margin = 50;
  std::int64_t since = 0;  // runs before this one are history alone; 0: all may be told
  std::string since_time;  // likewise, a time or the beginning of one; empty: all
};

// A run on one side of a change.
struct AlarmRun {
  std::int64_t id = 0;
  std::string started, commit;
};

// A level that changed.
struct Alarm {
  Measure measure = Measure::accuracy;
  std::string name;  // the case line, or the benchmark; empty: the geometric mean of the suite
  std::string suite, candidate, hardware;
  double before = 0, after = 0;  // medians of the levels; of a suite relative to its first run
  AlarmRun last_before, first_after, found;
  bool certain = false;   // a value that had been one and the same became another
  std::string reproduce;  // a command; empty: none is known
  std::string link;       // what follows the name of the dashboard

  double ratio() const { return after / before; }
  bool worse() const { return after > before; }
};

struct Alarms {
  std::vector<Alarm> worse, better;  // in the order of the runs
  std::size_t runs = 0, series = 0;
  // Series with fewer runs than a noisy one needs until five runs after a change can show it.
  std::size_t short_series = 0;
  double chance = 0;            // ChangeRule::chance
  std::size_t runs_needed = 0;  // see short_series
};

// Reads all runs of the store. Series belong to one candidate, one suite and one machine.
Alarms find_alarms(const Store& store, const AlarmRule& rule);

// Lines for a terminal: alarms of the same pair of runs stand together. `dashboard` is the name of
// the page, or empty.
std::string text_of(const Alarms& alarms, const std::string& dashboard);
Json to_json(const Alarms& alarms);

}  // namespace assay
