#include "kernels/simd/amx.h"

#if ASSAY_AMX
#include <hwy/base.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace assay::kernels::amx {
namespace {

bool has_instructions() {
  return __builtin_cpu_supports("amx-tile") != 0 && __builtin_cpu_supports("amx-bf16") != 0;
}

// Linux saves tile registers only for processes that have asked for it (arch_prctl(2)).
bool may_use_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

bool runs() {
  static const bool answer = bf16::runs() && has_instructions() && may_use_tiles();
  return answer;
}

}  // namespace assay::kernels::amx

// Only the functions of this file are compiled for the instruction, as in bf16_pairs.cc.
HWY_PUSH_ATTRIBUTES("avx2,fma,avx512f,amx-tile,amx-bf16")

namespace assay::kernels::amx {
namespace {

// Registers 0 to 3 hold two by two tiles of C, 4 and 5 rows of A, 6 and 7 columns of B. All have 16
// rows of 64 bytes.
struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr Index floats_of_a_register_row = 16;
constexpr long bytes(Index floats) { return static_cast<long>(floats * 4); }

// Rows [0, 16) of A and C, and [16, 32) if `two`.
template <bool two>
HWY_INLINE void multiply_tiles(const float* a, Index a_stride, const float* b, Index words, Sum sum,
                               float* c, Index c_stride) {
  const long c_bytes = bytes(c_stride), a_bytes = bytes(a_stride),
             b_bytes = bytes(bf16::panel_width);
  float *lower_c = c + tile_rows * c_stride, *right_c = c + floats_of_a_register_row;
  const float *lower_a = a + tile_rows * a_stride, *right_b = b + floats_of_a_register_row;
  if (sum == Sum::from_zero) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (two) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, right_c, c_bytes);
    if constexpr (two) {
      _tile_loadd(2, lower_c, c_bytes);
      _tile_loadd(3, lower_c + floats_of_a_register_row, c_bytes);
    }
  }
  for (Index w = 0; w < words; w += chunk_words) {
    _tile_loadd(4, a + w, a_bytes);
    _tile_loadd(6, b + w * bf16::panel_width, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right_b + w * bf16::panel_width, b_bytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (two) {
      _tile_loadd(5, lower_a + w, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, right_c, c_bytes);
  if constexpr (two) {
    _tile_stored(2, lower_c, c_bytes);
    _tile_stored(3, lower_c + floats_of_a_register_row, c_bytes);
  }
}

// gcc 12 does not compile members of classes for the target.
void configure(Index rows) {
  Configuration configuration;
  for (int of_a_or_c = 0; of_a_or_c < 6; ++of_a_or_c)
    configuration.rows[of_a_or_c] = static_cast<std::uint8_t>(rows);
  // The intrinsic tells the compiler that it reads eight bytes. It reads all of them.
  asm volatile("" : : "r"(&configuration) : "memory");
  _tile_loadconfig(&configuration);
}
void release() { _tile_release(); }

}  // namespace

Configured::Configured(Index rows) { configure(rows); }
Configured::~Configured() { release(); }

void multiply(Index rows, const float* a, Index a_stride, const float* b, Index words, Sum sum,
              float* c, Index c_stride) {
  // The intrinsics that load tiles do not tell the compiler what they read.
  asm volatile("" ::: "memory");
  if (rows > tile_rows) multiply_tiles<true>(a, a_stride, b, words, sum, c, c_stride);
  else multiply_tiles<false>(a, a_stride, b, words, sum, c, c_stride);
}

void add_groups(Index rows, const float* a, Index a_stride, const float* weights,
                const Groups& groups, const float* scales, float* totals, Index totals_stride) {
  constexpr Index width = bf16::panel_width, lanes = floats_of_a_register_row;
  // While one group is multiplied, the sums of the one before it are on their way to memory.
  alignas(64) float sums[2][2 * tile_rows * width];
  const auto add = [&](Index g) {
    for (Index half = 0; half < width; half += lanes) {
      const __m512 scale = _mm512_load_ps(scales + g * width + half);
      for (Index r = 0; r < rows; ++r) {
        float* total = totals + r * totals_stride + half;
        _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_load_ps(sums[g % 2] + r * width + half),
                                               scale, _mm512_load_ps(total)));
      }
    }
  };
  for (Index g = 0; g < groups.count; ++g) {
    const Index words = g + 1 == groups.count ? groups.words_of_last : groups.words;
    multiply(rows, a, a_stride, weights, words, Sum::from_zero, sums[g % 2], width);
    if (g > 0) add(g - 1);
    a += words;
    weights += words * width;
  }
  if (groups.count > 0) add(groups.count - 1);
}

void multiply_stored(const bf16::KeyRows& keys, const float* q, Index words, float* c) {
  asm volatile("" ::: "memory");
  constexpr long row_bytes = bytes(tile_rows);
  _tile_zero(0);
  _tile_zero(1);
  for (Index w = 0; w < words; w += chunk_words) {
    for (Index half = 0; half < 2; ++half)
      if (keys.ahead[half] != 0)
        for (Index r = 0; r < tile_rows; ++r)
          _mm_prefetch(reinterpret_cast<const char*>(keys.half[half] + keys.ahead[half] +
                                                     r * keys.stride + 4 * w),
                       _MM_HINT_T0);
    _tile_loadd(6, q + w * tile_rows, row_bytes);
    _tile_loadd(4, keys.half[0] + 4 * w, keys.stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, keys.half[1] + 4 * w, keys.stride);
    _tile_dpbf16ps(1, 5, 6);
  }
  _tile_stored(0, c, row_bytes);
  _tile_stored(1, c + tile_rows * tile_rows, row_bytes);
}

}  // namespace assay::kernels::amx

HWY_POP_ATTRIBUTES
#else
namespace assay::kernels::amx {
bool runs() { return false; }
}  // namespace assay::kernels::amx
#endif
