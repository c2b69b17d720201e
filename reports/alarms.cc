#include "reports/alarms.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>

#include "harness/results/schema.h"
#include "harness/text.h"
#include "problem/parallel.h"
#include "reports/change_points.h"

namespace assay {
namespace {

constexpr double absent = std::numeric_limits<double>::quiet_NaN();
constexpr double runs_of_a_year = 365, false_alarms_of_a_year = 0.5;
// A store of fewer series is treated as one of so many, so its alarms are rarer than they need be.
constexpr std::size_t least_series = 30;
// From this many cases on, the means of suites of different seeds are compared.
constexpr std::size_t many_cases = 30;

// What a run measured of a case, as logarithms; NaN where it did not.
struct Point {
  std::size_t run = 0;  // in the order of time
  std::array<double, count_of<Measure>> logs{absent, absent, absent};
};

// The runs of one candidate on one suite and one machine.
struct Group {
  std::string candidate, suite, hardware;
  std::vector<std::size_t> runs;
  std::vector<std::string> names;
  std::vector<std::vector<Point>> points;  // of each name, in the order of time
};

struct History {
  std::vector<RunEntry> runs;  // in the order of time
  std::vector<Group> groups;
};

// One measure of one case, or of a suite.
struct Series {
  Measure measure = Measure::accuracy;
  const Group* group = nullptr;
  std::string name;  // empty: the suite
  std::vector<std::size_t> runs;
  std::vector<double> logs;
};

// The properties of a machine that decide how fast a kernel is and which code of it runs. The
// authors of a kernel do not choose them. They do choose compilers and flags, so a run with another
// compiler stays in the same series.
std::string hardware_of(const Json& machine) {
  std::string text;
  for (const char* field : {"cpu", "processor", "host_name", "threads", "num_cpus", "simd target"})
    if (machine.is_object() && machine.contains(field)) {
      const Json& value = machine[field];
      text += (text.empty() ? "" : ", ") +
              (value.is_string() ? value.get<std::string>() : value.dump());
    }
  return text;
}

// Ratios outside of this range, among them 0, infinity and NaN, are replaced by its ends, so that
// they have a logarithm. The verdict of a run tells what they were.
double log_of_ratio(double ratio) {
  constexpr double most = 1 << 20;
  return std::log(std::isnan(ratio) ? most : std::clamp(ratio, 1 / most, most));
}

// Names are looked up for every result of the store.
struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};
using Numbers = std::unordered_map<std::string, std::size_t, TextHash, std::equal_to<>>;

std::size_t number_of(Numbers& numbers, std::string_view name) {
  const auto found = numbers.find(name);
  if (found != numbers.end()) return found->second;
  return numbers.emplace(name, numbers.size()).first->second;
}

History read(const Store& store) {
  History h;
  h.runs = store.runs();
  std::ranges::stable_sort(h.runs, {}, &RunEntry::started);
  struct Place {
    std::size_t run = 0, group = 0;
  };
  std::unordered_map<std::int64_t, Place> place;
  Numbers groups;
  std::vector<Numbers> names;
  for (std::size_t i = 0; i < h.runs.size(); ++i) {
    const RunEntry& run = h.runs[i];
    if (run.kind != "check" && run.kind != "benchmark") continue;
    const std::string hardware = hardware_of(run.machine);
    const std::size_t group =
        number_of(groups, Json{run.kind, run.candidate, run.title, hardware}.dump(
                              -1, ' ', false, Json::error_handler_t::replace));
    if (group == h.groups.size()) {
      h.groups.push_back({run.candidate, run.title, hardware, {}, {}, {}});
      names.emplace_back();
    }
    h.groups[group].runs.push_back(i);
    place[run.id] = {i, group};
  }
  store.each_result([&](const StoredValues& v) {
    const auto found = place.find(v.run);
    if (found == place.end()) return;
    Group& group = h.groups[found->second.group];
    const std::size_t name = number_of(names[found->second.group], v.name);
    if (name == group.names.size()) group.names.emplace_back(v.name), group.points.emplace_back();
    Point& point = group.points[name].emplace_back();
    point.run = found->second.run;
    if (v.worst_ratio) point.logs[0] = log_of_ratio(*v.worst_ratio);
    if (v.evidence) point.logs[1] = log_of_ratio(*v.evidence);
    if (v.seconds && *v.seconds > 0 && std::isfinite(*v.seconds))
      point.logs[2] = std::log(*v.seconds);
  });
  for (Group& group : h.groups)
    for (auto& points : group.points) std::ranges::stable_sort(points, {}, &Point::run);
  return h;
}

double median(std::vector<double> values) {
  const auto half = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, half);
  if (values.size() % 2 == 1) return *half;
  return (*half + *std::max_element(values.begin(), half)) / 2;
}

