// The files of a sweep: the plan, and what each of its shards answered. docs/sweeps.md says how
// they are made and put together.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/results/machine.h"
#include "harness/results/schema.h"

namespace assay {

// What must be the same in every process of a sweep.
struct SweepBuild {
  std::string commit, release, compiler, flags;
  bool operator==(const SweepBuild&) const = default;
};
SweepBuild build_of(const Machine& machine);

// What is run, in how many shards, and by which build.
struct SweepPlan {
  std::string command;                 // check, verify, faults or fuzz
  std::vector<std::string> arguments;  // of the command, without --shard and without outputs
  std::uint64_t seed = 1;              // the seed of the command
  std::size_t shards = 1;
  SweepBuild build;
  // The hash of each file that answers follow from: a kernel library, records, case lines.
  std::map<std::string, std::string> files;
};
// Hashes are 16 hexadecimal digits. A shard carries the one of its plan; plans that differ in
// anything have others.
std::string hash_of(const SweepPlan& plan);
// Throws std::system_error if the file cannot be read.
std::string hash_of_file(const std::string& path);

// What a shard answered.
struct SweepShard {
  std::string plan;       // hash_of() the plan
  std::size_t shard = 0;  // counted from 0
  int status = 0;         // the exit status of the command
  Machine machine;
  Json document;  // what the command wrote with --json
};

template <class Fields, Described<SweepBuild> Value>
void describe_fields(Fields& fields, Value& b) {
  fields("commit", b.commit);
  fields("assay", b.release);
  fields("compiler", b.compiler);
  fields("flags", b.flags);
}

template <class Fields, Described<SweepPlan> Value>
void describe_fields(Fields& fields, Value& p) {
  fields.constant("format", 1);
  fields("command", p.command);
  fields("arguments", p.arguments);
  fields("seed", p.seed);
  fields("shards", p.shards);
  fields("build", p.build);
  fields("files", p.files);
}

template <class Fields, Described<SweepShard> Value>
void describe_fields(Fields& fields, Value& s) {
  fields.constant("format", 1);
  fields("plan", s.plan);
  fields("shard", s.shard);
  fields("status", s.status);
  fields("machine", s.machine);
  fields("document", s.document);
}

}  // namespace assay
