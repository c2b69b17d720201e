// The backward kernel in pairs of bf16. Highway's target is AVX3, as in attention_pairs.cc.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/backward_pairs.cc"
#ifndef HWY_DISABLED_TARGETS  // AVX3 and a baseline, for which nothing is instantiated
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX2 | (HWY_AVX3 - 1))
#endif
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/attention/backward-inl.h"

#if HWY_TARGET == HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_backward_of_pairs(const BackwardPlan& plan, const void*) {
  backward<Operands::pairs>(plan, NoStages{});
}
#if ASSAY_AMX
void run_backward_of_amx(const BackwardPlan& plan, const void*) {
  backward<Operands::amx>(plan, NoStages{});
}
#endif

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace assay::kernels {

RunBackward backward_of_pairs() {
#if ASSAY_BF16_DOTS
  return N_AVX3::run_backward_of_pairs;
#else
  return nullptr;
#endif
}
RunBackward backward_of_amx() {
#if ASSAY_AMX
  return N_AVX3::run_backward_of_amx;
#else
  return nullptr;
#endif
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
