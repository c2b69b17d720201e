#include "reports/case_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "harness/results/told_arithmetic.h"
#include "harness/results/told_outcome.h"

namespace assay {
namespace {

double percent(std::int64_t part, std::int64_t of) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(of);
}

bool of_keys(Output output) { return output == Output::dk || output == Output::dv; }

// "O[b=0, h=1, row=2, column=3]"
std::string place_of(Output output, const Element& e) {
  const std::string column = e.column >= 0 ? fmt::format(", column={}", e.column) : "";
  // C and W have no batch and no head.
  if (output == Output::c) return fmt::format("C[row={}{}]", e.row, column);
  if (output == Output::w) return fmt::format("W[k={}, n={}]", e.row, e.column);
  return fmt::format("{}[b={}, h={}, {}={}{}]", name_of(output), e.b, e.h,
                     of_keys(output) ? "key" : "row", e.row, column);
}

std::string compared_elements(const Verdict& v) {
  std::vector<std::string> parts;
  for (const auto& [output, part] : v.outputs)
    parts.push_back(fmt::format("{} of {}", part.elements, name_of(output)));
  return fmt::format("{}", fmt::join(parts, ", "));
}

// What was compared, and what kept elements or rows from being compared with a bound.
std::string comparison(const Verdict& v) {
  std::string text = "  compared: " + compared_elements(v);
  if (v.rows_judged < v.rows_total)
    text += fmt::format(" ({} of {} rows)", v.rows_judged, v.rows_total);
  if (v.hull_only > 0) text += fmt::format("; {} without a bound of their own", v.hull_only);
  std::int64_t excused = 0;
  for (const auto& [why, n] : v.excused) excused += n;
  if (excused > 0) text += fmt::format("; {} excused", excused);
  const std::string contract = told_contract(v);
  return contract.empty() ? text : text + "; contract: " + contract;
}

// The outputs that have an element with a bound, with that whose ratio is the largest.
std::vector<std::pair<Output, const Element*>> worst_elements(const Verdict& v) {
  std::vector<std::pair<Output, const Element*>> all;
  for (const auto& [output, part] : v.outputs)
    if (part.worst.bound > 0) all.emplace_back(output, &part.worst);
  return all;
}

const std::pair<Output, const Element*>* worst_of(
    const std::vector<std::pair<Output, const Element*>>& all) {
  const auto found =
      std::ranges::max_element(all, {}, [](const auto& w) { return w.second->ratio; });
  return found == all.end() ? nullptr : &*found;
}

std::string nearest_to_bound(const Verdict& v) {
  const auto all = worst_elements(v);
  const auto* worst = worst_of(all);
  if (!worst) return "  no element has a bound: each is judged without tolerance";
  return fmt::format("  nearest to its bound: {}, by {:.3g} of it ({:.3g} ulp)",
                     place_of(worst->first, *worst->second), worst->second->ratio,
                     worst->second->ulp);
}

// Whether errors are typical, of the output that comes nearest to its limit. On a case that passed.
std::string typical_errors(const Evidence& e) {
  const std::string not_asked =
      e.not_asked.empty() ? "" : "; typical errors were not asked: " + e.not_asked;
  if (e.arithmetic.empty()) return not_asked;
  const auto beyond = [](const auto& row) { return row.second.s / row.second.limit; };
  const auto most = std::ranges::max_element(e.rows, {}, beyond);
  if (most == e.rows.end()) return not_asked;
  if (!e.fits) return "; errors are not typical";  // the reason says so, too
  return fmt::format("; errors are typical: those of {} at most {:.2g} times (limit {:.2g}){}",
                     name_of(most->first), most->second.s, most->second.limit, not_asked);
}

std::string_view told(Change change, bool product) {
  switch (change) {
    case Change::deleted: return product ? "terms left out" : "keys left out";
    case Change::duplicated: return "counted twice";
    case Change::exchanged: return product ? "exchanged" : "V exchanged";
    case Change::misweighted: return "off by 1%";
  }
  return "";
}

// The faults that a pass could have shown.
std::string shown_faults(const Verdict& v) {
  std::vector<std::string> shares;
  for (std::size_t k = 0; v.power.pairs > 0 && k < change_count; ++k)
    shares.push_back(fmt::format("{} {:.1f}%",
                                 told(static_cast<Change>(k), v.outputs.contains(Output::c)),
                                 percent(v.power.by_either[k], v.power.pairs)));
  if (v.gradient_power.pairs > 0)
    shares.push_back(fmt::format("pairs left out of gradients {:.1f}%",
                                 percent(v.gradient_power.by_any, v.gradient_power.pairs)));
  return shares.empty() ? "" : fmt::format("  would have shown: {}", fmt::join(shares, ", "));
}

void tell_pass(std::vector<std::string>& lines, const CaseResult& r) {
  const Verdict& v = r.verdict;
  lines.push_back(comparison(v));
  lines.push_back(nearest_to_bound(v) + typical_errors(v.evidence));
  if (const std::string shown = shown_faults(v); !shown.empty()) lines.push_back(shown);
}

// The largest error/bound of every output, and where the largest of all is.
std::string largest_errors(const Verdict& v) {
  const auto all = worst_elements(v);
  const auto* worst = worst_of(all);
  if (!worst) return "";
  std::vector<std::string> ratios;
  for (const auto& [output, e] : all)
    ratios.push_back(fmt::format("{} {:.4g}", name_of(output), e->ratio));
  const Element& e = *worst->second;
  return fmt::format("  largest error/bound: {}; at {} = {:.9g}, exact {:.9g} ({:.3g} ulp)",
                     fmt::join(ratios, ", "), place_of(worst->first, e), e.got, e.exact, e.ulp);
}

std::string not_finite(const Verdict& v) {
  if (v.nan_expected == 0 && v.nan_found == 0 && v.infinity_found == 0 && v.infinity_expected == 0)
    return "";
  return fmt::format("  NaN: {} found, {} belong there; infinities: {} found, {} belong there",
                     v.nan_found, v.nan_expected, v.infinity_found, v.infinity_expected);
}

void tell_failure(std::vector<std::string>& lines, const CaseResult& r) {
  const Verdict& v = r.verdict;
  const auto add = [&](std::string line) {
    if (!line.empty()) lines.push_back(std::move(line));
  };
  std::vector<std::string> wrong;
  for (const auto& [why, n] : v.failures) wrong.push_back(fmt::format("{} x {}", n, why));
  if (!wrong.empty())
    add(fmt::format("  wrong: {}; {} are inside", fmt::join(wrong, ", "), v.inside));
  if (r.was_compared()) add(comparison(v));
  add(largest_errors(v));
  if (const std::string evidence = told_evidence(v.evidence); !evidence.empty())
    add("  evidence: " + evidence);
  add(not_finite(v));
}

// Numbers with what they mean. Neighbours of one meaning are explained together.
class Explained {
 public:
  void add(std::string said, std::string meaning) {
    if (meaning != meaning_) explain();
    meaning_ = std::move(meaning);
    lines_.push_back("  " + std::move(said));
  }
  std::vector<std::string> lines() && {
    explain();
    return std::move(lines_);
  }

