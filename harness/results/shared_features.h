// What the failing cases of a run have in common and the passing ones have not, and the failures of
// one cause, told once.
#pragma once

#include <string>
#include <vector>

#include "harness/results/result.h"

namespace assay {

// The smallest set of features that every failing case has and no passing case has as a whole.
struct SharedFeatures {
  std::vector<std::string> features;  // "softcap", "dtype=bf16", "at least 129 keys"; empty: none
  std::size_t failing = 0, passing = 0;
  std::size_t others = 0;  // how many other sets of as many features separate them, too

  // "all 12 failing cases have softcap and dtype=bf16; none of 713 passing ones has both"; empty
  // without features.
  std::string sentence() const;
};

// Failures that have the same words for their reason. A reason's words end where its numbers begin.
struct Cause {
  std::string outcome;  // "fail, proved"
  std::string reason;   // "O is outside its bound"
  std::size_t cases = 0;
  // What the cases of this cause have and the passing ones have not; empty if nothing separates
  // them.
  std::vector<std::string> features;
  // Of its first case, or of the first that was made smaller: the case line, the whole reason, and
  // the command.
  std::string line, example, reproduce;
  // What most of its cases look like, and of how many that is so: "the causal diagonal is one key
  // late (11 of 12)"; empty if no case is explained.
  std::string looks_like;
  bool operator==(const Cause&) const = default;
};

// The features of a case line: those of features_of(), the families of its inputs, and tails. It
// does not have sizes. Throws CaseError.
std::vector<std::string> told_features(const std::string& line);

// `failing` and `passing` are case lines. Nothing is claimed (no features) if there is no set of at
// most three features, if one of the lines is no case line, or if a set of the same size could
// separate so few cases by luck: the number of ways to choose the failing cases has to be a
// thousand times the number of sets that were possible.
SharedFeatures shared_features(const std::vector<std::string>& failing,
                               const std::vector<std::string>& passing);

// The same for the results of a run: failures against passes.
SharedFeatures shared_features(const std::vector<CaseResult>& results);

// The failures and errors of a run by cause, the most frequent first; equal ones in the order of
// the run.
std::vector<Cause> causes_of(const std::vector<CaseResult>& results);

template <class Fields, Described<SharedFeatures> Value>
void describe_fields(Fields& fields, Value& s) {
  fields("features", s.features);
  fields("failing", s.failing);
  fields("passing", s.passing);
  fields("others", s.others);
  fields.derived("sentence", s.sentence());
}

template <class Fields, Described<Cause> Value>
void describe_fields(Fields& fields, Value& c) {
  fields("outcome", c.outcome);
  fields("reason", c.reason);
  fields("cases", c.cases);
  fields.unless("features", c.features, {});
  fields("case", c.line);
  fields("example", c.example);
  fields("reproduce", c.reproduce);
  fields.unless("looks like", c.looks_like, {});
}

}  // namespace assay
