// Adversarial rounding: one row of attention in which every rounding errs by all that it may.
//
// Each rounding errs in the direction that moves one output farthest from the exact one.
//
// A contract limits the size of an error but not its sign, so this arithmetic keeps the contract.
// It is computed in fp64 with errors that are added by hand. The contract's roundoffs must
// therefore be far above 2^-53.
#pragma once

#include <vector>

#include "oracle/contract.h"
#include "problem/attention.h"

namespace assay {

// A problem with one head, one row and one column of V, in binary32.
struct TinyProblem {
  TinyProblem(std::vector<float> query, std::vector<float> keys, std::vector<float> values);
  TinyProblem(const TinyProblem&) = delete;
  TinyProblem& operator=(const TinyProblem&) = delete;

  void set_bias(std::vector<float> values);
  // Makes every element of K and V a sum of so many products: a large one, and then small ones of
  // the same sign.
  void project(Index products);

  std::vector<float> q, k, v, bias;
  std::vector<double> k_absolute, v_absolute;
  ProjectedAttention attention;
};

struct AdversarialOutput {
  double o = 0, lse = 0;
};

// The output that is moved, and its direction. `fold` is the sign of the error of a folded
// constant.
struct Target {
  bool lse = false;
  int direction = 1;
  int fold = 1;
};

// `exact_o` decides in which direction the weight of a key has to err.
AdversarialOutput run_adversarial(const Contract& c, const ProjectedAttention& p, double exact_o,
                                  const Target& target);

}  // namespace assay
