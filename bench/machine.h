// What this machine can do at most: the figures that every other figure is a fraction of. They drift where cores
// are shared, so measure them next to whatever is compared with them.
#pragma once

#include <cstddef>

namespace assay::bench {

// Rate of independent fp32 fused multiply-adds in registers, in GFLOP/s (a multiply-add counts two), of `threads`
// threads together, over about `seconds` of wall time. A thread that gets no core counts as one that does nothing.
double fma_gflops(int threads, double seconds);

// Rate at which `threads` threads together read, again and again, `bytes` of their own each, in GB/s (1e9).
double read_gigabytes_per_second(std::size_t bytes, int threads, double seconds);

// Name of the vector extension that both were compiled for.
const char* measured_with();

}  // namespace assay::bench
