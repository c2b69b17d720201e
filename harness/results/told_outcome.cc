#include "harness/results/told_outcome.h"

#include <string_view>

namespace assay {

std::string outcome_words(const CaseResult& r) {
  const std::string name(name_of(r.outcome));
  if (r.outcome != Outcome::fail) return name;
  if (r.verdict.by_evidence) return name + ", by evidence";
  return r.verdict.outside > 0 ? name + ", proved" : name;
}

std::string told_outcome(const CaseResult& r) {
  // The reason says the same of itself, for readers that see the reason alone.
  constexpr std::string_view by_evidence = "by evidence: ";
  const bool twice = r.verdict.by_evidence && r.reason.starts_with(by_evidence);
  return outcome_words(r) + ": " + (twice ? r.reason.substr(by_evidence.size()) : r.reason);
}

}  // namespace assay
