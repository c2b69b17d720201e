// SIMD targets by name: which ones are compiled, which ones this machine runs, and forcing one of them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace assay::kernels {

std::vector<std::string> compiled_targets();
// The compiled targets that this machine can run, the best first.
std::vector<std::string> runnable_targets();
// Makes every kernel of this process use the target (empty: the best again). False if it is not runnable.
bool force_target(std::string_view name);
// The target that the kernels use now.
std::string chosen_target();

}  // namespace assay::kernels
