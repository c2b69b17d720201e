// The product of weights whose codes are nibbles. The product has two files because each is
// compiled for every SIMD target.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/product/product_nibbles.cc"
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/product/product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_nibble_product(const ProductPlan& plan, const void*) {
  run_product<Code::e2m1, Code::int4>(plan, NoProductStages{});
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/simd/by_target.h"

namespace assay::kernels {

HWY_EXPORT(run_nibble_product);

RunProduct nibble_product(const Target& target) {
  return ASSAY_OF_TARGET(run_nibble_product, target);
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
