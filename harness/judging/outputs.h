// The outputs of one call of a candidate as named tensors, and the poison that fills them before
// the call.
#pragma once

#include <string>
#include <vector>

#include "oracle/verdict.h"
#include "problem/generate.h"

namespace assay {

struct NamedOutput {
  Output output{};
  const Tensor* tensor = nullptr;
};
// The outputs, in the order in which they are compared.
using NamedOutputs = std::vector<NamedOutput>;

struct Outputs {
  // O and LSE. With `with_lse` false there is no LSE.
  explicit Outputs(const Case& c, bool with_lse = true, Surroundings around = Surroundings::bands);
  Tensor o, lse;
  AttentionOutput view() const { return {o.view(), lse.view()}; }
  NamedOutputs named() const { return {{Output::lse, &lse}, {Output::o, &o}}; }
};

// dQ, dK and dV have the layouts of Q, K and V (BHSD where those share storage) and the dtype of O.
// dBias has the broadcast axes of the bias. With `with_d_sink` false there is no dSink. The same
// surroundings as those of the inputs surround the gradients.
struct GradientOutputs {
  GradientOutputs(const Case& c, const Inputs& inputs, bool with_d_sink = true);
  Tensor dq, dk, dv, d_bias, d_sink;
  AttentionGradients view() const {
    return {dq.view(), dk.view(), dv.view(), d_bias.view(), d_sink.view()};
  }
  NamedOutputs named() const {
    return {{Output::dq, &dq},
            {Output::dk, &dk},
            {Output::dv, &dv},
            {Output::d_bias, &d_bias},
            {Output::d_sink, &d_sink}};
  }
};

// C, in the layout that the case gives it.
struct ProductOutput {
  explicit ProductOutput(const Case& c, Surroundings around = Surroundings::bands);
  Tensor c;
  NamedOutputs named() const { return {{Output::c, &c}}; }
};

// The values that fill an output before a call. The NaN is a signalling one with a payload of its
// own, so that an element that was never written is recognised: whatever computes with it gets a
// quiet NaN.
enum class Poison { nan, large, zero };
void poison(const Tensor& t, Poison with);
bool holds_poison(const TensorView& t, Index position, Poison with);
// Whether the bytes between the elements of a poisoned output are still as poison() left them.
bool gaps_intact(const Tensor& t, Poison with);

// Describes the first element whose bits differ: "LSE[b=0, h=1, row=4, column=0]: 1.5 and 1.25";
// empty if no element differs. Any two NaN are equal, and so are +0 and -0. Only the first `rows`
// rows of every head are compared (negative: all).
std::string first_difference(const NamedOutputs& a, const NamedOutputs& b, Index rows = -1);
template <class Set>
std::string first_difference(const Set& a, const Set& b, Index rows = -1) {
  return first_difference(a.named(), b.named(), rows);
}
// Compares row i of x with row j of y. Both have the shape [1, 1, M, N].
std::string first_difference_of_rows(const char* name, const TensorView& x, Index i,
                                     const TensorView& y, Index j);

}  // namespace assay
