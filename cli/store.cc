// assay store and assay compare.
#include "reports/store.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <charconv>
#include <ctime>
#include <fstream>
#include <iostream>
#include <sstream>

#include "cli/exit_status.h"
#include "harness/files.h"
#include "reports/compare.h"
#include "reports/html.h"
#include "reports/markdown.h"

namespace assay {
namespace {

Json parse_file(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw UsageError(fmt::format("{}: cannot be read", path));
  try {
    return Json::parse(in);
  } catch (const Json::exception& e) {
    throw UsageError(fmt::format("{}: {}", path, e.what()));
  }
}

Store opened(const std::string& path, bool make) {
  if (!make && !std::ifstream(path)) throw UsageError(fmt::format("{}: there is no such store", path));
  return Store(path);
}

// STORE#RUN.
StoredRun run_of(const std::string& text) {
  const auto hash = text.rfind('#');
  std::int64_t id = 0;
  if (hash == std::string::npos) throw UsageError(fmt::format("'{}': STORE#RUN is wanted, as runs.db#3; `assay store STORE` lists the runs", text));
  const auto [end, error] = std::from_chars(text.data() + hash + 1, text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size()) throw UsageError(fmt::format("'{}': {} is no number of a run", text, text.substr(hash + 1)));
  return opened(text.substr(0, hash), false).run(id);
}

}  // namespace

int store(const StoreOptions& o) {
  return exit_status_of([&] {
    Store s = opened(o.file, !o.import.empty() || !o.benchmarks.empty());
    if (!o.import.empty()) {
      std::ifstream in(o.import);
      if (!in) throw UsageError(fmt::format("--import={}: cannot be read", o.import));
      fmt::print("{} runs imported\n", s.import_lines(in));
    }
    if (!o.benchmarks.empty()) fmt::print("run {}\n", s.append_benchmarks(parse_file(o.benchmarks), o.benchmarks));
    if (!o.export_to.empty()) {
      std::ostringstream lines;
      s.export_lines(lines);
      write_file(o.export_to, lines.str());
    }
    if (!o.dashboard.empty()) {
      std::vector<StoredRun> runs;
      for (const RunEntry& r : s.runs()) runs.push_back(s.run(r.id));
      write_file(o.dashboard, html_dashboard(runs, fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))));
      fmt::print("dashboard: {}\n", o.dashboard);
    }
    if (o.import.empty() && o.benchmarks.empty() && o.export_to.empty() && o.dashboard.empty())
      for (const RunEntry& r : s.runs()) fmt::print("{:>5}  {}  {:<9}  {}  {} on {}: {}\n", r.id, r.started, r.kind, r.commit.substr(0, 10), r.candidate, r.title, r.sentence);
    return static_cast<int>(all_passed);
  });
}

int compare(const CompareOptions& o) {
  return exit_status_of([&] {
    const StoredRun a = run_of(o.a), b = run_of(o.b);
    const Comparison c = compare_runs(a, b);
    fmt::print("{} cases in both, {} in the first alone, {} in the second alone\n", c.shared, c.only_a, c.only_b);
    bool worse = false;
    const auto say = [&](const char* what, const Effect& e, double margin) {
      if (e.cases == 0) return fmt::print("  {}: no case has it in both\n", what);
      // Only what the whole interval says.
      const bool beyond = e.low > 1 + margin / 100;
      worse = worse || beyond;
      fmt::print("  {}: x {:.4g} [{:.4g}, {:.4g}] over {} cases{}\n", what, e.mean, e.low, e.high, e.cases, beyond ? fmt::format(", beyond the margin of {}%", margin) : "");
    };
    say("largest error/bound", c.accuracy, o.accuracy_margin);
    say("time", c.seconds, o.time_margin);
    for (const std::string& change : c.changed) {
      fmt::print("  {}\n", change);
      worse = worse || change.find("-> fail") != std::string::npos || change.find("-> error") != std::string::npos;
    }
    if (!o.markdown.empty()) write_file(o.markdown, markdown_comparison(a, b, c, o.accuracy_margin, o.time_margin));
    return static_cast<int>(worse ? some_failed : all_passed);
  });
}

}  // namespace assay
