// Tells the arithmetic of a kernel from its answers to chosen inputs. docs/identify.md describes
// the inputs and what each of them shows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/results/described.h"

namespace assay {

// What one kind of input shows.
struct Statement {
  std::string subject;  // "P V, sums"
  std::string answer;   // "24 bits, rounded to nearest (binary32)"
  std::string input;    // the input, and what came of it
  bool operator==(const Statement&) const = default;
};

// unsupported: the candidate takes none of the shapes that inputs are made for. fail: it did what
// no kernel may do; what it told before stands.
enum class Asking : std::uint8_t { told, unsupported, fail };
template <>
inline constexpr auto table_of<Asking> = complete<Named<Asking>>({
    {Asking::told, "told"},
    {Asking::unsupported, "unsupported"},
    {Asking::fail, "fail"},
});

struct Identification {
  std::string candidate;
  std::string line;  // the shape and the dtype, as a case line; chosen inputs replace its tensors
  Asking outcome = Asking::told;
  std::string reason;  // of another outcome
  std::vector<Statement> statements;
  std::vector<std::string> not_told;  // "subject: reason"
};

template <class Fields, Described<Statement> Value>
void describe_fields(Fields& fields, Value& s) {
  fields("subject", s.subject);
  fields("answer", s.answer);
  fields("input", s.input);
}

template <class Fields, Described<Identification> Value>
void describe_fields(Fields& fields, Value& told) {
  fields("candidate", told.candidate);
  fields("case", told.line);
  fields("outcome", told.outcome);
  fields("reason", told.reason);
  fields("statements", told.statements);
  fields("not told", told.not_told);
}

// Asks a candidate about attention, its gradients or a product, as `asked` says by its operation,
// its dtype (f32, f16 or bf16) and, for a product, by out, w and a (absent, or in FP8 as w then
// is). The other fields have their defaults: the inputs and the shape are chosen here. Throws
// std::invalid_argument, naming the field, for anything else.
Identification identify(Candidate& candidate, const Case& asked);

}  // namespace assay
