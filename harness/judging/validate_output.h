// One call that tells whether a function computes attention, or a low-bit product, on the shapes
// that it is used with.
#pragma once

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
  Case inputs;      // `assay check` runs the same with its line
  Verdict verdict;  // of the kernel: every element against its proved bound, under the strictest
                    // arithmetic that is not refuted
  std::optional<Verdict> reference;  // of the reference function, which is no better than it is
  // Largest |kernel - reference| over largest |reference|, over the elements of O or C where both
  // are finite; without a reference function 0. Reported, and decides nothing.
  double relative_difference = 0;
  bool within_tolerance = true;

  bool passed() const {
    return verdict.outcome == Outcome::pass || verdict.outcome == Outcome::suspect;
  }
};

// For each shape, seeded inputs (normal numbers, causal where keys are as many as rows). `kernel`
// writes O and LSE; an absent reference (nullptr) is none. Throws CaseError for a shape that cannot
// be, std::runtime_error where a function answers a failure.
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
