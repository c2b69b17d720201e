// A run as a store keeps it. It may be of any kind, and it has fewer fields of each result than the
// run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/results/schema.h"

namespace assay {

struct StoredResult {
  std::string name;  // a case line, a fault, a target or a benchmark
  std::optional<std::string> dtype, outcome, reason, reproduce;
  std::optional<std::string> worst_output;
  std::optional<double> worst_ratio;  // the largest error/bound
  std::optional<double> bias, slope;
  std::optional<double> evidence;  // the largest s over its limit
  std::optional<double> seconds, judge_seconds;
  std::optional<std::int64_t> compared;  // the number of elements
  Json counters;                         // fields that only one kind of run has; null: none
};

struct StoredRun {
  std::optional<std::int64_t> id;  // the number in the store that it was read from
  std::string kind;                // check, faults, fuzz or benchmark
  std::string started;             // ISO 8601, UTC
  std::string title, candidate;
  std::int64_t seed = 0;
  std::string commit;
  Json machine;
  std::string sentence;
  std::vector<StoredResult> results;
};

// Names every field, so that the columns of a store, its exchange format and its readers share one
// list.
template <class Fields, Described<StoredResult> Value>
void describe_fields(Fields& fields, Value& r) {
  fields("name", r.name);
  fields.optional("dtype", r.dtype);
  fields.optional("outcome", r.outcome);
  fields.optional("reason", r.reason);
  fields.optional("reproduce", r.reproduce);
  fields.optional("worst_output", r.worst_output);
  fields.optional("worst_ratio", r.worst_ratio);
  fields.optional("bias", r.bias);
  fields.optional("slope", r.slope);
  fields.optional("seconds", r.seconds);
  fields.optional("judge_seconds", r.judge_seconds);
  fields.unless("counters", r.counters, Json());
  fields.optional("compared", r.compared);
  fields.optional("evidence", r.evidence);
}

template <class Fields, Described<StoredRun> Value>
void describe_fields(Fields& fields, Value& r) {
  fields.optional("id", r.id);
  fields("kind", r.kind);
  fields("started", r.started);
  fields("title", r.title);
  fields("candidate", r.candidate);
  fields("seed", r.seed);
  fields("commit", r.commit);
  fields("machine", r.machine);
  fields("sentence", r.sentence);
  fields("results", r.results);
}

}  // namespace assay
