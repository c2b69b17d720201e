#pragma once

#include <functional>

#include "problem/tensor.h"

namespace assay {

// Cores that this process may use.
int hardware_threads();

// Calls body(i) once for every i in [0, n), on up to `threads` threads (0: hardware_threads()), in no fixed
// order. The first exception that a body throws ends the loop and is thrown here. Nested loops are safe.
void parallel_for(Index n, int threads, const std::function<void(Index)>& body);

}  // namespace assay
