// Where a run takes place, and how the program was built.
#pragma once

#include <string>

#include "harness/results/described.h"
#include "problem/index.h"

namespace assay {

struct Machine {
  std::string cpu;
  int threads = 1;
  std::string simd_target, simd_targets;
  Index memory_mib = 0;
  std::string compiler, flags, commit, release;
};

template <class Fields, Described<Machine> Value>
void describe_fields(Fields& fields, Value& m) {
  fields("cpu", m.cpu);
  fields("threads", m.threads);
  fields("simd target", m.simd_target);
  fields("simd targets", m.simd_targets);
  fields("memory MiB", m.memory_mib);
  fields("compiler", m.compiler);
  fields("flags", m.flags);
  fields("commit", m.commit);
  fields("assay", m.release);
}

}  // namespace assay
