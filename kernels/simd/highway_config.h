// Settings for Highway; include this file before any header of Highway. Register blocks are arrays
// of vectors, and the sizeless vectors of SVE cannot be in arrays. So Arm machines run the NEON
// code.
#pragma once

#if defined(ASSAY_FEW_TARGETS) && defined(__x86_64__)
// AVX2 and the baseline, for builds in which every further target costs minutes.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | (HWY_AVX2 - 1))  // no better one than AVX2
#elif defined(__aarch64__)
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
