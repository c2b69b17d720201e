// Loops on several threads.
#pragma once

#include "problem/tensor.h"

namespace assay {

// Cores that this process may use.
int hardware_threads();

// Calls body(i) once for every i in [0, n), on up to `threads` threads (0: hardware_threads()), in
// no fixed order. Allocates nothing within a ParallelRegion for as many threads. The first
// exception that a body throws ends the loop and is thrown here. Nested loops are safe.
template <class Body>
void parallel_for(Index n, int threads, const Body& body);

// Until the end of a scope, loops of this thread for as many threads as asked for here share what
// they need, which is there before the first of them: a kernel opens one before it writes anything.
// Regions of other threads, and loops within loops, have their own.
class ParallelRegion {
 public:
  explicit ParallelRegion(int threads);
  ~ParallelRegion();
  ParallelRegion(const ParallelRegion&) = delete;
  ParallelRegion& operator=(const ParallelRegion&) = delete;

 private:
  void* const outer_;  // the region around this one
  void* arena_ = nullptr;
};

// Calls call(body, i).
void parallel_for_each_index(Index n, int threads, void (*call)(const void* body, Index i),
                             const void* body);

template <class Body>
void parallel_for(Index n, int threads, const Body& body) {
  parallel_for_each_index(
      n, threads, [](const void* it, Index i) { (*static_cast<const Body*>(it))(i); }, &body);
}

}  // namespace assay
