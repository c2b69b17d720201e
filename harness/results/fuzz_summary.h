// The work and the findings of fuzz jobs: `assay fuzz --json`, and the files that the jobs keep.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/results/described.h"

namespace assay {

struct FuzzTarget {
  std::string target;
  double seconds = 0, executions = 0, executions_per_second = 0, coverage = 0, corpus = 0;
  std::size_t findings = 0;
};

// An input that made a target abort. An empty text means that there is none.
struct FuzzFinding {
  std::string target, file, reason;
  std::string line, shrunk;  // case lines, for targets that judge cases
  std::string kept;          // the file that later runs replay
};

struct FuzzSummary {
  double seconds = 0;
  std::uint64_t seed = 1;
  std::vector<FuzzTarget> targets;
  std::vector<FuzzFinding> findings;
};

template <class Fields, Described<FuzzTarget> Value>
void describe_fields(Fields& fields, Value& t) {
  fields("target", t.target);
  fields("seconds", t.seconds);
  fields("executions", t.executions);
  fields("executions_per_second", t.executions_per_second);
  fields("coverage", t.coverage);
  fields("corpus", t.corpus);
  fields("findings", t.findings);
}

template <class Fields, Described<FuzzFinding> Value>
void describe_fields(Fields& fields, Value& f) {
  fields("target", f.target);
  fields("file", f.file);
  fields("reason", f.reason);
  fields.unless("case", f.line, std::string());
  fields.unless("shrunk", f.shrunk, std::string());
  fields.unless("kept", f.kept, std::string());
}

template <class Fields, Described<FuzzSummary> Value>
void describe_fields(Fields& fields, Value& s) {
  fields.constant("format", 1);
  fields("seconds", s.seconds);
  fields("seed", s.seed);
  fields("targets", s.targets);
  fields("findings", s.findings);
}

}  // namespace assay
