#pragma once

#include "problem/tensor.h"

namespace assay {

// Cores that this process may use.
int hardware_threads();

// Calls body(i) once for every i in [0, n), on up to `threads` threads (0: hardware_threads()), in no fixed
// order. Allocates nothing once a loop with as many threads has run. The first exception that a body throws ends the loop and is thrown here. Nested loops are safe.
template <class Body>
void parallel_for(Index n, int threads, const Body& body);

// Calls call(body, i).
void parallel_for_each_index(Index n, int threads, void (*call)(const void* body, Index i), const void* body);

template <class Body>
void parallel_for(Index n, int threads, const Body& body) {
  parallel_for_each_index(n, threads, [](const void* it, Index i) { (*static_cast<const Body*>(it))(i); }, &body);
}

}  // namespace assay
