// Loops on several threads.
#pragma once

#include "problem/tensor.h"

namespace assay {

// The number of cores that this process may use.
int hardware_threads();

// Calls body(i) once for every i in [0, n), in no fixed order, on up to `threads` threads (0:
// hardware_threads()). It allocates nothing within a ParallelRegion for the same number of threads.
// The first exception that a body throws ends the loop and is thrown here. Nested loops are safe.
template <class Body>
void parallel_for(Index n, int threads, const Body& body);

// Until the end of a scope, loops of this thread that ask for `threads` threads share the resources
// they need. The resources are made before the first of these loops; a kernel opens a region before
// it writes anything. Regions of other threads, and loops within loops, have their own resources.
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
