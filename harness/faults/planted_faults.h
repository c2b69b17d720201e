// Deliberate, realistic bugs in the production kernels, which test the tests. A bug is planted
// through the stage policy, through what a cache is given and returns, or through what the backward
// pass is handed.
#pragma once

#include <string_view>

#include "harness/faults/fault_table.h"
#include "kernels/simd/execution.h"
#include "kernels/attention/stages.h"
#include "kernels/status.h"
#include "problem/generate.h"

namespace assay {

// Whether the case runs the code that the fault is in.
bool reaches(const PlantedFault& fault, const Case& c);

// Sees every stage of a kernel, in the order in which the kernel computes them. The views are the
// kernel's own memory.
class StageObserver {
 public:
  virtual ~StageObserver() = default;
  virtual void at(kernels::Stage stage, const kernels::StageView& view) = 0;
};
// Runs the production kernels on one thread, with their stages watched.
kernels::Status run_watched(Fault fault, const Attention& problem, const AttentionOutput& out,
                            const kernels::Target& target, StageObserver& observer);

// Runs the production kernels with the fault, on the target of the call, or on the baseline if
// faults are not compiled for that target.
kernels::Status run_planted_fault(const PlantedFault& fault, const Attention& problem,
                                  const AttentionOutput& out, const kernels::Execution& how);
kernels::Status run_planted_backward(const PlantedFault& fault, const Attention& problem,
                                     const AttentionBackwardInput& in,
                                     const AttentionGradients& out, const kernels::Execution& how,
                                     StageObserver* observer = nullptr);
kernels::Status run_planted_product(const PlantedFault& fault, const Product& problem,
                                    const TensorView& c, const kernels::Execution& how);
kernels::Status run_planted_cache(const PlantedFault& fault, const Case& c, const Inputs& inputs,
                                  const AttentionOutput& out, const kernels::Execution& how);
// The target whose code a call on `target` runs.
kernels::Target planted_fault_target(const kernels::Target& target);

}  // namespace assay
