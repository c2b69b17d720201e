#include "cli/selection.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <map>
#include <utility>

#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "harness/cases/suites.h"
#include "harness/text.h"

namespace assay {
namespace {

// How many cases of the whole suite need features that are not in `has`, and how many need which.
std::string left_out(const std::vector<Case>& whole, const Features& has) {
  std::map<std::string, std::size_t> missing;
  std::size_t cases = 0;
  for (const Case& c : whole)
    if (const std::string why = has.missing(c); !why.empty()) {
      ++cases;
      ++missing[why];
    }
  std::vector<std::string> reasons;
  for (const auto& [why, n] : missing) reasons.push_back(fmt::format("{} ({})", why, n));
  return fmt::format(
      "the suite is drawn for what the candidate does; of the {} for one that does everything, {} "
      "need what it has not{}{}",
      counted(whole.size(), "case"), cases, reasons.empty() ? "" : ": ", fmt::join(reasons, ", "));
}

// The line below a case line that points at a column of it, counted from 1.
std::string mark_under(const std::string& line, std::size_t column) {
  if (column == 0) return {};
  const std::size_t before = places_of(visible(line.substr(0, column - 1)));
  return fmt::format("  {}^", std::string(before, ' '));
}

}  // namespace

Shard parse_shard(const std::string& text) {
  Shard shard;
  if (text.empty()) return shard;
  const char* end = text.data() + text.size();
  const auto [slash, first] = std::from_chars(text.data(), end, shard.i);
  if (first == std::errc() && slash != end && *slash == '/') {
    const auto [stop, second] = std::from_chars(slash + 1, end, shard.n);
    if (second == std::errc() && stop == end && shard.i < shard.n) return shard;
  }
  throw UsageError(fmt::format("--shard={}: expected i/n with 0 <= i < n, as 0/4", text));
}

void add_shard(CLI::App& command, std::string& shard, const std::string& unit) {
  command.add_option(
      "--shard", shard,
      fmt::format("i/n, as 0/4: run every n-th {}, beginning with the i-th, counted from 0", unit));
}

void add_selection(CLI::App& command, SelectionOptions& o) {
  auto* suite = command.add_option("--suite", o.suite,
                                   fmt::format("One of {}", fmt::join(suite_names(), ", ")));
  auto* lines = command.add_option("--case", o.cases,
                                   "A case line (repeatable); `assay notation` explains them");
  auto* file = command
                   .add_option("--cases", o.cases_file,
                               "A file of case lines; a line that begins with # is a comment")
                   ->check(read_only());
  suite->excludes(lines)->excludes(file);
  command.add_option("--filter", o.filter, "Only cases whose line contains this text");
  command
      .add_option("--seed", o.seed,
                  "The seed of the inputs of a suite; a case line has a seed of its own")
      ->transform(any_number())
      ->capture_default_str();
  add_shard(command, o.shard, "case");
}

Selection select_cases(const SelectionOptions& o, std::uint64_t seed, const Features& has) {
  if (o.suite.empty() && o.cases.empty() && o.cases_file.empty())
    throw UsageError(fmt::format("--suite, --case or --cases is needed; the suites are {}",
                                 fmt::join(suite_names(), ", ")));
  Selection s;
  if (!o.suite.empty()) {
    Suite suite = make_suite(o.suite, seed, has);
    s = {std::string(suite.name), std::move(suite.notes), std::move(suite.cases), {}, 1};
    if (!has.has_all()) {
      const std::vector<Case> whole = make_suite(o.suite, seed).cases;
      s.left_out = left_out(whole, has);
      s.share_drawn =
          std::min(1.0, static_cast<double>(s.cases.size()) /
                            static_cast<double>(std::max<std::size_t>(1, whole.size())));
    }
    if (s.cases.empty()) throw UsageError(fmt::format("nothing to run: {}", s.left_out));
  } else {
    s.title = "cases";
    std::vector<std::string> lines = o.cases;
    if (!o.cases_file.empty()) {
      std::ifstream in(o.cases_file);
      if (!in) throw UsageError(fmt::format("--cases={}: cannot be read", o.cases_file));
      for (std::string line; std::getline(in, line);)
        if (!line.empty() && line[0] != '#') lines.push_back(line);
    }
    for (std::size_t k = 0; k < lines.size(); ++k) {
      try {
        s.cases.push_back(parse_case(lines[k]));
      } catch (const CaseError& e) {
        throw UsageError(fmt::format("{}\n  {}\n{}", e.what(), visible(lines[k]),
                                     mark_under(lines[k], e.column)));
      }
    }
  }
  if (!o.filter.empty()) {
    const std::size_t before = s.cases.size();
    std::erase_if(s.cases,
                  [&](const Case& c) { return print_case(c).find(o.filter) == std::string::npos; });
    if (s.cases.empty())
      throw UsageError(
          fmt::format("--filter={}: none of {} contains it", o.filter, counted(before, "case")));
  }
  if (!o.shard.empty()) {
    const Shard shard = parse_shard(o.shard);
    std::vector<Case> mine;
    for (std::size_t k = shard.i; k < s.cases.size(); k += shard.n) mine.push_back(s.cases[k]);
    if (mine.empty())
      throw UsageError(
          fmt::format("--shard={}: no case of {} falls into it", o.shard, s.cases.size()));
    s.cases = std::move(mine);
  }
  if (s.cases.empty()) throw UsageError("nothing to run: no case was given");
  return s;
}

}  // namespace assay
