// Before any include of Highway. Register blocks are arrays of vectors, which the sizeless vectors of SVE cannot
// be in: Arm machines run the NEON code.
#pragma once

#if defined(__aarch64__)
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
