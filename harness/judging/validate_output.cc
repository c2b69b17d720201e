#include "harness/judging/validate_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "harness/judging/outputs.h"
#include "oracle/product.h"

namespace assay {
namespace {

void require(const kernels::Status& status, const char* who, const Case& c) {
  if (!status.ok())
    throw std::runtime_error(fmt::format("{} answered status {} on '{}': {}", who,
                                         static_cast<int>(status.code), print_case(c),
                                         status.detail));
}

// The largest difference divided by the largest magnitude of b.
double difference_of(const TensorView& a, const TensorView& b) {
  double largest = 0, difference = 0;
  for (Index x = 0; x < a.shape[0]; ++x)
    for (Index y = 0; y < a.shape[1]; ++y)
      for (Index i = 0; i < a.shape[2]; ++i)
        for (Index d = 0; d < a.shape[3]; ++d) {
          const double u = load(a, a.at(x, y, i, d)), v = load(b, b.at(x, y, i, d));
          if (!std::isfinite(u) || !std::isfinite(v)) continue;
          largest = std::max(largest, std::fabs(v));
          difference = std::max(difference, std::fabs(u - v));
        }
  return difference == 0 ? 0 : difference / largest;
}

// Calls run(function, outputs) and judge(outputs) for the kernel, and for the reference if there is
// one.
template <class Outputs, class Function, class Run, class Judge, class View>
OutputValidation validate(const Case& c, const Function& kernel, const Function& reference,
                          double tolerance, const Run& run, const Judge& judge, const View& view) {
  OutputValidation v;
  v.inputs = c;
  const Outputs mine(c);
  require(run(kernel, mine), "the kernel", c);
  v.verdict = judge(mine);
  if (!reference) return v;
  const Outputs other(c);
  require(run(reference, other), "the reference", c);
  v.reference = judge(other);
  v.relative_difference = difference_of(view(mine), view(other));
  v.within_tolerance = v.relative_difference <= tolerance;
  return v;
}

const auto untouched = [](const TensorView& t, Index position) {
  return holds_poison(t, position, Poison::nan);
};

}  // namespace

std::vector<OutputValidation> validate_kernel_output(const AttentionFunction& kernel,
                                                     const AttentionFunction& reference,
                                                     std::span<const AttentionShape> shapes,
                                                     double tolerance, Dtype dtype,
                                                     std::uint64_t seed) {
  std::vector<OutputValidation> all;
  for (const AttentionShape& shape : shapes) {
    Case c;
    c.shape = shape;
    c.dtype = dtype;
    c.causal = shape.rows == shape.keys;
    c.seed = seed;
    check_case(c);
    const Inputs in(c);
    JudgeOptions options;
    options.untouched = untouched;
    all.push_back(validate<Outputs>(
        c, kernel, reference, tolerance,
        [&](const AttentionFunction& f, const Outputs& out) {
          poison(out.o, Poison::nan);
          poison(out.lse, Poison::nan);
          return f(in.problem, out.view());
        },
        [&](const Outputs& out) { return judge_by_ladder(in.problem, out.view(), 64, options); },
        [](const Outputs& out) { return out.o.view(); }));
  }
  return all;
}

std::vector<OutputValidation> validate_kernel_output(const ProductFunction& kernel,
                                                     const ProductFunction& reference,
                                                     std::span<const ProductSpec> shapes,
                                                     double tolerance, Dtype dtype,
                                                     std::uint64_t seed) {
  std::vector<OutputValidation> all;
  for (const ProductSpec& shape : shapes) {
    Case c;
    c.operation = Operation::product;
    c.product = shape;
    c.dtype = dtype;
    c.seed = seed;
    check_case(c);
    const ProductInputs in(c);
    JudgeOptions options;
    options.untouched = untouched;
    all.push_back(validate<ProductOutput>(
        c, kernel, reference, tolerance,
        [&](const ProductFunction& f, const ProductOutput& out) {
          poison(out.c, Poison::nan);
          return f(in.problem, out.c.view());
        },
        [&](const ProductOutput& out) {
          return judge_product_by_ladder(in.problem, out.c.view(), options);
        },
        [](const ProductOutput& out) { return out.c.view(); }));
  }
  return all;
}

}  // namespace assay
