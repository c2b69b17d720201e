#include "oracle/tally.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

namespace assay {
namespace {

// Whether a comes before b. The rows of O and LSE are in one order, in which LSE has the column -1.
bool precedes(const Element& a, const Element& b) {
  auto place = [](const Element& e) {
    const Output output = e.output == Output::lse ? Output::o : e.output;
    return std::tuple(output, e.b, e.h, e.row, e.column);
  };
  return place(a) < place(b);
}

// Makes e the worst if its ratio is larger, or if it is equal and the rule for ties prefers e.
void keep_worse(Element& worst, const Element& e, Ties ties) {
  if (!(e.bound > 0) || std::isnan(e.ratio)) return;
  bool replaces = worst.bound == 0 || e.ratio > worst.ratio;
  if (!replaces && e.ratio == worst.ratio) replaces = ties == Ties::last || precedes(e, worst);
  if (replaces) worst = e;
}

}  // namespace

Element element_at(Output output, Index b, Index h, Index row, Index column) {
  Element e;
  e.output = output;
  e.b = b;
  e.h = h;
  e.row = row;
  e.column = column;
  return e;
}

void measure(Element& e, double got, double high, double low, double bound, Dtype dtype) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  e.got = got;
  e.exact = high;
  e.bound = bound;
  const double error = std::fabs((got - high) - low);
  e.ratio = error == 0 ? 0 : error <= inf ? error / bound : inf;
  e.ulp = error / (2 * half_ulp(dtype, high));
}

void Tally::compare(const Element& e) {
  ++verdict.outputs[e.output].elements;
  verdict.nan_found += std::isnan(e.got);
  verdict.infinity_found += std::isinf(e.got);
}

void Tally::inside(const Element& e, bool exactly) {
  ++verdict.outputs[e.output].inside;
  ++verdict.inside;
  verdict.exact += exactly;
}

void Tally::fail(Element e, std::string why) {
  ++verdict.outside;
  ++verdict.failures[why];
  e.why = std::move(why);
  tell(e);
  if (verdict.outside == 1 || precedes(e, verdict.first_failure))
    verdict.first_failure = std::move(e);
}

void Tally::rate(const Element& e) { keep_worse(verdict.outputs[e.output].worst, e, ties_); }

void Tally::lean(double signed_ratio) {
  ratio_sum_ += signed_ratio;
  ++ratios_;
}

void Tally::merge(const Tally& other) {
  add(verdict, other.verdict, ties_);
  ratio_sum_ += other.ratio_sum_;
  ratios_ += other.ratios_;
}

Verdict Tally::finish() {
  if (ratios_ > 0) verdict.mean_ratio = ratio_sum_ / static_cast<double>(ratios_);
  return std::move(verdict);
}

void add(Verdict& into, const Verdict& from, Ties ties) {
  const bool first = into.outside == 0 || precedes(from.first_failure, into.first_failure);
  if (from.outside > 0 && first) into.first_failure = from.first_failure;
  for (auto count : {&Verdict::inside, &Verdict::outside, &Verdict::hull_only, &Verdict::exact,
                     &Verdict::nan_expected, &Verdict::nan_found, &Verdict::infinity_expected,
                     &Verdict::infinity_found, &Verdict::rows_judged, &Verdict::rows_in_balls})
    into.*count += from.*count;
  for (const auto& [reason, n] : from.excused) into.excused[reason] += n;
  for (const auto& [why, n] : from.failures) into.failures[why] += n;
  for (const auto& [output, compared] : from.outputs) {
    Compared& mine = into.outputs[output];
    mine.elements += compared.elements;
    mine.inside += compared.inside;
    keep_worse(mine.worst, compared.worst, ties);
  }
  into.power.add(from.power);
  into.gradient_power.add(from.gradient_power);
}

void conclude(Verdict& v, std::int64_t judged, const FinalWords& words) {
  std::int64_t excused = 0;
  for (const auto& [reason, n] : v.excused) excused += n;
  if (v.outside > 0) {
    v.outcome = Outcome::fail;
    v.reason = describe(v.first_failure);
  } else if (judged == 0) {
    v.outcome = Outcome::inconclusive;
    v.reason = v.compared() == 0 ? std::string(words.nothing)
                                 : fmt::format("no {} could be judged by its bound", words.judged);
  } else if (excused + v.hull_only == 0) {
    v.outcome = Outcome::pass;
    v.reason = fmt::format("every {} is inside its bound", words.element);
  } else {
    v.outcome = Outcome::pass;
    v.reason = fmt::format("every {} that a bound decides is inside it ({} excused", words.element,
                           excused);
    if (!words.hull_only.empty()) v.reason += fmt::format(", {} {}", v.hull_only, words.hull_only);
    v.reason += ")";
  }
}

}  // namespace assay
