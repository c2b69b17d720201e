#include "kernels/attention/unfused.h"

#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/unfused.cc"
#include <hwy/foreach_target.h>
// This include comes after foreach_target, which redefines the target on each of its passes.
#include "kernels/attention/unfused-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_unfused(const Attention& problem, const AttentionOutput& out, int threads) {
  unfused(problem, out, threads);
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <fmt/format.h>

#include <new>

#include "kernels/simd/by_target.h"
#include "kernels/validate.h"

namespace assay::kernels {

HWY_EXPORT(run_unfused);

Status attention_unfused(const Attention& problem, const AttentionOutput& out,
                         const Execution& how) {
  if (Status status = validate_attention(problem, out); !status.ok()) return status;
  if (problem.shape.batch == 0 || problem.shape.rows == 0) return {};
  try {
    ASSAY_OF_TARGET(run_unfused, how.target)(problem, out, how.threads);
  } catch (const std::bad_alloc&) {
    return out_of_memory("scores of rows of {} keys", problem.shape.keys);
  }
  return {};
}

}  // namespace assay::kernels
#endif  // HWY_ONCE
