#include "cli/run_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/options.h"
#include "cli/tell.h"
#include "harness/files.h"
#include "harness/results/schema.h"
#include "harness/results/told_outcome.h"
#include "reports/case_text.h"
#include "reports/github.h"
#include "reports/html.h"
#include "reports/junit.h"
#include "reports/markdown.h"
#include "reports/open_metrics.h"
#include "reports/sarif.h"
#include "reports/store.h"

namespace assay {
namespace {

double percent(std::int64_t part, std::int64_t of) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(of);
}

// Throws UsageError for a file that cannot be read or that holds something else.
template <class Document>
Document read_document(const char* option, const std::string& path, const char* written_by) {
  std::ifstream in(path, std::ios::binary);
  if (!in)
    throw UsageError(
        fmt::format("{}={}: {}", option, path, std::generic_category().message(errno)));
  const Json json = Json::parse(in, nullptr, false);
  const auto refuse = [&](const std::string& why) -> UsageError {
    return UsageError(
        fmt::format("{}={}: not what `{} --json` writes{}", option, path, written_by, why));
  };
  if (json.is_discarded()) throw refuse("");
  try {
    return from_json<Document>(json, "the file");
  } catch (const SchemaError& e) {
    throw refuse(fmt::format(": {}", e.what()));
  }
}

std::string sentence_of(const RunFacts& run, const RunSummary& s, std::size_t cases) {
  const OutcomeCounts& n = s.counts;
  std::string sentence =
      fmt::format("{}: {} passed, {} failed", counted(cases, run.unit), n.pass + n.suspect, n.fail);
  for (auto [count, what] : {std::pair{n.convention, "right by another convention"},
                             {n.suspect, "of the passed suspect"},
                             {n.inconclusive, "inconclusive"},
                             {n.unsupported, "unsupported"},
                             {n.error, n.error == 1 ? "error" : "errors"},
                             {run.not_run, "not run"}})
    if (count > 0) sentence += fmt::format(", {} {}", count, what);
  if (run.not_run > 0) sentence += ' ' + run.why_not_run;
  return sentence + fmt::format("; {} compared; seed {}; {:.1f} s",
                                counted(usize(s.elements), "element"), run.seed, run.seconds);
}

// What is told of a run that goes on.
RunSummary sums_of(const RunFacts& run, const RunTally& tally) {
  RunSummary s;
  tally.write_to(s);
  s.not_run = run.not_run;
  s.seconds = run.seconds;
  s.sentence = sentence_of(run, s, tally.cases());
  return s;
}

RunSummary summary_of(const RunFacts& run, const RunTally& tally) {
  RunSummary s = sums_of(run, tally);
  const std::vector<CaseResult>& results = tally.kept;
  s.shared = shared_features(results);
  s.causes = causes_of(results);
  if (run.required != 0 || tells_of_invariance(results)) s.invariances = invariances_of(results);
  s.conventions = conventions_seen(results, run.conventions);
  return s;
}

void tell_case(const CaseResult& r, bool explain) {
  for (const std::string& line : told_case(r)) tell("{}\n", line);
  if (!explain) return;
  for (const std::string& line : explained_case(r)) tell("{}\n", line);
}

// Failures of one cause are told once.
void print_cause(const Cause& c) {
  tell("{} x {}: {}\n", c.cases, c.outcome, c.reason);
  if (!c.looks_like.empty()) tell("  looks like: {}\n", c.looks_like);
  if (!c.features.empty()) tell("  with {}\n", fmt::format("{}", fmt::join(c.features, ", ")));
  tell("  the first: {}\n    {}\n  reproduce: {}\n", c.line, c.example, c.reproduce);
}

void print_conventions(const std::vector<ConventionSeen>& seen) {
  for (const ConventionSeen& s : seen)
    if (s.rule != ConventionRule::accept) tell("{}\n", s.sentence());
}

// What variants of a kernel declined of the cases that others did.
void print_declined_variants(const std::vector<CaseResult>& results) {
  std::map<std::string, std::int64_t> declined;
  for (const CaseResult& r : results)
    for (const auto& [name, relation] : r.relations)
      for (const auto& [why, n] : relation.declined) declined[why] += n;
  for (const auto& [why, n] : declined) tell("  declined by a variant: {} x {}\n", n, why);
}

void print_many(const Run& run, const RunFacts& facts) {
  if (const std::string shared = run.summary.shared.sentence(); !shared.empty())
    tell("{}\n", shared);
  for (const Cause& c : run.summary.causes) print_cause(c);
  std::map<std::string, int> why_unsupported;
  for (const CaseResult& r : run.results)
    if (r.outcome == Outcome::unsupported) ++why_unsupported[r.reason];
  for (const auto& [why, n] : why_unsupported) tell("  unsupported: {} x {}\n", n, why);
  print_declined_variants(run.results);
  for (const std::string& line : {facts.left_out, facts.state})
    if (!line.empty()) tell("{}\n", line);
  print_conventions(run.summary.conventions);
  for (const auto& [name, cells] : run.summary.adequacy)
    tell("power of the suite, {}: {} of {} cells shown{}\n", name, cells.shown, cells.cells,
         cells.missing.empty() ? "" : " (--json names the others)");
  if (run.summary.untold > 0)
    tell(
        "{} counted, and not looked at together with the others: of each outcome that is done "
        "with the first {}; {}\n",
        run.summary.untold == 1 ? "1 result is" : counted(run.summary.untold, "result") + " are",
        RunTally::kept_of_an_outcome,
        facts.files.store.empty() ? "--store keeps them all" : "the store has them all");
}

// What the bits of a row depend on, and what not.
void print_invariances(const std::vector<Invariance>& all) {
  std::vector<std::string> yes, not_asked;
  for (const Invariance& x : all) {
    const std::string name(name_of(x.to));
    if (x.answer == Invariance::Answer::yes)
      yes.push_back(fmt::format("{} ({})", name, counted(x.cases, "case")));
    if (x.answer == Invariance::Answer::not_asked)
      not_asked.push_back(fmt::format("{} ({})", name, x.why));
    if (x.answer == Invariance::Answer::no)
      tell("bits depend on {}: '{}': {}\n", name, x.line, x.why);
  }
  if (!yes.empty()) tell("bits do not depend on: {}\n", fmt::join(yes, ", "));
  if (!not_asked.empty()) tell("not asked of bits: {}\n", fmt::join(not_asked, ", "));
}

void print_results(const Run& run, const RunFacts& facts) {
  const bool single = run.results.size() == 1;
  if (single || facts.explain)
    for (const CaseResult& r : run.results) tell_case(r, facts.explain);
  if (!single) print_many(run, facts);
  if (!single || facts.explain || facts.required != 0) print_invariances(run.summary.invariances);
  for (const std::string& remark : facts.remarks) tell("{}\n", remark);
  tell("{}\n", run.summary.sentence);
}

// Annotations go to the log of the step. Its summary may hold those of earlier commands.
void tell_github(const Run& run) {
  for (const std::string& line : github_annotations(run)) tell("{}\n", line);
  const std::string path = std::getenv("GITHUB_STEP_SUMMARY");
  std::string kept;
  // A pipe keeps nothing, and reading it may never end.
  if (std::filesystem::is_regular_file(path)) {
    std::ifstream before(path, std::ios::binary);
    if (!before)  // what cannot be read would be lost
      throw UsageError(
          fmt::format("GITHUB_STEP_SUMMARY={}: {}", path, std::generic_category().message(errno)));
    kept.assign(std::istreambuf_iterator<char>(before), {});
  }
  write_file(path, kept + markdown_summary(run));
}

void write_run(const Run& run, const ReportFiles& files, const PageSections& sections) {
  if (!files.json.empty())
    write_file(files.json, to_json(run).dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  if (!files.junit.empty()) write_file(files.junit, junit_xml(run));
  if (!files.markdown.empty()) write_file(files.markdown, markdown_summary(run));
  if (!files.html.empty()) write_file(files.html, html_report(run, sections));
  if (!files.sarif.empty()) write_file(files.sarif, sarif_log(run));
  if (!files.openmetrics.empty()) write_file(files.openmetrics, open_metrics(stored(run)));
  if (files.github) tell_github(run);
}

// A promise that is required and that no case could ask has not been kept.
bool lacks_required(const RunFacts& facts, const Run& run) {
  bool lacks = false;
  for (const Invariance& x : run.summary.invariances) {
    if ((facts.required & bit_of(x.to)) == 0 || x.cases > 0) continue;
    tell(stderr, "assay: --require={}: asked of no case: {}\n", requirement_of(x.to), x.why);
    lacks = true;
  }
  return lacks;
}

int exit_status(const RunFacts& facts, const Run& run) {
  const OutcomeCounts& n = run.summary.counts;
  if (n.fail > 0) return some_failed;
  if (lacks_required(facts, run)) return bad_usage;
  if (n.compared() == 0 && n.error == 0) {
    tell(stderr, "assay: nothing was compared, so nothing has passed\n");
    return bad_usage;
  }
  if (const auto differ = failing_by_convention(run.results, run.summary.conventions); differ > 0) {
    tell(stderr,
         "assay: {} by a convention that nobody declared: declare it, or say --conventions warn\n",
         differ == 1 ? "1 case differs" : fmt::format("{} cases differ", differ));
    return some_failed;
  }
  const std::size_t cases = run.results.size() + run.summary.untold;
  const double supported =
      percent(static_cast<std::int64_t>(cases - n.unsupported), static_cast<std::int64_t>(cases));
  if (const double not_done = 100 - supported * facts.share_drawn;
      not_done > facts.most_unsupported) {
    tell(stderr, "assay: {:.1f}% of the {}, more than --max-unsupported={}\n", not_done,
         facts.share_drawn < 1 ? "suite is unsupported or left out" : "cases are unsupported",
         facts.most_unsupported);
    return some_failed;
  }
  if (n.error > 0)
    return std::ranges::any_of(run.results, &CaseResult::bad_input) ? bad_usage : machine_failed;
  return all_passed;
}

}  // namespace

void add_explain(CLI::App& command, bool& explain) {
  command.add_flag("--explain", explain,
                   "Tell every case in full: each number that was measured, with its meaning");
}

void add_report_files(CLI::App& command, ReportFiles& files) {
  command.add_option("--json", files.json, "Write the run as JSON")->check(writable());
  command.add_option("--junit", files.junit, "Write the run as JUnit XML")->check(writable());
  command.add_option("--html", files.html, "Write the run as one HTML page")->check(writable());
  command
      .add_option("--markdown", files.markdown,
                  "Write a summary of the run as Markdown, as a comment on a pull request")
      ->check(writable());
  command
      .add_option("--sarif", files.sarif,
                  "Write the failures as SARIF 2.1.0, at most 1,000, for code hosts")
      ->check(writable());
  command
      .add_option("--openmetrics", files.openmetrics,
                  "Write the run as OpenMetrics text, for Prometheus and its relatives")
      ->check(writable());
  command
      .add_flag("--github", files.github,
                "Print failures as annotations of GitHub Actions, and append the Markdown to the "
                "summary of the step (GITHUB_STEP_SUMMARY)")
      ->check(step_summary());
  command
      .add_option("--store", files.store,
                  "Append the run to this store, which is made if it is not there; `assay store` "
                  "reads it")
      ->check(appended());
}

PageSections sections_of_page(const ReportFiles& files) {
  PageSections sections;
  if (!files.faults.empty())
    sections.faults = read_document<FaultsScore>("--with-faults", files.faults, "assay faults");
  if (!files.fuzz.empty())
    sections.fuzz = read_document<FuzzSummary>("--with-fuzz", files.fuzz, "assay fuzz");
  return sections;
}

std::vector<std::size_t> worth_drawing(const std::vector<CaseResult>& results) {
  constexpr std::size_t most_failures = 12, most_passes = 8;
  std::vector<std::size_t> chosen, passes;
  const auto worst = [&](std::size_t k) { return worst_finite_ratio(results[k]); };
  for (std::size_t k = 0; k < results.size(); ++k) {
    if (results[k].outcome == Outcome::fail && chosen.size() < most_failures) chosen.push_back(k);
    if (results[k].outcome == Outcome::pass && worst(k) > 0) passes.push_back(k);
  }
  std::ranges::sort(passes, {}, [&](std::size_t k) { return std::pair(-worst(k), k); });
  passes.resize(std::min(passes.size(), most_passes));
  chosen.insert(chosen.end(), passes.begin(), passes.end());
  return chosen;
}

void take_pictures(CaseResult& result, const CaseResult& drawn) {
  if (drawn.outcome == result.outcome) result.pictures = drawn.pictures;
}

void RunReport::add(std::vector<CaseResult> results) {
  if (facts.goes_on && !facts.files.store.empty())
    not_stored_.insert(not_stored_.end(), results.begin(), results.end());
  tally.add(std::move(results));
}

Run RunReport::run_of(RunSummary summary, std::vector<CaseResult> results) const {
  return {facts.title,   facts.candidate,    facts.seed,
          facts.machine, std::move(summary), std::move(results)};
}

std::int64_t RunReport::store(const Run& part) {
  if (!store_) store_ = std::make_unique<Store>(facts.files.store);
  if (!stored_as_) stored_as_ = store_->append(part);
  else store_->extend(*stored_as_, part);
  return *stored_as_;
}

void RunReport::store_part() {
  if (not_stored_.empty() || Clock::now() < next_part_) return;
  const auto start = Clock::now();
  Run part = run_of(sums_of(facts, tally), std::exchange(not_stored_, {}));
  const auto keep = [&](const std::exception& e) {
    tell(stderr, "assay: {}; what is not stored is kept, and tried again\n", e.what());
    not_stored_ = std::move(part.results);
  };
  try {
    store(part);
  } catch (const StoreError& e) {
    keep(e);
  } catch (const StoreFailure& e) {
    keep(e);
  }
  next_part_ =
      seconds_from_now(std::max(first_part_after, seconds_since(start) * (1 / share_of_store - 1)));
}

int RunReport::finish() {
  const Run run = run_of(summary_of(facts, tally), tally.kept);
  print_results(run, facts);
  write_run(run, facts.files, facts.sections);
  if (!facts.files.store.empty())
    tell("store: run {} of {}\n",
         store(facts.goes_on ? run_of(run.summary, std::move(not_stored_)) : run),
         facts.files.store);
  return exit_status(facts, run);
}

}  // namespace assay
