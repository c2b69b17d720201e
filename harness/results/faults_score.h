// The score of a hunt for planted faults: `assay faults --json`. docs/results.md says what each
// field is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/results/described.h"
#include "problem/index.h"

namespace assay {

// The hunt for one fault by a suite, until a case killed it.
struct FaultHunt {
  std::string fault, fault_class, suite;
  bool killed = false;
  std::size_t cases = 0;  // the number of cases run until then
  double seconds = 0;
  std::string line, reason;  // of the case that killed the fault
  // The hypothesis that names this fault, and its place in the list of those that explain the
  // failing cases; 0: it is not in the list. `diagnosed` failing cases were asked for causes.
  std::string cause{};
  Index rank = 0;
  bool alone = false;                     // no other hypothesis explains them as well
  std::vector<std::string> looks_like{};  // the likeliest hypotheses, at most five
  Index diagnosed = 0;
};

// A fault that no input shows.
struct EquivalentFault {
  std::string fault, fault_class, proof;
};

// A run of the same cases on the kernel without a fault.
struct UnplantedRun {
  std::string suite;
  std::size_t cases = 0;
  double seconds = 0;
  bool false_alarm = false;
  std::string line, reason;  // of the false alarm
};

struct FaultsScore {
  std::uint64_t seed = 1;
  std::size_t killed = 0;
  std::size_t out_of_reach = 0;  // faults of an operation that no case of the suite has
  std::vector<FaultHunt> faults;
  std::vector<EquivalentFault> equivalent;
  std::vector<UnplantedRun> unplanted;
};

template <class Fields, Described<FaultHunt> Value>
void describe_fields(Fields& fields, Value& f) {
  fields("fault", f.fault);
  fields("class", f.fault_class);
  fields("suite", f.suite);
  fields("killed", f.killed);
  fields("cases", f.cases);
  fields("seconds", f.seconds);
  fields("case", f.line);
  fields("reason", f.reason);
  fields.unless("cause", f.cause, std::string());
  fields.unless("rank", f.rank, Index{0});
  fields.unless("alone", f.alone, false);
  fields.unless("looks_like", f.looks_like, std::vector<std::string>());
  fields.unless("diagnosed", f.diagnosed, Index{0});
}

template <class Fields, Described<EquivalentFault> Value>
void describe_fields(Fields& fields, Value& f) {
  fields("fault", f.fault);
  fields("class", f.fault_class);
  fields("proof", f.proof);
}

template <class Fields, Described<UnplantedRun> Value>
void describe_fields(Fields& fields, Value& u) {
  fields("suite", u.suite);
  fields("cases", u.cases);
  fields("seconds", u.seconds);
  fields("false_alarm", u.false_alarm);
  fields("case", u.line);
  fields("reason", u.reason);
}

template <class Fields, Described<FaultsScore> Value>
void describe_fields(Fields& fields, Value& s) {
  fields.constant("format", 1);
  fields("seed", s.seed);
  fields("killed", s.killed);
  fields("out_of_reach", s.out_of_reach);
  fields("faults", s.faults);
  fields("equivalent", s.equivalent);
  fields("unplanted", s.unplanted);
}

}  // namespace assay
