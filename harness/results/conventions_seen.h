// The conventions in which the cases of a run differ from ours, although nobody declared them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/results/result.h"

namespace assay {

// What follows from such a convention. usual: what its row of the table of conventions says. fail:
// the run has failed. warn: it is told. accept: it is counted alone.
enum class ConventionRule : std::uint8_t { usual, fail, warn, accept };
template <>
inline constexpr auto table_of<ConventionRule> = complete<Named<ConventionRule>>({
    {ConventionRule::usual, "usual"},
    {ConventionRule::fail, "fail"},
    {ConventionRule::warn, "warn"},
    {ConventionRule::accept, "accept"},
});

struct ConventionSeen {
  std::string convention;  // "masked-rows:nan"
  std::string what;        // "O of a row that sees no key"
  std::size_t cases = 0;
  ConventionRule rule = ConventionRule::fail;  // what follows; never `usual`
  std::string line;                            // the first case
  bool operator==(const ConventionSeen&) const = default;

  // One sentence, with the option that accepts it.
  std::string sentence() const;
};

// What a case differs in. A relation can only show that NaN at a masked key spreads.
Conventions differing(const CaseResult& result);
// In the order of the table.
std::vector<ConventionSeen> conventions_seen(const std::vector<CaseResult>& results,
                                             ConventionRule rule);
// The number of cases that fail by conventions alone.
std::size_t failing_by_convention(const std::vector<CaseResult>& results,
                                  const std::vector<ConventionSeen>& seen);
// Whether this is one of them.
bool fails_by_convention(const CaseResult& result, const std::vector<ConventionSeen>& seen);

template <class Fields, Described<ConventionSeen> Value>
void describe_fields(Fields& fields, Value& s) {
  fields("convention", s.convention);
  fields("what", s.what);
  fields("cases", s.cases);
  fields("rule", s.rule);
  fields("case", s.line);
  fields.derived("sentence", s.sentence());
}

}  // namespace assay
