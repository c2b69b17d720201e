// How recorded outputs fit each arithmetic of the ladder.
#pragma once

#include <string>
#include <vector>

#include "harness/records/record.h"

namespace assay {

struct ArithmeticFit {
  std::string arithmetic;
  bool refuted = false;  // some element is outside its bound
  bool typical = false;  // errors are those that this arithmetic makes; docs/evidence.md
  // Of all outputs that evidence asks, the largest error of a row in units of its limit; 0 where
  // nothing is asked.
  double of_limit = 0;
  std::string why;  // why it is refuted or not typical, or why nothing is asked
};

template <class Fields, Described<ArithmeticFit> Value>
void describe_fields(Fields& fields, Value& fit) {
  fields("arithmetic", fit.arithmetic);
  fields("refuted", fit.refuted);
  fields("typical", fit.typical);
  fields("of limit", fit.of_limit);
  fields("why", fit.why);
}

// The fits, in the order of the ladder, from the strictest arithmetic on.
std::vector<ArithmeticFit> fit_arithmetics(const Record& record, int threads);

}  // namespace assay
