// The commands assay store and assay compare.
#include "reports/store.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <system_error>
#include <utility>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "cli/tell.h"
#include "harness/files.h"
#include "harness/results/schema.h"
#include "reports/alarms.h"
#include "reports/bencher.h"
#include "reports/compare.h"
#include "reports/html.h"
#include "reports/markdown.h"
#include "reports/open_metrics.h"
#include "reports/otava.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

struct StoreOptions {
  std::string file;
  // If all are empty, the runs are listed.
  std::string import, benchmarks, export_to, dashboard, openmetrics, otava, bencher;
  bool alarms = false;
  std::string measures, since, json;
  AlarmRule rule;
};

struct CompareOptions {
  std::string a, b;                              // each is STORE#RUN
  double accuracy_margin = 5, time_margin = 10;  // in percent
  std::string markdown;
};

// Reading a pipe or a device may never end. `named` is how the message names the path.
void refuse_what_may_not_end(const std::string& named, const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::exists(status) && !fs::is_regular_file(status))
    throw UsageError(fmt::format("{}: is no regular file", named));
}

// Opens what an option names.
std::ifstream opened_input(const char* option, const std::string& path) {
  const std::string named = fmt::format("{}={}", option, path);
  refuse_what_may_not_end(named, path);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UsageError(fmt::format("{}: cannot be read", named));
  return in;
}

Json parse_benchmarks(const std::string& path) {
  std::ifstream in = opened_input("--benchmarks", path);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  try {
    return parse_json(text, path);
  } catch (const SchemaError& e) {
    throw UsageError(e.what());
  }
}

Store opened(const std::string& path, Store::Use use) {
  refuse_what_may_not_end(path, path);
  errno = 0;
  if (use == Store::Use::read && !std::ifstream(path))
    throw UsageError(fmt::format(
        "{}: {}", path,
        errno == ENOENT ? "there is no such store" : std::generic_category().message(errno)));
  return Store(path, use);
}

// Reads the run that STORE#RUN names.
StoredRun run_of(const std::string& text) {
  const auto hash = text.rfind('#');
  std::int64_t id = 0;
  if (hash == std::string::npos)
    throw UsageError(fmt::format(
        "'{}': STORE#RUN is wanted, as runs.db#3; `assay store STORE` lists the runs", text));
  const auto [end, error] = std::from_chars(text.data() + hash + 1, text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size())
    throw UsageError(fmt::format("'{}': {} is no number of a run", text, text.substr(hash + 1)));
  return opened(text.substr(0, hash), Store::Use::read).run(id);
}

std::vector<StoredRun> all_runs(const Store& s) {
  std::vector<StoredRun> runs;
  for (const RunEntry& r : s.runs()) runs.push_back(s.run(r.id));
  return runs;
}

std::set<Measure> read_measures(const std::string& text) {
  std::set<Measure> measures;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const std::optional<Measure> measure = value_named<Measure>(word);
    if (!measure)
      throw UsageError(
          fmt::format("--measures={}: '{}' is none of accuracy, evidence and time", text, word));
    measures.insert(*measure);
  }
  return measures;
}

// Reads the number of a run, or the beginning of a time from its year to its day or further.
void read_since(const std::string& text, AlarmRule& rule) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rule.since);
  if (error == std::errc() && end == text.data() + text.size() && rule.since > 0) return;
  constexpr std::string_view day = "2026-11-26", midnight = "2026-11-26T00:00:00Z";
  rule.since = 0;
  rule.since_time = text;
  try {
    if (text.size() < day.size()) throw std::invalid_argument("too short");
    seconds_of_time(text + std::string(midnight.substr(std::min(text.size(), midnight.size()))));
  } catch (const std::invalid_argument&) {
    throw UsageError(fmt::format(
        "--since={}: the number of a run, or a time as {} or {}, is wanted", text, day, midnight));
  }
}

// Reads what is asked about alarms, before anything is done.
void read_alarms(StoreOptions& o) {
  for (const auto& [name, value] :
       {std::pair{"--measures", &o.measures}, {"--since", &o.since}, {"--json", &o.json}})
    if (!o.alarms && !value->empty())
      throw UsageError(fmt::format("{} says how --alarms answers, which is not there", name));
  if (!o.measures.empty()) o.rule.measures = read_measures(o.measures);
  if (!o.since.empty()) read_since(o.since, o.rule);
}

