// How a call is computed: on how many threads, and by the code of which SIMD target.
#pragma once

#include "kernels/simd/targets.h"

namespace assay::kernels {

// How to compute a call. It travels with the call, so calls on different targets can run at the
// same time. A number of threads alone means the best target.
struct Execution {
  Execution(int threads_ = 0, Target target_ = {}) : threads(threads_), target(target_) {}
  int threads;  // 0 or less: all hardware threads
  Target target;
};

}  // namespace assay::kernels
