// What the bits of a row do not depend on, over all cases of a run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/results/promise.h"
#include "harness/results/result.h"

namespace assay {

struct Invariance {
  enum class Answer : std::uint8_t { yes, no, not_asked };
  Promise to{};
  Answer answer = Answer::not_asked;
  std::size_t cases = 0;  // of which it was asked
  std::string why;        // how two calls differ, or why it was not asked
  std::string line;       // the first case that differs
  bool operator==(const Invariance&) const = default;
};
template <>
inline constexpr auto table_of<Invariance::Answer> = complete<Named<Invariance::Answer>>({
    {Invariance::Answer::yes, "yes"},
    {Invariance::Answer::no, "no"},
    {Invariance::Answer::not_asked, "not asked"},
});

// One for each promise.
std::vector<Invariance> invariances_of(const std::vector<CaseResult>& results);
// Whether a case was asked for what is not asked of every kernel.
bool tells_of_invariance(const std::vector<CaseResult>& results);

template <class Fields, Described<Invariance> Value>
void describe_fields(Fields& fields, Value& x) {
  fields("to", x.to);
  fields("answer", x.answer);
  fields("cases", x.cases);
  fields.unless("why", x.why, std::string());
  fields.unless("case", x.line, std::string());
}

}  // namespace assay
