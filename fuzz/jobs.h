// Long fuzz jobs: libFuzzer processes over folders of inputs, in slices of time that go to the targets that still find something.
//
// What lies in the working folder, and survives a kill at any point:
//   corpus/TARGET/     inputs, as libFuzzer writes them: one file each, named by their hash; files of other names are read and left alone
//   findings/TARGET/   what made the target abort, as libFuzzer wrote it, before anything is done with it
//   findings.jsonl     what became of each: reason, case line, shrunk line, minimised bytes
//   state.json         time spent and counters by target; written whole and renamed
//   log.txt            a line a slice
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "harness/results/fuzz_summary.h"

namespace assay {

struct FuzzOptions {
  std::filesystem::path binaries;  // TARGET_fuzz of each target
  std::filesystem::path work;
  std::filesystem::path seeds;  // a folder of folders by target; may be empty
  std::filesystem::path keep;   // where the minimised input of a finding is copied to, by target, to be replayed from then on; may be empty
  std::vector<std::string> targets;
  double seconds = 3600;  // altogether, those of earlier runs in the same folder included
  double slice = 120;
  int jobs = 1;
  double shrink_seconds = 60;  // of a finding
  int corpus_mib = 256;        // of a target: beyond it, its corpus is merged to what still adds coverage
  int memory_mib = 2048;       // of a fuzzer process
  std::uint64_t seed = 1;
  std::function<void(const std::string&)> say;  // a line of progress
};

// Names of the targets whose programs lie in the folder. Throws std::invalid_argument if there is none.
std::vector<std::string> fuzz_targets(const std::filesystem::path& binaries);

// Throws std::invalid_argument for an unknown target and a folder that cannot be used, std::system_error where the machine fails.
FuzzSummary fuzz(const FuzzOptions& options);

struct TimeToFind {
  bool found = false;
  double seconds = 0, executions = 0;
  std::string line, reason;
};
// One target on a candidate, from no inputs at all.
TimeToFind time_to_find(const std::filesystem::path& program, const std::string& candidate, const std::filesystem::path& work, double seconds, std::uint64_t seed);

}  // namespace assay
