// One more instantiation of the kernels, whose policy picks its fault at run time.
#include "kernels/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "harness/faulty_stages.cc"
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)  // the best target of any machine, and a baseline
#endif
#include <hwy/foreach_target.h>
// After foreach_target, which redefines the target on each of its passes.
#include "harness/faulty_stages.h"
#include "kernels/attention-inl.h"
#include "kernels/backward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_faulty_forward(ForwardPlan& plan, const void* stages) { forward(plan, *static_cast<const FaultyStages*>(stages)); }
void run_faulty_backward(const BackwardPlan& plan, const void* stages) { backward(plan, *static_cast<const FaultyStages*>(stages)); }
const char* faulty_target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace assay {
namespace kernels {
HWY_EXPORT(run_faulty_forward);
HWY_EXPORT(run_faulty_backward);
HWY_EXPORT(faulty_target_name);
}  // namespace kernels

kernels::RunForward faulty_forward() {
  using namespace kernels;
  return HWY_DYNAMIC_DISPATCH(run_faulty_forward);
}
kernels::RunBackward faulty_backward() {
  using namespace kernels;
  return HWY_DYNAMIC_DISPATCH(run_faulty_backward);
}
std::string_view planted_fault_target() {
  using namespace kernels;
  return HWY_DYNAMIC_DISPATCH(faulty_target_name)();
}

}  // namespace assay
#endif  // HWY_ONCE