 private:
  void explain() {
    if (!meaning_.empty()) lines_.push_back("      " + meaning_);
  }
  std::vector<std::string> lines_;
  std::string meaning_;
};

void explain_arithmetic(Explained& to, const Verdict& v) {
  if (!v.arithmetic) return;
  const std::string meaning = fmt::format(
      "the numbers {}; docs/bounds.md says which bound each of them enters, and a "
      "roundoff is relative",
      v.declared ? "that the candidate declares" : "of that rung");
  for (std::string& line : listed_arithmetic(*v.arithmetic)) to.add(std::move(line), meaning);
  if (!v.gradient_arithmetic) return;
  for (std::string& line : listed_arithmetic(*v.gradient_arithmetic))
    to.add("of gradients: " + line, meaning);
}

void explain_comparison(Explained& to, const Verdict& v) {
  to.add("contract: " + v.contract,
         "the arithmetic from which the bounds were derived: the candidate declared it, or it is "
         "the first rung of the ladder that was not refuted");
  explain_arithmetic(to, v);
  to.add(fmt::format("elements: {}; inside {}, outside {}, hull only {}, exact {}",
                     compared_elements(v), v.inside, v.outside, v.hull_only, v.exact),
         "hull only: no bound says anything, so the element must lie between the least and the "
         "largest V; exact: it was judged without tolerance, and is counted among inside");
  for (const auto& [why, n] : v.failures)
    to.add(fmt::format("{} x {}", n, why), "so many elements fail for this reason");
  for (const auto& [why, n] : v.excused)
    to.add(fmt::format("{} excused: {}", n, why), "NaN or infinity was accepted there");
  if (const std::string told = not_finite(v); !told.empty())
    to.add(told.substr(2), "what belongs there follows from the inputs; to miss it is a failure");
  to.add(fmt::format("rows: {} of {} judged, {} in ball arithmetic", v.rows_judged, v.rows_total,
                     v.rows_in_balls),
         "fewer are judged where a sample was asked for; rows in ball arithmetic are cross-checks "
         "of the oracle, and rows that fp64 could not decide");
}

void explain_worst(Explained& to, const Verdict& v) {
  for (const auto& [output, e] : worst_elements(v)) {
    const std::string tile =
        output == Output::c ? "" : fmt::format(" (tile {})", e->row / v.row_tile);
    to.add(fmt::format("worst {}: error/bound {:.9g} ({:.9g} ulp) at {}{}: {:.9g}, exact {:.9g}, "
                       "bound {:.9g}",
                       name_of(output), e->ratio, e->ulp, place_of(output, *e), tile, e->got,
                       e->exact, e->bound),
           "the element whose error is largest in units of its bound; beyond 1 it is proved wrong. "
           "In 16 bits just below 1 is the rounding of the output");
  }
}

std::string listed_row(Output output, const Atypical& row) {
  const std::string place = output == Output::c
                                ? fmt::format("{} {}", row.of_column ? "column" : "row", row.row)
                                : fmt::format("b={}, h={}, {} {}", row.b, row.h,
                                              of_keys(output) ? "key" : "row", row.row);
  return fmt::format("s of {} {:.3g} at {}; limit {:.3g}, median {:.2g}", name_of(output), row.s,
                     place, row.limit, row.median);
}

// A share that is too small to matter counts less.
std::string share_of(const FilterAnswer& f) {
  return fmt::format(
      "share {:.3g}{}", f.share,
      std::fabs(f.share) < f.least ? fmt::format(" (counts from {:.3g})", f.least) : "");
}

std::string listed_filter(const FilterAnswer& f, double limit) {
  return fmt::format("z of \"{}\" {:.3g}, limit {:.3g}; {}", f.fault, f.z, limit, share_of(f));
}

void explain_evidence(Explained& to, const Evidence& e) {
  if (!e.not_asked.empty())
    to.add("evidence: not asked: " + e.not_asked,
           "whether these errors are typical is not known here; the bound alone was asked");
  if (e.arithmetic.empty()) return;
  to.add(fmt::format("evidence: errors {} those of {}", e.fits ? "are" : "come nearest to",
                     e.arithmetic),
         fmt::format("the algorithm ran {} times in this arithmetic, each time under another "
                     "schedule (seed {}), and its errors were measured",
                     e.replicates, e.seed));
  for (const auto& [output, row] : e.rows)
    to.add(
        listed_row(output, row),
        fmt::format("the rms of this row's errors in units of typical ones (s), the largest of {} "
                    "rows asked, with the median of all and the limit",
                    e.rows_asked));
  for (const FilterAnswer& f : e.filters)
    to.add(listed_filter(f, e.z_limit),
           fmt::format("how much of this fault lies in the errors (share; 1: all of it), and that "
                       "in units of what roundings alone make of it (z); {} faults were asked",
                       e.questions));
}

void explain_power(Explained& to, const Verdict& v) {
  const Power& p = v.power;
  for (std::size_t k = 0; p.pairs > 0 && k < change_count; ++k) {
    const std::string parts =
        v.outputs.contains(Output::lse)
            ? fmt::format(" (O {:.1f}%, LSE {:.1f}%)", percent(p.by_output[k], p.pairs),
                          percent(p.by_lse[k], p.pairs))
            : "";
    to.add(
        fmt::format("power, {}: {:.1f}%{}", name_of(static_cast<Change>(k)),
                    percent(p.by_either[k], p.pairs), parts),
        fmt::format(
            "of {} {}, so many would have moved an output by more than twice its bound", p.pairs,
            v.outputs.contains(Output::c) ? "terms of sums" : "visible pairs of a row and a key"));
  }
  const GradientPower& g = v.gradient_power;
  if (g.pairs > 0)
    to.add(fmt::format("power of gradients: {:.1f}% (dQ {:.1f}%, dK {:.1f}%, dV {:.1f}%)",
                       percent(g.by_any, g.pairs), percent(g.by_dq, g.pairs),
                       percent(g.by_dk, g.pairs), percent(g.by_dv, g.pairs)),
           fmt::format("of {} visible pairs, so many would have been missed if they were left out "
                       "of a sum",
                       g.pairs));
}

}  // namespace

