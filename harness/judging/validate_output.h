// Functions that tell in one call whether a function computes attention, or a low-bit product, on
// the shapes that it is used with.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "harness/candidates/candidate.h"
#include "oracle/verdict.h"

namespace assay {

using AttentionFunction =
    std::function<kernels::Status(const Attention& problem, const AttentionOutput& out)>;
using ProductFunction = std::function<kernels::Status(const Product& problem, const TensorView& c)>;

struct OutputValidation {
  Case inputs;  // `assay check` runs the same inputs from its line
  // On the kernel: compares every element with its proved bound, under the strictest arithmetic
  // that is not refuted.
  Verdict verdict;
  // On the reference function, which is judged in the same way: it may be wrong too.
  std::optional<Verdict> reference;
  // The largest |kernel - reference| divided by the largest |reference|, over the elements of O or
  // C where both are finite; 0 without a reference function. It is reported only and does not
  // decide.
  double relative_difference = 0;
  bool within_tolerance = true;

  bool passed() const {
    return verdict.outcome == Outcome::pass || verdict.outcome == Outcome::suspect;
  }
};

// Runs each shape on seeded inputs (normal numbers, causal if there are as many keys as rows).
// `kernel` writes O and LSE. `reference` may be nullptr, which means that there is none. Throws
// CaseError for a shape that is not possible, and std::runtime_error if a function returns a
// failure.
std::vector<OutputValidation> validate_kernel_output(const AttentionFunction& kernel,
                                                     const AttentionFunction& reference,
                                                     std::span<const AttentionShape> shapes,
                                                     double tolerance = 0.01,
                                                     Dtype dtype = Dtype::f32,
                                                     std::uint64_t seed = 1);
std::vector<OutputValidation> validate_kernel_output(const ProductFunction& kernel,
                                                     const ProductFunction& reference,
                                                     std::span<const ProductSpec> shapes,
                                                     double tolerance = 0.01,
                                                     Dtype dtype = Dtype::f32,
                                                     std::uint64_t seed = 1);

}  // namespace assay
