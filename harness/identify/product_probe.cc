#include "harness/identify/product_probe.h"

#include <fmt/format.h>

#include <algorithm>

#include "harness/judging/step.h"

namespace assay {
namespace {

std::uint32_t code_of(const LowBitTraits& t, double x) {
  if (!t.integer) return static_cast<std::uint32_t>(encode(t.element, x));
  return static_cast<std::uint32_t>(static_cast<int>(x) + (t.bits == 8 ? 0 : 8)) &
         (t.bits == 8 ? 0xFFu : 0xFu);
}

}  // namespace

ProductProbe::ProductProbe(Candidate& candidate, const Case& asked)
    : candidate_(candidate), case_(asked) {
  std::string refused;
  // At least two groups, and columns as kernels want them.
  case_.product.k = std::max<Index>(128, 2 * case_.product.group_size());
  for (const Index m : {64, 1})
    for (const Index n : {64, 128, 256}) {
      case_.product.m = m;
      case_.product.n = n;
      check_case(case_);
      const ProductInputs in(case_);
      const ProductStep step{case_, in};
      const std::string why = why_unsupported(candidate, step.call(step.outputs()));
      const std::string missing = candidate.features().missing(case_);
      refused +=
          fmt::format("\n  {}: {}", print_case(case_), missing.empty() ? why : "no " + missing);
      if (!why.empty() || !missing.empty()) continue;
      try {
        (void)ask({});
        return;
      } catch (const CandidateDeclined& e) {  // some say so only when they are called
        refused += e.what();
      }
    }
  throw CandidateDeclined("the kernel takes none of the shapes that inputs are made for:" +
                          refused);
}

void ProductProbe::write(ProductInputs& in, Index at, const ProductSum& sum) const {
  const ProductSpec& p = case_.product;
  for (Index t = 0; t < in.problem.w.groups(); ++t) {
    in.w.set_scale(t, at, static_cast<std::uint32_t>(encode(format().scale, sum.scale(t))));
    if (format().integer) in.w.set_zero(t, at, format().bits == 8 ? 0 : 8);
  }
  for (Index j = 0; j < terms(); ++j) {
    const ProductTerm term = sum.term(j);
    const Index k = place_in_k(j);
    const std::uint32_t code = code_of(format(), term.code);
    if (p.format != LowBit::fp4_sparse) in.w.set_code(k, at, code);
    else if (j % 2 == 0)
      in.w.set_kept(k / 4, at, 0, 1, code, code_of(format(), sum.term(j + 1).code));
    if (at >= p.m) continue;
    if (p.a_format) in.a_low.set_code(k, at, code_of(traits(*p.a_format), term.a));
    else store(in.problem.a, in.problem.a.at(0, 0, at, k), round_to(case_.dtype, term.a));
  }
}

std::vector<double> ProductProbe::ask(const std::vector<ProductSum>& sums,
                                      double tensor_scale) const {
  const ProductSpec& p = case_.product;
  const Index width = std::min(p.m, p.n), count = std::ssize(sums);
  const ProductSum nothing{.term = [](Index) { return ProductTerm(); }};
  std::vector<double> result;
  Index first = 0;
  do {
    ProductInputs in(case_);
    for (Index n = 0; n < p.n; ++n)
      write(in, n, n < width && first + n < count ? sums[usize(first + n)] : nothing);
    if (p.a_format)
      for (Index m = 0; m < p.m; ++m)
        for (Index t = 0; t < in.problem.a_low.groups(); ++t)
          in.a_low.set_scale(t, m,
                             static_cast<std::uint32_t>(encode(traits(*p.a_format).scale, 1)));
    in.w.set_tensor_scale(static_cast<float>(tensor_scale));
    in.problem.w = in.w.view();
    const ProductStep step{case_, in};
    const ProductOutput out = step.outputs();
    const std::string wrong = run_guarded(step, candidate_, out, Poison::nan, execution_of(case_));
    if (!wrong.empty()) throw CandidateError(wrong);
    const TensorView c = out.c.view();
    for (Index i = 0; i < width && first + i < count; ++i)
      result.push_back(load(c, c.at(0, 0, i, i)));
    first += width;
  } while (first < count);
  return result;
}

}  // namespace assay
