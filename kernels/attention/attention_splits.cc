// The half of the forward kernel that computes by splits of the keys, which attention.cc calls.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_splits.cc"
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/attention/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

extern template class Packer<NoStages>;  // stored_rows.cc

void run_forward_by_splits(ForwardPlan& plan) {
  forward_by_splits<Operands::floats>(plan, NoStages{});
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
