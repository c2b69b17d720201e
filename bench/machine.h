// The limits of this machine: the figures of which every other figure is a fraction. They drift on
// machines whose cores are shared, so measure them next to whatever is compared with them.
#pragma once

#include <cstddef>
#include <vector>

#include "problem/dtype.h"

namespace assay::bench {

// Returns the rate of independent fused multiply-adds in registers, in GFLOP/s (a multiply-add
// counts as two operations), of `threads` threads together, over about `seconds` of wall time. A
// thread that gets no core counts as one that does nothing. The dtypes are f32 and f64, and f16,
// and products of bf16 summed in f32, where the vectors of this build have them; otherwise the rate
// is 0. Matrix units are not counted.
double fma_gflops(int threads, double seconds, Dtype dtype = Dtype::f32);

// Plain reads of memory that another object owns. Each thread has a share, which it reads round and
// round: each call continues where the last one stopped, so only a footprint that fits into the
// caches is found there.
class Reader {
 public:
  Reader(const void* data, std::size_t bytes, int threads);
  // Returns GB/s (1e9), measured over about `seconds`.
  double gigabytes_per_second(double seconds);

 private:
  const void* data_;
  std::size_t share_;                 // of each thread, in bytes
  std::vector<std::size_t> at_line_;  // of each thread
};

// Returns the same for `bytes` for each thread.
double read_gigabytes_per_second(std::size_t bytes, int threads, double seconds);

// Returns the name of the vector extension for which both were compiled.
const char* measured_with();

}  // namespace assay::bench