// A name may stand in a run several times, as the repetitions of a benchmark do; their median
// counts.
Series of_case(const Group& group, std::size_t name, Measure measure) {
  Series s{measure, &group, group.names[name], {}, {}};
  const auto& points = group.points[name];
  const std::size_t m = static_cast<std::size_t>(measure);
  for (std::size_t i = 0; i < points.size();) {
    std::vector<double> values;
    const std::size_t run = points[i].run;
    for (; i < points.size() && points[i].run == run; ++i)
      if (!std::isnan(points[i].logs[m])) values.push_back(points[i].logs[m]);
    if (values.empty()) continue;
    s.runs.push_back(run);
    s.logs.push_back(median(std::move(values)));
  }
  return s;
}

// The mean logarithm over the cases of a suite, which begins at 0. It moves from run to run by the
// mean change of the cases that both runs have, so a case that is added or left out moves nothing.
// Only where two runs of many cases share few, as suites of different seeds do, their means are
// compared.
Series of_suite(const Group& group, const std::vector<Series>& cases, Measure measure) {
  std::unordered_map<std::size_t, std::vector<std::pair<std::size_t, double>>> of_run;
  for (std::size_t c = 0; c < cases.size(); ++c)
    for (std::size_t i = 0; i < cases[c].runs.size(); ++i)
      of_run[cases[c].runs[i]].emplace_back(c, cases[c].logs[i]);
  Series s{measure, &group, "", {}, {}};
  std::vector<double> last(cases.size(), absent);
  const std::vector<std::pair<std::size_t, double>>* before = nullptr;
  const auto mean = [](const auto& of) {
    double sum = 0;
    for (const auto& [c, log] : of) sum += log;
    return sum / static_cast<double>(of.size());
  };
  double level = 0;
  for (const std::size_t run : group.runs) {
    const auto found = of_run.find(run);
    if (found == of_run.end()) continue;
    const auto& now = found->second;
    if (before) {
      double moved = 0;
      std::size_t shared = 0;
      for (const auto& [c, log] : now)
        if (!std::isnan(last[c])) moved += log - last[c], ++shared;
      if (2 * shared >= std::min(now.size(), before->size()))
        level += moved / static_cast<double>(shared);
      else if (std::min(now.size(), before->size()) >= many_cases)
        level += mean(now) - mean(*before);
      for (const auto& [c, log] : *before) last[c] = absent;
    }
    for (const auto& [c, log] : now) last[c] = log;
    before = &now;
    s.runs.push_back(run);
    s.logs.push_back(level);
  }
  return s;
}

std::vector<Series> all_series(const History& history, const AlarmRule& rule) {
  std::vector<Series> all;
  for (const Group& group : history.groups)
    for (const Measure measure : rule.measures) {
      std::vector<Series> cases;
      for (std::size_t name = 0; name < group.names.size(); ++name)
        if (Series s = of_case(group, name, measure); !s.logs.empty())
          cases.push_back(std::move(s));
      if (cases.size() > 1) all.push_back(of_suite(group, cases, measure));
      std::ranges::move(cases, std::back_inserter(all));
    }
  return all;
}

// The least number of runs before a change that let five runs after it show the change.
std::size_t least_history(const ChangeRule& rule) {
  std::size_t m = 1;
  while (rank_sum_tail(m, rule.least_after, 0) > granted(rule, 1)) ++m;
  return m;
}