// Tells the alarms, and returns whether there are any.
bool tell_alarms(const StoreOptions& o, const Alarms& alarms) {
  std::fputs(text_of(alarms, o.dashboard).c_str(), stdout);
  if (!o.json.empty())
    write_file(o.json, to_json(alarms).dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  return !alarms.worse.empty();
}

// Writes the runs for other programs.
void write_exchange(const StoreOptions& o, const Store& s) {
  if (o.openmetrics.empty() && o.otava.empty() && o.bencher.empty()) return;
  const std::vector<StoredRun> runs = all_runs(s);
  if (runs.empty()) throw UsageError(fmt::format("{}: the store holds no runs", o.file));
  const auto write = [&](const std::string& path, const auto& text) {
    if (path.empty()) return;
    try {
      write_file(path, text());
    } catch (const std::invalid_argument& e) {
      throw UsageError(fmt::format("{}: {}", o.file, e.what()));
    }
  };
  write(o.openmetrics, [&] { return open_metrics(runs); });
  write(o.otava, [&] { return otava_history(runs); });
  write(o.bencher, [&] { return bencher_metrics(runs.back()); });
}

int store(StoreOptions o) {
  read_alarms(o);
  // A store is not made if these cannot be read.
  std::ifstream import;
  Json benchmarks;
  if (!o.import.empty()) import = opened_input("--import", o.import);
  if (!o.benchmarks.empty()) benchmarks = parse_benchmarks(o.benchmarks);
  const bool appends = !o.import.empty() || !o.benchmarks.empty();
  Store s = opened(o.file, appends ? Store::Use::write : Store::Use::read);
  if (!o.import.empty()) tell("{} imported\n", counted(s.import_lines(import), "run"));
  if (!o.benchmarks.empty()) tell("run {}\n", s.append_benchmarks(benchmarks, o.benchmarks));
  if (!o.export_to.empty()) {
    std::ostringstream lines;
    s.export_lines(lines);
    write_file(o.export_to, lines.str());
  }
  std::optional<Alarms> alarms;
  if (o.alarms || !o.dashboard.empty()) alarms = find_alarms(s, o.rule);
  if (!o.dashboard.empty()) {
    write_file(o.dashboard, html_dashboard(s, *alarms,
                                           fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                                                       fmt::gmtime(std::time(nullptr)))));
    tell("dashboard: {}\n", o.dashboard);
  }
  write_exchange(o, s);
  if (!o.alarms &&
      std::ranges::all_of(std::array{&o.import, &o.benchmarks, &o.export_to, &o.dashboard,
                                     &o.openmetrics, &o.otava, &o.bencher},
                          [](const std::string* option) { return option->empty(); }))
    for (const RunEntry& r : s.runs())
      tell("{:>5}  {}  {:<9}  {}  {} on {}: {}\n", r.id, r.started, r.kind, r.commit.substr(0, 10),
           r.candidate, r.title, r.sentence);
  const bool alarmed = o.alarms && tell_alarms(o, *alarms);
  return static_cast<int>(alarmed ? some_failed : all_passed);
}

int compare(const CompareOptions& o) {
  const StoredRun a = run_of(o.a), b = run_of(o.b);
  const Comparison c = compare_runs(a, b);
  tell("{} in both, {} in the first alone, {} in the second alone\n", counted(c.shared, "case"),
       c.only_a, c.only_b);
  bool worse = false;
  const auto say = [&](const char* what, const Effect& e, double margin) {
    if (e.cases == 0) return tell("  {}: no case has it in both\n", what);
    // Only a change that the whole interval confirms is told.
    const bool beyond = e.low > 1 + margin / 100;
    worse = worse || beyond;
    tell("  {}: x {:.4g} [{:.4g}, {:.4g}] over {}{}\n", what, e.mean, e.low, e.high,
         counted(e.cases, "case"), beyond ? fmt::format(", beyond the margin of {}%", margin) : "");
  };
  say("largest error/bound", c.accuracy, o.accuracy_margin);
  say("time", c.seconds, o.time_margin);
  for (const std::string& change : c.changed) {
    tell("  {}\n", change);
    worse = worse || change.find("-> fail") != std::string::npos ||
            change.find("-> error") != std::string::npos;
  }
  if (!o.markdown.empty())
    write_file(o.markdown, markdown_comparison(a, b, c, o.accuracy_margin, o.time_margin));
  return static_cast<int>(worse ? some_failed : all_passed);
}

}  // namespace

