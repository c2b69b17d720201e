// Runs a candidate on a case and judges what it left behind.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "harness/candidate.h"
#include "harness/pictures.h"
#include "oracle/product.h"
#include "oracle/verdict.h"
#include "problem/case.h"

namespace assay {

struct CaseResult {
  std::string line;
  std::string candidate;
  std::string reproduce;  // a command
  std::string dtype;      // of Q, or of the weights of a product
  Index tail_step = 1;    // a tail is shorter than a tile by a multiple of it
  Outcome outcome = Outcome::error;
  std::string reason;
  Verdict verdict;
  // Metamorphic relation -> "held", "violated: ..." or "not applicable: ...".
  std::map<std::string, std::string> relations;
  std::optional<QuantizationError> quantization;  // of a product whose weights were quantized, whatever the kernel does
  std::shared_ptr<Pictures> pictures;               // if they were asked for and something was judged
  double generate_seconds = 0, candidate_seconds = 0, judge_seconds = 0;
};

// The command that runs a case again.
std::string check_command(const std::string& candidate, const std::string& line, Surroundings around);

struct ExecuteOptions {
  int oracle_threads = 1;
  int ball_rows = 1;
  bool power = true;
  bool relations = true;
  Surroundings around = Surroundings::bands;  // of every tensor
  bool pictures = false;                      // keep what a report draws
  // Told when inputs are made ("inputs"), when the candidate is asked and called ("candidate") and when its answer is judged ("verdict"), so that who takes
  // long can be named.
  std::function<void(const char* whose_turn)> turn = nullptr;
  void turn_of(const char* whose) const {
    if (turn) turn(whose);
  }
};

// The candidate runs twice, its outputs poisoned with NaN first and with a large finite number then; guard
// bands around every buffer, the gaps between output elements and every input byte are checked after each
// call. Then the verdict of the oracle; then the two runs must agree bit for bit; then the relations.
// Throws CaseError where the case cannot run here (memory, an unknown target).
CaseResult execute(const Case& c, Candidate& candidate, const ExecuteOptions& options = {});

// Whether errors of a right kernel lean to neither side on these inputs, so that a leaning error says something.
bool has_independent_zero_mean(const Case& c);

// Inside harness/: the same for a product; `result` names case and candidate.
CaseResult execute_product(const Case& c, Candidate& candidate, const ExecuteOptions& options, CaseResult result);

}  // namespace assay
