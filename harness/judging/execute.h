// Runs a candidate on a case and judges what it left behind.
#pragma once

#include <functional>
#include <string>

#include "harness/candidates/candidate.h"
#include "harness/results/result.h"
#include "problem/case.h"

namespace assay {

// Whose turn it is while a case runs, so that who takes long can be named.
enum class Turn : std::uint8_t { inputs, candidate, verdict };
template <>
inline constexpr auto table_of<Turn> = complete<Named<Turn>>({
    {Turn::inputs, "inputs"},
    {Turn::candidate, "candidate"},
    {Turn::verdict, "verdict"},
});

struct ExecuteOptions {
  int oracle_threads = 1;
  int ball_rows = 1;
  bool power = true;
  bool relations = true;
  Surroundings around = Surroundings::bands;  // of every tensor
  bool pictures = false;                      // keep what a report draws
  std::function<void(Turn)> turn = nullptr;   // told when a turn begins
};

// Each step of the case (its forward pass, its gradients, its product) runs twice, the outputs
// poisoned with NaN first and with a large finite number then. After each call the guard bands
// around every buffer, the gaps between output elements and every input byte are checked. Then the
// oracle judges the first outputs; then the two runs must agree bit for bit; then the relations are
// asked. Throws CaseError where the case cannot run here (memory, an unknown SIMD target).
CaseResult execute(const Case& c, Candidate& candidate, const ExecuteOptions& options = {});

// A result without a verdict: the worker crashed, hung or refused.
CaseResult failed_result(const std::string& line, const std::string& candidate, Outcome outcome,
                         const std::string& reason, Surroundings around);

// The command that runs a case again.
std::string check_command(const std::string& candidate, const std::string& line,
                          Surroundings around);

// Whether errors of a right kernel lean to neither side on these inputs, so that a leaning error
// says something.
bool has_independent_zero_mean(const Case& c);

}  // namespace assay