bool is_constant(const Series& s, const ChangeRule& rule) {
  return s.logs.size() >= rule.equal_values &&
         std::ranges::all_of(s.logs, [&](double x) { return x == s.logs[0]; });
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) ||
        std::string_view("-._~").find(c) != text.npos)
      out += c;
    else out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  return out;
}

AlarmRun run_of(const RunEntry& run) { return {run.id, run.started, run.commit}; }

double median_of(const Series& s, std::size_t from, std::size_t to) {
  return median({s.logs.begin() + static_cast<std::ptrdiff_t>(from),
                 s.logs.begin() + static_cast<std::ptrdiff_t>(to)});
}

// The change points of a series whose level moved by the margin, against the level before or
// against the one that was told last: so many small steps are told, too.
std::vector<Alarm> alarms_of(const Series& s, const std::vector<RunEntry>& runs,
                             const AlarmRule& rule, const ChangeRule& change) {
  const std::vector<ChangePoint> points = change_points(s.logs, change);
  if (points.empty()) return {};
  const double percent = (s.measure == Measure::time ? rule.time_margin : rule.accuracy_margin) /
                         (s.name.empty() ? 10 : 1);
  const double margin = std::log1p(percent / 100);
  std::vector<Alarm> alarms;
  double level = median_of(s, 0, points[0].at), told = level;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const ChangePoint& p = points[i];
    const double after =
        median_of(s, p.at, i + 1 < points.size() ? points[i + 1].at : s.logs.size());
    const double before = std::fabs(after - level) >= std::fabs(after - told) ? level : told;
    level = after;
    if (std::fabs(after - before) < margin) continue;
    told = after;
    Alarm a{.measure = s.measure,
            .name = s.name,
            .suite = s.group->suite,
            .candidate = s.group->candidate,
            .hardware = s.group->hardware,
            .before = std::exp(before),
            .after = std::exp(after),
            .last_before = run_of(runs[s.runs[p.at - 1]]),
            .first_after = run_of(runs[s.runs[p.at]]),
            .found = run_of(runs[s.runs[p.found]]),
            .certain = p.certain,
            .reproduce = "",
            .link = ""};
    a.link = fmt::format("#run={}", a.first_after.id);
    if (!a.name.empty()) a.link += "&case=" + escaped(a.name);
    alarms.push_back(std::move(a));
  }
  return alarms;
}

bool is_told(const Alarm& a, const AlarmRule& rule) {
  return a.first_after.id >= rule.since && a.first_after.started >= rule.since_time;
}

constexpr const char* what_of(Measure measure) {
  switch (measure) {
    case Measure::accuracy: return "error/bound";
    case Measure::evidence: return "s/limit";
    case Measure::time: break;
  }
  return "time";
}

std::string level_of(const Alarm& a, double level) {
  if (a.name.empty() || a.measure != Measure::time) return fmt::format("{:.3g}", level);
  return fmt::format("{:.3g} s", level);
}

std::string line_of(const Alarm& a, const std::string& dashboard) {
  std::string text = fmt::format(
      "  {} x {:.3g}, {} to {}{}{}\n    {}\n", what_of(a.measure), a.ratio(), level_of(a, a.before),
      level_of(a, a.after), a.name.empty() ? " (mean of the suite, relative to its first run)" : "",
      a.certain ? ", certain" : fmt::format(", found in run {}", a.found.id),
      visible(a.name.empty() ? "suite " + a.suite : a.name));
  text += fmt::format("    {} on {}, {}\n", visible(a.candidate), visible(a.suite),
                      visible(a.hardware));
  if (!a.reproduce.empty()) text += fmt::format("    reproduce: {}\n", visible(a.reproduce));
  return text + fmt::format("    dashboard: {}{}\n", visible(dashboard), a.link);
}

std::string run_text(const AlarmRun& run) {
  return fmt::format("run {} ({}, {})", run.id, visible(run.started),
                     visible(run.commit.substr(0, 10)));
}

Json json_of(const AlarmRun& run) {
  return {{"run", run.id}, {"started", run.started}, {"commit", run.commit}};
}

