// Inside kernels/device/: reads and writes numbers in memory, for attention.cl and product.cl.
// INPUT and OUTPUT are 1 for f32, 2 for f16, 3 for bf16, as the host numbers them.

// Without contraction, every rounding that a bound counts is a rounding that was written here.
#pragma OPENCL FP_CONTRACT OFF

#define WHOLE(name) long name;
#define REAL(name) float name;

inline float load_as(global const void* data, long at, int dtype) {
  if (dtype == 1) return ((global const float*)data)[at];
  if (dtype == 2) return vload_half(at, (global const half*)data);
  return as_float((uint)((global const ushort*)data)[at] << 16);
}

inline void store_as(global void* data, long at, int dtype, float x) {
  if (dtype == 1) {
    ((global float*)data)[at] = x;
  } else if (dtype == 2) {
    vstore_half_rte(x, at, (global half*)data);
  } else {
    const uint bits = as_uint(x);
    // Rounds to nearest, ties to even; NaN must not round to infinity.
    ((global ushort*)data)[at] =
        (ushort)((isnan(x) ? bits | 0x400000u : bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
  }
}
