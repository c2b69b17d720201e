// Adversarial rounding: one row of attention whose every rounding errs by its full allowance.
//
// Each errs in the direction that takes one output farthest from the exact one.
//
// A contract says how large an error may be, not which sign it has, so this is an arithmetic that
// keeps the contract. It is computed in fp64, with errors put in by hand: the contract's roundoffs
// must be far above 2^-53.
#pragma once

#include <vector>

#include "oracle/contract.h"
#include "problem/attention.h"

namespace assay {

// A problem of one head, one row and one column of V, in binary32.
struct TinyProblem {
  TinyProblem(std::vector<float> query, std::vector<float> keys, std::vector<float> values);
  TinyProblem(const TinyProblem&) = delete;
  TinyProblem& operator=(const TinyProblem&) = delete;

  void set_bias(std::vector<float> values);

  std::vector<float> q, k, v, bias;
  Attention attention;
};

struct AdversarialOutput {
  double o = 0, lse = 0;
};

// Which output is moved, and which way. `fold` is the sign of the error of a folded constant.
struct Target {
  bool lse = false;
  int direction = 1;
  int fold = 1;
};

// `exact_o` decides which way a key's weight has to err.
AdversarialOutput run_adversarial(const Contract& c, const Attention& p, double exact_o,
                                  const Target& target);

}  // namespace assay