Json json_of(const std::vector<Alarm>& alarms) {
  Json all = Json::array();
  for (const Alarm& a : alarms) {
    all.push_back({{"measure", std::string(name_of(a.measure))},
                   {"suite", a.suite},
                   {"candidate", a.candidate},
                   {"machine", a.hardware},
                   {"before", a.before},
                   {"after", a.after},
                   {"ratio", a.ratio()},
                   {"last_before", json_of(a.last_before)},
                   {"first_after", json_of(a.first_after)},
                   {"found", json_of(a.found)},
                   {"certain", a.certain},
                   {"link", a.link}});
    if (!a.name.empty()) all.back()["name"] = a.name;
    if (!a.reproduce.empty()) all.back()["reproduce"] = a.reproduce;
  }
  return all;
}

}  // namespace

Alarms find_alarms(const Store& store, const AlarmRule& rule) {
  const History history = read(store);
  const std::vector<Series> series = all_series(history, rule);
  Alarms alarms;
  alarms.series = series.size();
  for (const Group& group : history.groups) alarms.runs += group.runs.size();
  ChangeRule change;
  change.chance = false_alarms_of_a_year /
                  (runs_of_a_year * static_cast<double>(std::max(series.size(), least_series)));
  alarms.chance = change.chance;
  alarms.runs_needed = least_history(change) + change.least_after;
  for (const Series& s : series)
    alarms.short_series += s.logs.size() < alarms.runs_needed && !is_constant(s, change);
  std::vector<std::vector<Alarm>> found(series.size());
  parallel_for(static_cast<Index>(series.size()), 0, [&](Index i) {
    found[usize(i)] = alarms_of(series[usize(i)], history.runs, rule, change);
  });
  for (std::vector<Alarm>& of_series : found)
    for (Alarm& a : of_series) {
      if (!is_told(a, rule)) continue;
      if (!a.name.empty()) a.reproduce = store.reproduce(a.first_after.id, a.name);
      (a.worse() ? alarms.worse : alarms.better).push_back(std::move(a));
    }
  for (auto* told : {&alarms.worse, &alarms.better})
    std::ranges::stable_sort(*told, {}, [](const Alarm& a) {
      return std::tuple(a.first_after.started, a.first_after.id, a.last_before.id, !a.name.empty(),
                        a.measure, -std::fabs(std::log(a.ratio())));
    });
  return alarms;
}

std::string text_of(const Alarms& alarms, const std::string& dashboard) {
  constexpr std::size_t most = 10;
  std::string text;
  const auto pair = [](const Alarm& a) { return std::pair(a.last_before.id, a.first_after.id); };
  for (auto a = alarms.worse.begin(); a != alarms.worse.end();) {
    const auto end =
        std::find_if(a, alarms.worse.end(), [&](const Alarm& b) { return pair(b) != pair(*a); });
    const std::size_t n = static_cast<std::size_t>(end - a);
    text += fmt::format(
        "{} to {}: {}{}\n", run_text(a->last_before), run_text(a->first_after), counted(n, "alarm"),
        a->last_before.commit == a->first_after.commit ? ", with the same commit" : "");
    for (std::size_t k = 0; k < std::min(n, most); ++k)
      text += line_of(a[static_cast<std::ptrdiff_t>(k)], dashboard);
    if (n > most) text += fmt::format("  and {} more, which --json lists\n", n - most);
    a = end;
  }
  text += fmt::format("{}, {} for the better; {} over {}", counted(alarms.worse.size(), "alarm"),
                      counted(alarms.better.size(), "change"),
                      counted(alarms.series, "series", "series"), counted(alarms.runs, "run"));
  if (alarms.short_series > 0)
    text += fmt::format(
        "; {} of them noisy or new, with fewer than the {} runs that five runs after "
        "a change need",
        alarms.short_series, alarms.runs_needed);
  return text + "\n";
}

Json to_json(const Alarms& alarms) {
  return {{"format", 1},
          {"alarms", json_of(alarms.worse)},
          {"better", json_of(alarms.better)},
          {"runs", alarms.runs},
          {"series", alarms.series},
          {"short_series", alarms.short_series},
          {"runs_needed", alarms.runs_needed},
          {"chance", alarms.chance}};
}

}  // namespace assay
