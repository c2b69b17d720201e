// How a call is computed: on how many threads, and by the code of which SIMD target.
#pragma once

#include "kernels/targets.h"

namespace assay::kernels {

// Travels with the call, so that calls on different targets can run at the same time. A number of threads alone means
// the best target.
struct Execution {
  Execution(int threads_ = 0, Target target_ = {}) : threads(threads_), target(target_) {}
  int threads;  // 0 and below: all
  Target target;
};

}  // namespace assay::kernels
