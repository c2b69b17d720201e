// Runs a candidate on a case and judges its outputs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "harness/candidates/candidate.h"
#include "harness/results/result.h"
#include "problem/case.h"

namespace assay {

// Which part of the work runs, so that a message can name the part that takes too long.
enum class Turn : std::uint8_t { inputs, candidate, verdict };
template <>
inline constexpr auto table_of<Turn> = complete<Named<Turn>>({
    {Turn::inputs, "inputs"},
    {Turn::candidate, "candidate"},
    {Turn::verdict, "verdict"},
});

// What runs at present.
struct Present {
  Turn turn = Turn::candidate;
  std::string relation;  // the relation that is asked; empty: the case itself runs
  std::string line;      // the problem that the candidate computes, as a case line
  bool operator==(const Present&) const = default;
};

struct ExecuteOptions {
  int oracle_threads = 1;
  int ball_rows = 1;
  // How often each step runs. All runs must agree bit for bit. At least 2.
  int repeat = 2;
  bool power = true;
  bool relations = true;
  // One case in so many is asked what the candidate keeps from one call to the next, if it has a
  // process of its own. The line of a case decides whether it is that one. 0: none, 1: all.
  int state_of_every = 0;
  Promises required = 0;  // asked of a candidate that does not promise it, too
  bool refusals = false;  // make the calls that no kernel can answer, too
  EvidenceRule evidence = EvidenceRule::fail;
  bool diagnosis = true;                                 // look for the cause of a failure
  Surroundings around = Surroundings::bands;             // it surrounds every tensor
  bool pictures = false;                                 // keep the data that a report draws
  std::function<void(const Present&)> begins = nullptr;  // called when something else begins
};

// Each step of the case (its forward pass, its gradients, its product) runs twice, or as often as
// `repeat` says. The outputs are filled with NaN before the first call and with a large finite
// number before the second, and so on in turn. After each call the guard bands around every buffer,
// the gaps between output elements and every input byte are checked. Then the oracle judges the
// first outputs, the outputs of all calls must agree bit for bit, and the relations are asked.
// Where two calls differ, more calls tell whether the candidate reads what it should write or is
// not deterministic; a relation that is violated is asked a second time. Throws CaseError where the
// case cannot run here (memory, an unknown SIMD target).
CaseResult execute(const Case& c, Candidate& candidate, const ExecuteOptions& options = {});

// A result without a verdict, for a worker that crashed, hung or refused the case.
CaseResult failed_result(const std::string& line, const std::string& candidate, Outcome outcome,
                         const std::string& reason, Surroundings around);

// The command that runs a case again.
std::string check_command(const std::string& candidate, const std::string& line,
                          Surroundings around);
// The options that make that command ask the same as this run: " --require batch-invariant".
std::string further_options(const ExecuteOptions& options);

// Whether the case is the one in `every` cases that is asked what the candidate keeps and what its
// bits depend on.
bool is_asked_of_state(const std::string& line, int every);

// Whether the errors of a right kernel have no direction on these inputs. Only then does a bias of
// the errors tell something.
bool has_independent_zero_mean(const Case& c);

}  // namespace assay
