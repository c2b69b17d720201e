#include "harness/results/run.h"
#include "harness/results/schema.h"

namespace assay {

template <class Fields, Described<Run> Value>
void describe_summary(Fields& fields, Value& run) {
  auto& s = run.summary;
  fields("sentence", s.sentence);
  fields.derived("cases", run.results.size() + s.untold);
  // A suspect result has passed too, but it is counted in the field "suspect" alone.
  fields("passed", s.counts.pass);
  fields("failed", s.counts.fail);
  fields("suspect", s.counts.suspect);
  fields("inconclusive", s.counts.inconclusive);
  fields("unsupported", s.counts.unsupported);
  fields("errors", s.counts.error);
  fields.unless("by_convention", s.counts.convention, std::size_t{0});
  fields("not_run", s.not_run);
  fields.unless("untold", s.untold, std::size_t{0});
  fields("elements", s.elements);
  fields("seconds", s.seconds);
  fields("adequacy", s.adequacy);
  fields.object_if("shared", !s.shared.features.empty(),
                   [&](auto& shared) { describe_fields(shared, s.shared); });
  fields.unless("causes", s.causes, {});
  fields.unless("invariant_to", s.invariances, {});
  fields.unless("conventions", s.conventions, {});
}

template <class Fields, Described<Run> Value>
void describe_fields(Fields& fields, Value& run) {
  fields.constant("format", 2);
  fields("suite", run.suite);
  fields("candidate", run.candidate);
  fields("seed", run.seed);
  fields("machine", run.machine);
  fields("results", run.results);
  fields.object("summary", [&](auto& summary) { describe_summary(summary, run); });
}

Json to_json(const Run& run) { return write_fields(run); }
void read_json(const Json& json, const std::string& where, Run& run) {
  read_fields(json, where, run);
}

std::size_t& OutcomeCounts::of(Outcome outcome) {
  switch (outcome) {
    case Outcome::pass: return pass;
    case Outcome::fail: return fail;
    case Outcome::suspect: return suspect;
    case Outcome::inconclusive: return inconclusive;
    case Outcome::unsupported: return unsupported;
    case Outcome::convention: return convention;
    case Outcome::error: break;
  }
  return error;
}

OutcomeCounts count_outcomes(const std::vector<CaseResult>& results) {
  OutcomeCounts n;
  for (const CaseResult& r : results) ++n.of(r.outcome);
  return n;
}

void RunTally::add(std::vector<CaseResult> more) {
  for (CaseResult& r : more) {
    elements_ += r.elements_compared();
    adequacy_.add(r);
    ++counts_.of(r.outcome);
    std::size_t& seen = seen_[{r.outcome, differing(r).names()}];
    if (++seen <= kept_of_an_outcome || !begun_) kept.push_back(std::move(r));
    else ++untold_;
  }
  begun_ = true;
}

void RunTally::write_to(RunSummary& summary) const {
  summary.counts = counts_;
  summary.untold = untold_;
  summary.elements = elements_;
  summary.adequacy = adequacy_.summary();
}

}  // namespace assay
