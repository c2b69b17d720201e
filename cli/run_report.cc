#include "cli/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/exit_status.h"
#include "cli/file_roles.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "cli/tell.h"
#include "harness/files.h"
#include "reports/html.h"
#include "reports/junit.h"
#include "reports/markdown.h"
#include "reports/store.h"

namespace assay {
namespace {

double percent(std::int64_t part, std::int64_t of) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(of);
}

// The outputs in the order of their names, as JSON has them.
std::map<std::string_view, std::pair<Output, const Compared*>> by_name(const Verdict& v) {
  std::map<std::string_view, std::pair<Output, const Compared*>> sorted;
  for (const auto& [output, part] : v.outputs) sorted[name_of(output)] = {output, &part};
  return sorted;
}

void print_comparison(const Verdict& v) {
  std::vector<std::string> compared;
  for (const auto& [name, part] : by_name(v))
    compared.push_back(fmt::format("{} of {}", part.second->elements, name));
  tell("  compared: {}; inside {}, outside {}, hull only {}, exact {}\n", fmt::join(compared, ", "),
       v.inside, v.outside, v.hull_only, v.exact);
  for (const auto& [why, n] : v.failures) tell("  {} x {}\n", n, why);
  for (const auto& [why, n] : v.excused) tell("  {} excused: {}\n", n, why);
  if (v.nan_expected != 0 || v.nan_found != 0 || v.infinity_found != 0 || v.infinity_expected != 0)
    tell("  NaN: {} found, {} belong there; infinities: {} found, {} belong there\n", v.nan_found,
         v.nan_expected, v.infinity_found, v.infinity_expected);
  tell("  rows: {} of {} judged, {} in ball arithmetic\n", v.rows_judged, v.rows_total,
       v.rows_in_balls);
}

void print_worst(Output output, const Element& w, Index row_tile) {
  // C has no batch, no head and no tiles of rows.
  const bool product = output == Output::c;
  const bool of_keys = output == Output::dk || output == Output::dv;
  const std::string head = product ? "" : fmt::format("b={} h={} ", w.b, w.h);
  const std::string column = w.column >= 0 ? fmt::format(" column={}", w.column) : "";
  const std::string tile = product ? "" : fmt::format(" (tile {})", w.row / row_tile);
  tell(
      "  worst {}: error/bound {:.9g} ({:.9g} ulp) at {}{}={}{}{}: {:.9g}, exact {:.9g}, "
      "bound {:.9g}\n",
      name_of(output), w.ratio, w.ulp, head, of_keys ? "key" : "row", w.row, column, tile, w.got,
      w.exact, w.bound);
}

void print_power(const Verdict& v) {
  const Power& p = v.power;
  const bool product = v.outputs.contains(Output::c);
  tell("  power, {} {}:", p.pairs, product ? "terms of sums" : "visible (row, key) pairs");
  for (std::size_t k = 0; k < change_count; ++k) {
    tell("  {} {:.1f}%", name_of(static_cast<Change>(k)), percent(p.by_either[k], p.pairs));
    if (v.outputs.contains(Output::lse))
      tell(" (O {:.1f}%, LSE {:.1f}%)", percent(p.by_output[k], p.pairs),
           percent(p.by_lse[k], p.pairs));
  }
  tell("\n");
}

void print_gradient_power(const GradientPower& g) {
  tell(
      "  power of gradients, {} visible pairs, each left out of its sums: {:.1f}% shown (dQ "
      "{:.1f}%, dK {:.1f}%, dV {:.1f}%)\n",
      g.pairs, percent(g.by_any, g.pairs), percent(g.by_dq, g.pairs), percent(g.by_dk, g.pairs),
      percent(g.by_dv, g.pairs));
}

// Whether errors are typical, of which arithmetic, and what came nearest to a limit.
void print_evidence(const Evidence& e) {
  if (!e.not_asked.empty()) tell("  evidence: not asked: {}\n", e.not_asked);
  if (e.arithmetic.empty()) return;
  std::vector<std::string> rows;
  for (const auto& [output, row] : e.rows)
    rows.push_back(fmt::format("{} {:.2g} (limit {:.2g})", name_of(output), row.s, row.limit));
  tell("  evidence: errors {} those of {}; largest, in units of typical ones: {}\n",
       e.fits ? "are" : "come nearest to", e.arithmetic, fmt::join(rows, ", "));
  if (!e.filters.empty()) {
    const FilterAnswer& f = e.filters.front();
    tell(
        "  evidence: of {} faults looked for, most of \"{}\": {:.2g} of it, z {:.2g} "
        "(limit {:.2g})\n",
        e.questions, f.fault, f.share, f.z, e.z_limit);
  }
}

void print_single(const CaseResult& r) {
  const Verdict& v = r.verdict;
  tell("{}\n  {}: {}\n", r.line, name_of(r.outcome), r.reason);
  if (r.was_compared()) {
    tell("  contract: {}\n", v.contract);
    print_comparison(v);
    for (const auto& [name, part] : by_name(v))
      if (part.second->worst.bound > 0) print_worst(part.first, part.second->worst, v.row_tile);
  }
  print_evidence(v.evidence);
  const bool right = passed(r.outcome);
  if (right)
    tell("  bias: mean signed error/bound {:.3g}, slope t {:.3g}\n", v.mean_ratio, v.slope_t);
  if (right && v.power.pairs != 0) print_power(v);
  if (r.quantization)
    tell(
        "  quantization, whatever the kernel does: W is off by {:.2g}, A W by {:.2g} (rms "
        "over rms)\n",
        r.quantization->weights, r.quantization->products);
  if (right && v.gradient_power.pairs > 0) print_gradient_power(v.gradient_power);
  for (const auto& [name, relation] : r.relations)
    tell("  relation {}: {}\n", name, text_of(relation));
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
  for (auto [count, what] : {std::pair{n.suspect, "of the passed suspect"},
                             {n.inconclusive, "inconclusive"},
                             {n.unsupported, "unsupported"},
                             {n.error, n.error == 1 ? "error" : "errors"},
                             {run.not_run, "not run"}})
    if (count > 0) sentence += fmt::format(", {} {}", count, what);
  if (run.not_run > 0) sentence += ' ' + run.why_not_run;
  return sentence + fmt::format("; {} compared; seed {}; {:.1f} s",
                                counted(usize(s.elements), "element"), run.seed, run.seconds);
}

RunSummary summary_of(const RunFacts& run, const std::vector<CaseResult>& results) {
  RunSummary s;
  s.counts = count_outcomes(results);
  s.not_run = run.not_run;
  s.seconds = run.seconds;
  Adequacy adequacy;
  for (const CaseResult& r : results) {
    s.elements += r.elements_compared();
    adequacy.add(r);
  }
  s.adequacy = adequacy.summary();
  s.sentence = sentence_of(run, s, results.size());
  return s;
}

void print_results(const Run& run, const std::string& left_out) {
  const bool single = run.results.size() == 1;
  if (single) print_single(run.results[0]);
  std::map<std::string, int> why_unsupported;
  for (const CaseResult& r : run.results) {
    if (r.outcome == Outcome::unsupported) ++why_unsupported[r.reason];
    if (r.outcome != Outcome::fail && r.outcome != Outcome::error) continue;
    if (!single) tell("{}: {}\n", name_of(r.outcome), r.reason);
    tell("  reproduce: {}\n", r.reproduce);
  }
  for (const auto& [why, n] : why_unsupported) tell("  unsupported: {} x {}\n", n, why);
  if (!left_out.empty()) tell("{}\n", left_out);
  if (!single)
    for (const auto& [name, cells] : run.summary.adequacy)
      tell("power of the suite, {}: {} of {} cells shown{}\n", name, cells.shown, cells.cells,
           cells.missing.empty() ? "" : " (--json names the others)");
  tell("{}\n", run.summary.sentence);
}

void write_run(const Run& run, const ReportFiles& files, const PageSections& sections) {
  if (!files.json.empty())
    write_file(files.json, to_json(run).dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  if (!files.junit.empty()) write_file(files.junit, junit_xml(run));
  if (!files.markdown.empty()) write_file(files.markdown, markdown_summary(run));
  if (!files.html.empty()) write_file(files.html, html_report(run, sections));
  if (!files.store.empty())
    tell("store: run {} of {}\n", Store(files.store).append(run), files.store);
}

int exit_status(const RunFacts& facts, const Run& run) {
  const OutcomeCounts& n = run.summary.counts;
  if (n.fail > 0) return some_failed;
  if (n.compared() == 0 && n.error == 0) {
    tell(stderr, "assay: nothing was compared, so nothing has passed\n");
    return bad_usage;
  }
  const double unsupported = percent(static_cast<std::int64_t>(n.unsupported),
                                     static_cast<std::int64_t>(run.results.size()));
  if (unsupported > facts.most_unsupported) {
    tell(stderr, "assay: {:.1f}% of the cases are unsupported, more than --max-unsupported={}\n",
         unsupported, facts.most_unsupported);
    return some_failed;
  }
  if (n.error > 0)
    return std::ranges::any_of(run.results, &CaseResult::bad_input) ? bad_usage : machine_failed;
  return all_passed;
}

}  // namespace

void add_report_files(CLI::App& command, ReportFiles& files) {
  command.add_option("--json", files.json, "Write the run as JSON")->check(writable());
  command.add_option("--junit", files.junit, "Write the run as JUnit XML")->check(writable());
  command.add_option("--html", files.html, "Write the run as one HTML page")->check(writable());
  command
      .add_option("--markdown", files.markdown,
                  "Write a summary of the run as Markdown, as a comment on a pull request")
      ->check(writable());
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

int report_run(const RunFacts& facts, const std::vector<CaseResult>& results) {
  const Run run{
      facts.title, facts.candidate, facts.seed, this_machine(), summary_of(facts, results),
      results};
  print_results(run, facts.left_out);
  write_run(run, facts.files, facts.sections);
  return exit_status(facts, run);
}

}  // namespace assay