Command add_store(CLI::App& app) {
  const auto o = std::make_shared<StoreOptions>();
  CLI::App* command = app.add_subcommand(
      "store", "List, export and import the runs of a store, which is one SQLite file");
  command->add_option("STORE", o->file, "The file that --store appends to")
      ->check(stored())
      ->required();
  command
      ->add_option("--export", o->export_to,
                   "Write all runs to this file as JSON, one line for each")
      ->check(writable());
  command
      ->add_option("--import", o->import,
                   "Append the runs of such a file, either all of them or none")
      ->check(read_only());
  command
      ->add_option("--dashboard", o->dashboard,
                   "Write accuracy and speed over time as one HTML page")
      ->check(writable());
  command
      ->add_option("--benchmarks", o->benchmarks,
                   "Append what Google Benchmark wrote with --benchmark_out_format=json")
      ->check(read_only());
  command
      ->add_option("--openmetrics", o->openmetrics,
                   "Write all runs as OpenMetrics text, each value with the time of its run")
      ->check(writable());
  command
      ->add_option("--otava", o->otava,
                   "Write all runs as JSON for Apache Otava, which looks for change points")
      ->check(writable());
  command
      ->add_option("--bencher", o->bencher,
                   "Write the last run as JSON in the metric format of Bencher")
      ->check(writable());
  command->add_flag("--alarms", o->alarms,
                    "Tell which cases and suites became less accurate, less typical or slower, and "
                    "from which run on");
  command->add_option("--measures", o->measures,
                      "What alarms are asked for: some of accuracy,evidence,time; without it all");
  command->add_option("--since", o->since,
                      "Tell only alarms of changes from this run on, or from this time on");
  command->add_option("--json", o->json, "Write the alarms as JSON, with changes for the better")
      ->check(writable());
  command
      ->add_option("--accuracy-margin", o->rule.accuracy_margin,
                   "Percent by which error/bound or s of a case has to grow; of a suite a tenth")
      ->transform(number_in(0.0, 1e6))
      ->capture_default_str();
  command
      ->add_option("--time-margin", o->rule.time_margin,
                   "Percent by which a case has to slow down; a suite a tenth")
      ->transform(number_in(0.0, 1e6))
      ->capture_default_str();
  command->footer(
      "Without an option the runs are listed. Exit status: 0, 1 with --alarms if there are any, 2 "
      "a "
      "file is no store, is damaged or cannot be read, 3 one cannot be written.\n\nExamples:\n"
      "  assay check --suite tiny --store runs.db\n"
      "  assay store runs.db\n"
      "  assay store runs.db --dashboard runs.html\n"
      "  assay store runs.db --alarms --measures accuracy --since 2026-11-01 --json alarms.json\n"
      "  assay store runs.db --openmetrics runs.txt --otava runs.json --bencher last.json\n"
      "  assay store runs.db --export runs.jsonl && assay store copy.db --import runs.jsonl");
  return {command, [o] { return store(*o); }};
}

Command add_compare(CLI::App& app) {
  const auto o = std::make_shared<CompareOptions>();
  CLI::App* command =
      app.add_subcommand("compare",
                         "Compare two runs of a store: how much nearer the second is to the bounds "
                         "and how much slower, with intervals; exit status 1 beyond the margins");
  command->add_option("A", o->a, "STORE#RUN, as runs.db#3")->check(read_run())->required();
  command->add_option("B", o->b, "The other run, likewise; ratios are B over A")
      ->check(read_run())
      ->required();
  command
      ->add_option("--accuracy-margin", o->accuracy_margin,
                   "Percent that the largest error/bound may grow")
      ->transform(number_in(0.0, 1e6))
      ->capture_default_str();
  command->add_option("--time-margin", o->time_margin, "Percent that the candidate may slow down")
      ->transform(number_in(0.0, 1e6))
      ->capture_default_str();
  command
      ->add_option("--markdown", o->markdown,
                   "Write the comparison as Markdown, as a comment on a pull request")
      ->check(writable());
  command->footer(
      "Cases are matched by their line, so both runs need the same --seed. Exit status: 0 within "
      "the margins, 1 a whole interval lies\n"
      "beyond its margin or a case fails that did not, 2 bad usage, or no case in "
      "common.\n\nExamples:\n"
      "  assay check --suite tiny --store runs.db && assay check --suite tiny --candidate unfused "
      "--store runs.db\n"
      "  assay compare runs.db#1 runs.db#2\n"
      "  assay compare runs.db#1 runs.db#2 --accuracy-margin 0 --time-margin 50");
  return {command, [o] { return compare(*o); }};
}

}  // namespace assay
