// Long fuzz jobs: libFuzzer processes over folders of inputs, in slices of time that go to the
// targets that still find something.
//
// The working folder survives a kill at any point. It holds:
//   corpus/TARGET/     inputs, as libFuzzer writes them: one file for each, named by its
//                      hash; files with other names are read and left alone
//   findings/TARGET/   inputs that made the target abort, as libFuzzer wrote them, before
//                      anything is done with them
//   findings.jsonl     the result for each finding: reason, case line, shrunk line,
//                      minimised bytes
//   state.json         time spent and counters by target; written whole and renamed
//   log.txt            one line for each slice
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "harness/results/fuzz_summary.h"

namespace assay {

struct FuzzOptions {
  std::filesystem::path binaries;  // holds TARGET_fuzz of each target
  std::filesystem::path work;
  std::filesystem::path seeds;  // a folder with a folder for each target; may be empty
  // where the minimised input of a finding is copied, by target, so that it is replayed from then
  // on; may be empty
  std::filesystem::path keep;
  std::vector<std::string> targets;
  double seconds = 3600;  // altogether, including earlier runs in the same folder
  double slice = 120;
  int jobs = 1;
  double shrink_seconds = 60;  // for each finding
  int corpus_mib = 256;   // for each target; a larger corpus is merged to what still adds coverage
  int memory_mib = 2048;  // of a fuzzer process
  std::uint64_t seed = 1;
  std::function<void(const std::string&)> say;  // receives each line of progress
};

// Returns the names of the targets whose programs lie in the folder. Throws std::invalid_argument
// if there is none.
std::vector<std::string> fuzz_targets(const std::filesystem::path& binaries);

// The targets of the options, which are all that are there if none is named. Throws
// std::invalid_argument if one is unknown.
std::vector<std::string> chosen_targets(const FuzzOptions& options);

// Runs the jobs and returns {"targets": [{"target", "seconds", "executions",
// "executions_per_second", "coverage", "corpus", "findings"}], "findings": [...], "seconds"}.
// Throws std::invalid_argument for an unknown target or a folder that cannot be used, and
// std::system_error if the machine fails or another process runs jobs in the working folder.
FuzzSummary fuzz(const FuzzOptions& options);

struct TimeToFind {
  bool found = false;
  double seconds = 0, executions = 0;
  std::string line, reason;
};
// Runs one target on a candidate, beginning without inputs.
TimeToFind time_to_find(const std::filesystem::path& program, const std::string& candidate,
                        const std::filesystem::path& work, double seconds, std::uint64_t seed);

}  // namespace assay
