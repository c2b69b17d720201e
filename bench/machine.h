// What this machine can do at most: the figures that every other figure is a fraction of. They drift where cores
// are shared, so measure them next to whatever is compared with them.
#pragma once

#include <cstddef>
#include <vector>

#include "problem/dtype.h"

namespace assay::bench {

// Rate of independent fused multiply-adds in registers, in GFLOP/s (a multiply-add counts two), of `threads` threads
// together, over about `seconds` of wall time. A thread that gets no core counts as one that does nothing. f32 and f64;
// f16, and products of bf16 summed in f32, where vectors of this build have them: 0 where not. Matrix units are not counted.
double fma_gflops(int threads, double seconds, Dtype dtype = Dtype::f32);

// Plain reads of somebody else's memory, a share for each thread, round and round: each call goes on where the last one
// stopped, so that only a footprint that fits the caches is found there.
class Reader {
 public:
  Reader(const void* data, std::size_t bytes, int threads);
  // In GB/s (1e9), over about `seconds`.
  double gigabytes_per_second(double seconds);

 private:
  const void* data_;
  std::size_t share_;                 // of a thread, in bytes
  std::vector<std::size_t> at_line_;  // of each thread
};

// The same of `bytes` for each thread.
double read_gigabytes_per_second(std::size_t bytes, int threads, double seconds);

// Name of the vector extension that both were compiled for.
const char* measured_with();

}  // namespace assay::bench
