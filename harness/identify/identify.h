// Tells the arithmetic of a kernel from its answers to chosen inputs. docs/identify.md describes
// the inputs and what each of them shows.
#pragma once

#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/results/schema.h"

namespace assay {

// What one kind of input shows.
struct Statement {
  std::string subject;  // "P V, sums"
  std::string answer;   // "24 bits, rounded to nearest (binary32)"
  std::string input;    // the input, and what came of it
  bool operator==(const Statement&) const = default;
};

struct Identification {
  std::string candidate;
  std::string line;  // the shape and the dtype, as a case line; chosen inputs replace its tensors
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
  fields("statements", told.statements);
  fields("not told", told.not_told);
}

// Asks a candidate about attention in this dtype, which is f32, f16 or bf16. Throws CandidateError
// for what no candidate may do, and CandidateDeclined if it takes none of the shapes that inputs
// are made for, of which the message lists those that were tried.
Identification identify(Candidate& candidate, Dtype dtype);

}  // namespace assay