std::string told_evidence(const Evidence& e) {
  if (e.arithmetic.empty()) return "";
  std::vector<std::string> parts;
  for (const auto& [output, row] : e.rows)
    parts.push_back(fmt::format("s of {} {:.3g} (limit {:.3g}, median {:.2g})", name_of(output),
                                row.s, row.limit, row.median));
  if (!e.filters.empty()) {
    const FilterAnswer& f = e.filters.front();
    parts.push_back(fmt::format("{}; {} questions", listed_filter(f, e.z_limit), e.questions));
  }
  return fmt::format("{}; {} {}", fmt::join(parts, ", "),
                     e.fits ? "typical of" : "nearest arithmetic:", e.arithmetic);
}

std::vector<std::string> listed_evidence(const Evidence& e) {
  std::vector<std::string> lines;
  for (const auto& [output, row] : e.rows) lines.push_back(listed_row(output, row));
  for (const FilterAnswer& f : e.filters) lines.push_back(listed_filter(f, e.z_limit));
  return lines;
}

std::vector<std::string> told_case(const CaseResult& r) {
  std::vector<std::string> lines = {r.line, "  " + told_outcome(r)};
  if (const std::string cause = sentence_on(r.diagnosis); !cause.empty())
    lines.push_back("  " + cause);
  if (passed(r.outcome)) tell_pass(lines, r);
  else if (r.outcome == Outcome::fail) tell_failure(lines, r);
  else if (r.was_compared()) lines.push_back(comparison(r.verdict));
  if (r.outcome == Outcome::fail || r.outcome == Outcome::error)
    lines.push_back("  reproduce: " + r.reproduce);
  return lines;
}

std::vector<std::string> explained_case(const CaseResult& r) {
  Explained to;
  const Verdict& v = r.verdict;
  if (r.was_compared()) {
    explain_comparison(to, v);
    explain_worst(to, v);
  }
  explain_evidence(to, v.evidence);
  if (passed(r.outcome)) {
    to.add(fmt::format("bias: mean signed error/bound {:.3g}, slope t {:.3g}", v.mean_ratio,
                       v.slope_t),
           "whether errors lean to one side: the slope of signed errors against values, in "
           "standard errors; beyond 8 the case is suspect");
    explain_power(to, v);
  }
  if (r.quantization)
    to.add(fmt::format("quantization: W is off by {:.2g}, A W by {:.2g}", r.quantization->weights,
                       r.quantization->products),
           "rms over rms; this error is that of the format, whatever the kernel does");
  for (const auto& [name, relation] : r.relations)
    to.add(fmt::format("relation {}: {}", name, text_of(relation)),
           "a second answer that must have the same bits");
  return std::move(to).lines();
}

}  // namespace assay
