// One more instantiation of the kernels, whose policy picks its fault at run time.
#include "kernels/simd/highway_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "harness/faults/faulty_stages.cc"
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
#include "harness/faults/faulty_stages.h"
#include "kernels/attention/attention-inl.h"
#include "kernels/attention/backward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

void run_faulty_forward(ForwardPlan& plan, const void* stages) {
  static_cast<const FaultyStages*>(stages)->misplace(plan);
  forward(plan, *static_cast<const FaultyStages*>(stages));
}
void run_faulty_backward(const BackwardPlan& plan, const void* stages) {
  backward(plan, *static_cast<const FaultyStages*>(stages));
}
std::int64_t faulty_target_bit() { return HWY_TARGET; }

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <map>
#include <vector>

#include "kernels/simd/by_target.h"

namespace assay {
namespace kernels {
HWY_EXPORT(run_faulty_forward);
HWY_EXPORT(run_faulty_backward);
HWY_EXPORT(faulty_target_bit);
}  // namespace kernels

void FaultyStages::mask_wrongly(const kernels::StageView& view) const {
  const float infinity = std::numeric_limits<float>::infinity();
  const float fill = fault == "masked-with-minus-ten-thousand"_fault ? -10000.0f
                     : fault == "masked-with-lowest"_fault ? std::numeric_limits<float>::lowest()
                     : fault == "softcap-after-mask"_fault && problem->softcap > 0
                         ? -problem->softcap
                         : -infinity;
  const bool from_key_zero =
      fault == "alibi-distance-from-key-zero"_fault && !problem->alibi_slopes.empty();
  if (fill == -infinity && !from_key_zero) return;
  for (Index r = 0; r < view.rows; ++r) {
    const float shift = from_key_zero
                            ? problem->alibi_slopes[usize(view.head)] *
                                  static_cast<float>(view.row0 + r + problem->offset_of(view.b))
                            : 0;
    for (Index c = 0; c < view.columns; ++c) {
      float& s = view.data[r * view.row_stride + c];
      s = s == -infinity ? fill : s + shift;
    }
  }
}

// Subtracts the dropped lane from the row sums. Their stage comes after the weights of all heads of
// the tile.
void FaultyStages::drop_lane(kernels::Stage stage, const kernels::StageView& view) const {
  static thread_local std::map<Index, std::vector<float>> lanes;
  std::vector<float>& lane = lanes[view.head];
  if (stage == kernels::Stage::weights) {
    lane.assign(usize(view.rows), 0);
    for (Index r = 0; r < view.rows; ++r)
      for (Index c = 7; c < view.columns; c += 8)
        lane[usize(r)] += view.data[r * view.row_stride + c * view.column_stride];
  }
  if (stage == kernels::Stage::row_sum)
    for (Index r = 0; r < view.rows; ++r) view.data[r * view.row_stride] -= lane[usize(r)];
}

void FaultyStages::divide_empty_row(const kernels::StageView& view) const {
  const kernels::KeyRange seen = kernels::visible_keys(*problem, view.b, view.row0);
  if (seen.begin == seen.end)
    std::fill_n(view.data, view.columns, std::numeric_limits<float>::quiet_NaN());
}

// Writes what P V gives over whole tiles where V is not finite at keys of weight 0: NaN.
void FaultyStages::add_masked_values(const kernels::StageView& view) const {
  const kernels::KeyRange seen = kernels::visible_keys(*problem, view.b, view.row0);
  if (seen.begin == seen.end) return;
  const Index head = view.head / problem->shape.group(),
              end = std::min((seen.end + tile() - 1) / tile() * tile(), problem->shape.keys);
  for (Index j = seen.begin / tile() * tile(); j < end; ++j) {
    if (j >= seen.begin && j < seen.end) continue;
    for (Index c = 0; c < view.columns; ++c)
      if (!std::isfinite(load(problem->v, problem->v.at(view.b, head, j, c))))
        view.data[c] = std::numeric_limits<float>::quiet_NaN();
  }
}

kernels::RunForward faulty_forward(const kernels::Target& target) {
  using namespace kernels;
  return ASSAY_OF_TARGET(run_faulty_forward, target);
}
kernels::RunBackward faulty_backward(const kernels::Target& target) {
  using namespace kernels;
  return ASSAY_OF_TARGET(run_faulty_backward, target);
}
kernels::Target planted_fault_target(const kernels::Target& target) {
  using namespace kernels;
  return Target::of_bit(ASSAY_OF_TARGET(faulty_target_bit, target)());
}

}  // namespace assay
#endif  // HWY_ONCE
