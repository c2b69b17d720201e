// The low-bit product with a policy that picks its fault at run time, for the best target.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "harness/faults/faulty_product.cc"
#ifndef HWY_DISABLED_TARGETS
#ifdef ASSAY_SANITIZED  // the code of the other targets takes minutes to compile with sanitizers
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | (HWY_AVX2 - 1))  // no better one than AVX2
#else
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4)  // the best target of any machine, and a baseline
#endif
#endif
#include <hwy/foreach_target.h>
// This comes after foreach_target, which redefines the target on each of its passes.
#include "harness/faults/faulty_product.h"
#include "kernels/product/product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_faulty_product(const ProductPlan& plan, const void* stages) {
  run_product<Code::e2m1, Code::int4, Code::int8, Code::e4m3, Code::e5m2>(
      plan, *static_cast<const FaultyProductStages*>(stages));
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/simd/by_target.h"

namespace assay {
namespace kernels {
HWY_EXPORT(run_faulty_product);
}  // namespace kernels

kernels::Status run_planted_product(const PlantedFault& fault, const Product& problem,
                                    const TensorView& c, const kernels::Execution& how) {
  using namespace kernels;
  std::shared_ptr<const PackedWeights> w;
  if (Status status = PackedWeights::pack(problem.w, w); !status.ok()) return status;
  FaultyProductStages stages;
  stages.fault = fault.fault;
  stages.c = c;
  ProductPlan plan;
  if (problem.a) plan.a = &problem.a;
  else plan.a_low = &problem.a_low;
  plan.w = w.get();
  plan.c = c;
  plan.m = problem.m;
  plan.threads = how.threads;
  return plan_and_run_product(plan, ASSAY_OF_TARGET(run_faulty_product, how.target), &stages);
}

}  // namespace assay
#endif  // HWY_ONCE
