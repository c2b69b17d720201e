// The stage trace: compares every stage that a kernel tells with the oracle's stage, and finds the
// first difference.
#pragma once

#include <cstdint>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "harness/judging/execute.h"
#include "harness/faults/planted_faults.h"

namespace assay {

inline constexpr int stage_count = 19;
std::string_view name_of(kernels::Stage stage);

struct StageValue {
  // A key in scores, masked scores, weights and their gradients; a column of a head elsewhere.
  Index lane = 0;
  double got = 0, exact = 0, bound = 0;
};

struct StageFinding {
  kernels::Stage stage{};
  Index b = 0, head = 0, row = 0;           // for K and V: the kv head and the key
  Index first_key = 0, key0 = 0, keys = 0;  // the tile, and the begin of the running state
  StageValue value;
  std::string what;  // for example "is outside its enclosure" or "the running maximum fell"
  std::vector<StageValue> around;  // the lanes before and after
};

// The running state of a row after each tile until the finding.
struct RunningState {
  Index key0 = 0;
  StageValue max, sum;
};

struct StageSummary {
  std::int64_t told = 0, compared = 0, wrong = 0;
  double worst = 0;  // the largest error/bound among the values that hold
};

struct Trace {
  std::array<StageSummary, stage_count> stages{};
  std::optional<StageFinding> first;
  std::vector<RunningState> state;  // of the row of `first`
  // The other stages in the row of `first` that are wrong, or that read a wrong value, in the
  // kernel's own order.
  std::vector<kernels::Stage> then;
  std::int64_t rows_not_judged = 0;  // NaN, infinities or scores out of range take part in them
  Verdict verdict;                   // on the outputs of the same run

  std::int64_t compared() const {
    std::int64_t n = 0;
    for (const StageSummary& s : stages) n += s.compared;
    return n;
  }
};

// Runs the candidate on one thread and compares its stages. Throws CaseError for a case that has no
// stages (products, caches) or is too large to keep, and std::invalid_argument for a candidate that
// does not tell its stages.
Trace trace_case(const Case& c, Candidate& candidate);

// The trace as text that people read.
std::string describe(const Trace& trace, const Case& c);

}  // namespace assay
