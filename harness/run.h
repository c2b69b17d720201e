// One call of a candidate, with everything around its buffers watched.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "harness/candidate.h"
#include "problem/generate.h"

namespace assay {

// Fills of an output before the call. The NaN carries a payload, so that an element left alone is recognised.
enum class Poison { nan, large };

struct Outputs {
  // lse false: there is none.
  explicit Outputs(const Case& c, bool with_lse = true);
  Tensor o, lse;
  AttentionOutput view() const { return {o.view(), lse.view()}; }
};

// dQ, dK and dV laid out as Q, K and V (where those share storage: BHSD) in the dtype of O, dBias as the bias varies.
struct GradientOutputs {
  GradientOutputs(const Case& c, const Inputs& inputs);
  Tensor dq, dk, dv, d_bias, d_sink;
  AttentionGradients view() const { return {dq.view(), dk.view(), dv.view(), d_bias.view(), d_sink.view()}; }
};

// C, laid out as the case says.
struct ProductOutput {
  explicit ProductOutput(const Case& c);
  Tensor c;
};

void poison(const Tensor& t, Poison with);
bool holds_poison(const TensorView& t, Index position, Poison with);

// What went wrong around the call ("o: a guard band was overwritten", "status 5 ..."); empty if nothing did.
std::string call_guarded(Candidate& candidate, const Case& c, const Inputs& inputs, const Outputs& outputs, Poison with, int threads);

// The same for the backward pass, which reads `forward` and writes `gradients`.
std::string call_backward_guarded(Candidate& candidate, const Inputs& inputs, const Outputs& forward, const GradientOutputs& gradients, Poison with,
                                  int threads);

// The same for a product, whose bytes are those of `inputs`.
std::string call_product_guarded(Candidate& candidate, const ProductInputs& inputs, const Product& problem, const Tensor& c, Poison with, int threads);
// Without a look around it: "status 5 ..." or empty.
std::string run_product_plainly(Candidate& candidate, const Product& problem, const TensorView& c, int threads);

// "row 3 ..." of the first element of O or LSE whose bits differ; empty if none does. Only rows below `rows`
// of every head are looked at (negative: all).
std::string first_difference(const Outputs& a, const Outputs& b, Index rows = -1);
std::string first_difference(const GradientOutputs& a, const GradientOutputs& b);
std::string first_difference(const Tensor& a, const Tensor& b, Index rows = -1);
// Row i of x against row j of y, [1, 1, M, N] both.
std::string first_difference_of_rows(const char* name, const TensorView& x, Index i, const TensorView& y, Index j);

}  // namespace assay
