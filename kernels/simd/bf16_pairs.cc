#include "kernels/simd/bf16_pairs.h"

#if ASSAY_BF16_DOTS
#include <hwy/base.h>
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace assay::kernels::bf16 {
bool runs() { return __builtin_cpu_supports("avx512bf16") != 0; }
}  // namespace assay::kernels::bf16

// Only the functions of this file are compiled for the instruction, so no other code can meet it on
// a machine without it.
HWY_PUSH_ATTRIBUTES("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")
#if HWY_COMPILER_GCC_ACTUAL  // gcc 12 warns of the undefined vectors in its own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace assay::kernels::bf16 {
namespace {

constexpr Index lanes = panel_width / 2;

__m512i load_words(const float* from) { return _mm512_load_si512(from); }
__m512bh pairs(__m512i words) { return reinterpret_cast<__m512bh>(words); }
__m512bh load_pairs(const float* from) { return pairs(load_words(from)); }
__m512bh broadcast(float word) { return pairs(_mm512_castps_si512(_mm512_set1_ps(word))); }

// In memory the first element of a pair has the lower half of a word.
__m512i swapped(__m512i words) { return _mm512_rol_epi32(words, 16); }

// One kind of the operand B in A B, which is read word after word: packed panels.
struct PackedWords {
  const float* __restrict row;
  Index panel_step;
  HWY_INLINE __m512bh load(std::size_t panel, Index half) const {
    return load_pairs(row + static_cast<Index>(panel) * panel_step + half * lanes);
  }
  HWY_INLINE void next() { row += panel_width; }
};

// The words of half a panel of columns: the upper halves from `first`, the lower ones from
// `second`, which hold a panel each.
__m512i words_of_rows(__m512i first, __m512i second, Index half) {
  alignas(64) static constexpr auto indices = [] {
    std::array<std::uint16_t, 64> of{};
    for (std::size_t i = 0; i < 64; ++i)
      of[i] = static_cast<std::uint16_t>(i / 2 + (i % 2 == 1 ? 32 : 0));
    return of;
  }();
  return _mm512_permutex2var_epi16(second, _mm512_load_si512(indices.data() + 32 * half), first);
}

// The other kind: rows of values where they are stored.
struct StoredWords {
  ValueRows rows;
  HWY_INLINE __m512bh load(std::size_t panel, Index half) const {
    const auto at = static_cast<Index>(panel) * panel_width * 2;
    _mm_prefetch(reinterpret_cast<const char*>(rows.first + rows.ahead + at), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(rows.second + rows.ahead + at), _MM_HINT_T0);
    return pairs(words_of_rows(_mm512_loadu_si512(rows.first + at),
                               _mm512_loadu_si512(rows.second + at), half));
  }
  HWY_INLINE void next() {
    rows.first += rows.stride;
    rows.second += rows.stride;
  }
};

// Adds A B to the accumulators. Word (r, k) of A lies at a[r * row_step + k * depth_step].
template <std::size_t row_step, std::size_t depth_step, class Words, std::size_t... R>
HWY_INLINE void multiply_add(std::index_sequence<R...>, const float* __restrict a, Words b,
                             Index words, __m512 (&left)[sizeof...(R)],
                             __m512 (&right)[sizeof...(R)]) {
  for (Index k = 0; k < words; ++k, a += depth_step, b.next()) {
    const __m512bh b0 = b.load(0, 0), b1 = b.load(0, 1);
    ((left[R] = _mm512_dpbf16_ps(left[R], broadcast(a[R * row_step]), b0),
      right[R] = _mm512_dpbf16_ps(right[R], broadcast(a[R * row_step]), b1)),
     ...);
  }
}

// Adds a row times P panels to the accumulators.
template <class Words, std::size_t... P>
HWY_INLINE void multiply_add_row(std::index_sequence<P...>, const float* __restrict a, Words b,
                                 Index words, __m512 (&left)[sizeof...(P)],
                                 __m512 (&right)[sizeof...(P)]) {
  for (Index k = 0; k < words; ++k, b.next()) {
    const __m512bh x = broadcast(a[k]);
    ((left[P] = _mm512_dpbf16_ps(left[P], x, b.load(P, 0)),
      right[P] = _mm512_dpbf16_ps(right[P], x, b.load(P, 1))),
     ...);
  }
}

// Stores N scores, `step` floats apart, times the scale.
template <std::size_t... N>
HWY_INLINE void store_scores(std::index_sequence<N...>, const __m512 (&left)[sizeof...(N)],
                             const __m512 (&right)[sizeof...(N)], float scale, Index step,
                             float* scores) {
  const __m512 s = _mm512_set1_ps(scale);
  ((_mm512_store_ps(scores + static_cast<Index>(N) * step, _mm512_mul_ps(left[N], s)),
    _mm512_store_ps(scores + static_cast<Index>(N) * step + lanes, _mm512_mul_ps(right[N], s))),
   ...);
}

template <std::size_t... R>
void score_block(std::index_sequence<R...> rows, const float* q, Index words, const float* keys,
                 float scale, float* scores) {
  __m512 left[] = {((void)R, _mm512_setzero_ps())...},
         right[] = {((void)R, _mm512_setzero_ps())...};
  multiply_add<1, sizeof...(R)>(rows, q, PackedWords{keys, 0}, words, left, right);
  store_scores(rows, left, right, scale, score_stride, scores);
}

template <std::size_t... R>
void dot_block(std::index_sequence<R...> rows, const float* a, Index a_panel, const float* b,
               Index words, float scale, float* out) {
  __m512 left[] = {((void)R, _mm512_setzero_ps())...},
         right[] = {((void)R, _mm512_setzero_ps())...};
  for (Index w = 0; w < words; w += panel_width, a += a_panel, b += panel_width * panel_width)
    multiply_add<panel_width, 1>(rows, a, PackedWords{b, 0}, std::min(panel_width, words - w), left,
                                 right);
  store_scores(rows, left, right, scale, weight_stride, out);
}

template <std::size_t row_step, std::size_t depth_step, std::size_t... R>
void add_product(std::index_sequence<R...> rows, const float* a, const float* b, Index words,
                 float* total) {
  __m512 left[] = {((void)R, _mm512_setzero_ps())...},
         right[] = {((void)R, _mm512_setzero_ps())...};
  multiply_add<row_step, depth_step>(rows, a, PackedWords{b, 0}, words, left, right);
  const auto add = [total](std::size_t at, __m512 sum) {
    _mm512_store_ps(total + at, _mm512_add_ps(_mm512_load_ps(total + at), sum));
  };
  ((add(R * panel_width, left[R]), add(R * panel_width + lanes, right[R])), ...);
}

template <std::size_t... P>
void score_panels(std::index_sequence<P...> panels, const float* q, Index words, const float* keys,
                  Index panel_step, float scale, float* scores) {
  __m512 left[] = {((void)P, _mm512_setzero_ps())...},
         right[] = {((void)P, _mm512_setzero_ps())...};
  multiply_add_row(panels, q, PackedWords{keys, panel_step}, words, left, right);
  store_scores(panels, left, right, scale, panel_width, scores);
}

HWY_INLINE __m512 corrected(const float* accumulator, float correction) {
  return _mm512_mul_ps(_mm512_load_ps(accumulator), _mm512_set1_ps(correction));
}

template <class Words, std::size_t... R>
void value_block(std::index_sequence<R...> rows, const float* weights, Words values, Index words,
                 const float* correction, float* accumulator, Index stride) {
  const auto at = [&](std::size_t r) { return accumulator + static_cast<Index>(r) * stride; };
  __m512 left[] = {corrected(at(R), correction[R])...},
         right[] = {corrected(at(R) + lanes, correction[R])...};
  multiply_add<score_stride, 1>(rows, weights, values, words, left, right);
  ((_mm512_store_ps(at(R), left[R]), _mm512_store_ps(at(R) + lanes, right[R])), ...);
}

template <class Words, std::size_t... P>
void value_panels(std::index_sequence<P...> panels, const float* weights, Words values, Index words,
                  float correction, float* accumulator) {
  __m512 left[] = {corrected(accumulator + P * panel_width, correction)...},
         right[] = {corrected(accumulator + P * panel_width + lanes, correction)...};
  multiply_add_row(panels, weights, values, words, left, right);
  ((_mm512_store_ps(accumulator + P * panel_width, left[P]),
    _mm512_store_ps(accumulator + P * panel_width + lanes, right[P])),
   ...);
}

// Calls body with an index sequence of this length: rows of a register block, or panels.
template <class Body>
void with_rows(std::size_t rows, const Body& body) {
  if (rows == 4) body(std::make_index_sequence<4>());
  else if (rows == 3) body(std::make_index_sequence<3>());
  else if (rows == 2) body(std::make_index_sequence<2>());
  else body(std::make_index_sequence<1>());
}
template <class Body>
void with_block(std::size_t rows, const Body& body) {
  if (rows == 12) body(std::make_index_sequence<12>());
  else with_rows(rows, body);
}
template <class Body>
void with_panels(std::size_t panels, const Body& body) {
  if (panels == 4) body(std::make_index_sequence<4>());
  else if (panels == 2) body(std::make_index_sequence<2>());
  else body(std::make_index_sequence<1>());
}

// The 128-bit block b of the result is taken from row 4 * b.
__m512i load_blocks(const std::byte* rows, Index stride) {
  const auto block = [&](Index r) {
    return _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + r * stride)));
  };
  __m512i v = _mm512_mask_blend_epi32(0x00F0, block(0), block(4));
  v = _mm512_mask_blend_epi32(0x0F00, v, block(8));
  return _mm512_mask_blend_epi32(0xF000, v, block(12));
}

// Calls take(word, its elements) for the four words in the first 16 bytes of 16 rows.
template <class Take>
HWY_INLINE void transpose_block(const std::byte* rows, Index stride, const Take& take) {
  const __m512i r0 = load_blocks(rows, stride), r1 = load_blocks(rows + stride, stride),
                r2 = load_blocks(rows + 2 * stride, stride),
                r3 = load_blocks(rows + 3 * stride, stride);
  const __m512i low01 = _mm512_unpacklo_epi32(r0, r1), high01 = _mm512_unpackhi_epi32(r0, r1),
                low23 = _mm512_unpacklo_epi32(r2, r3), high23 = _mm512_unpackhi_epi32(r2, r3);
  take(0, swapped(_mm512_unpacklo_epi64(low01, low23)));
  take(1, swapped(_mm512_unpackhi_epi64(low01, low23)));
  take(2, swapped(_mm512_unpacklo_epi64(high01, high23)));
  take(3, swapped(_mm512_unpackhi_epi64(high01, high23)));
}

// Gathers the word that begins with column c; of the last column, it is a word with 0.
__m512i gather_word(const std::byte* rows, Index stride, Index c, Index dim) {
  alignas(64) std::uint32_t words[lanes];
  for (Index r = 0; r < lanes; ++r) {
    const auto* row = reinterpret_cast<const std::uint16_t*>(rows + r * stride);
    const std::uint32_t second = c + 1 < dim ? row[c + 1] : 0;
    words[r] = static_cast<std::uint32_t>(row[c]) << 16 | second;
  }
  return _mm512_load_si512(words);
}

// Calls take(half, word, its elements) for every word in order.
template <class Take>
HWY_INLINE void transpose_rows(const KeyRows& keys, Index dim, const Take& take) {
  Index c = 0;
  for (; c + 8 <= dim; c += 8) {
    // Each block fetches its share of the cache lines.
    const Index first = c / 8 % 4 * (lanes / 4);
    for (Index half = 0; half < 2; ++half)
      if (keys.ahead[half] != 0)
        for (Index r = first; r < first + lanes / 4; ++r)
          _mm_prefetch(reinterpret_cast<const char*>(keys.half[half] + keys.ahead[half] +
                                                     r * keys.stride + c / 32 * 64),
                       _MM_HINT_T0);
    transpose_block(keys.half[0] + 2 * c, keys.stride,
                    [&](Index w, __m512i v) { take(0, c / 2 + w, v); });
    transpose_block(keys.half[1] + 2 * c, keys.stride,
                    [&](Index w, __m512i v) { take(1, c / 2 + w, v); });
  }
  for (; c < dim; c += 2)
    for (Index half = 0; half < 2; ++half)
      take(half, c / 2, gather_word(keys.half[half], keys.stride, c, dim));
}

template <std::size_t... R>
void score_stored(std::index_sequence<R...> rows, const float* q, Index dim, const KeyRows& keys,
                  float scale, float* scores) {
  __m512 left[] = {((void)R, _mm512_setzero_ps())...},
         right[] = {((void)R, _mm512_setzero_ps())...};
  transpose_rows(keys, dim, [&](Index half, Index w, __m512i word) {
    const float* a = q + w * static_cast<Index>(sizeof...(R));
    if (half == 0) ((left[R] = _mm512_dpbf16_ps(left[R], broadcast(a[R]), pairs(word))), ...);
    else ((right[R] = _mm512_dpbf16_ps(right[R], broadcast(a[R]), pairs(word))), ...);
  });
  store_scores(rows, left, right, scale, score_stride, scores);
}

}  // namespace

void pack_keys(const KeyRows& keys, Index dim, float* to) {
  transpose_rows(keys, dim, [&](Index half, Index w, __m512i word) {
    _mm512_store_si512(to + w * panel_width + half * lanes, word);
  });
}

std::uint16_t pack_values(const std::byte* first, const std::byte* second, Index columns, float* to,
                          Index panel_step) {
  const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
  __m512i largest = _mm512_setzero_si512();
  for (Index c = 0; c < columns; c += panel_width, to += panel_step) {
    const __m512i one = _mm512_loadu_si512(first + 2 * c), two = _mm512_loadu_si512(second + 2 * c);
    largest = _mm512_max_epu16(largest, _mm512_max_epu16(_mm512_and_si512(one, magnitude),
                                                         _mm512_and_si512(two, magnitude)));
    _mm512_store_si512(to, words_of_rows(one, two, 0));
    _mm512_store_si512(to + lanes, words_of_rows(one, two, 1));
  }
  alignas(64) std::uint16_t each[32];
  _mm512_store_si512(each, largest);
  return *std::max_element(each, each + 32);
}

void pack_weights(float* row, Index count) {
  for (Index j = 0; j < count; j += panel_width) {
    const __m512bh rounded =
        _mm512_cvtne2ps_pbh(_mm512_load_ps(row + j + lanes), _mm512_load_ps(row + j));
    _mm512_store_si512(row + j / 2, swapped(reinterpret_cast<__m512i>(rounded)));
  }
}

void pack_weights(const float* first, const float* second, Index count, float* to) {
  for (Index j = 0; j < count; j += lanes) {
    const __m512bh rounded =
        _mm512_cvtne2ps_pbh(_mm512_load_ps(first + j), _mm512_load_ps(second + j));
    const auto halves = reinterpret_cast<__m512i>(rounded);
    _mm512_store_si512(to + j,
                       words_of_rows(_mm512_shuffle_i64x2(halves, halves, 0xEE), halves, 0));
  }
}

void transpose_words(const float* from, Index from_stride, float* to, Index to_stride) {
  // The blocks of load_blocks are four words of a row here.
  const auto* rows = reinterpret_cast<const std::byte*>(from);
  for (Index c = 0; c < lanes; c += 4)
    transpose_block(rows + 4 * c, 4 * from_stride, [&](Index w, __m512i words) {
      _mm512_store_si512(to + (c + w) * to_stride, swapped(words));
    });
}

void pack_row(const std::byte* row, Index words, float* to, Index panel_step) {
  for (Index w = 0; w < words; w += panel_width, to += panel_step)
    for (Index half = 0; half < panel_width; half += lanes)
      _mm512_store_si512(to + half, swapped(_mm512_loadu_si512(row + 4 * (w + half))));
}

void score_panel(std::size_t rows, const float* q, Index words, const float* keys, float scale,
                 float* scores) {
  with_block(rows, [&](auto block) { score_block(block, q, words, keys, scale, scores); });
}

void value_panel(std::size_t rows, const float* weights, const float* values, Index words,
                 const float* correction, float* accumulator, Index accumulator_stride) {
  with_block(rows, [&](auto block) {
    value_block(block, weights, PackedWords{values, 0}, words, correction, accumulator,
                accumulator_stride);
  });
}

void score_row(std::size_t panels, const float* q, Index words, const float* keys, Index panel_step,
               float scale, float* scores) {
  with_panels(panels, [&](auto p) { score_panels(p, q, words, keys, panel_step, scale, scores); });
}

void value_row(std::size_t panels, const float* weights, const float* values, Index panel_step,
               Index words, float correction, float* accumulator) {
  with_panels(panels, [&](auto p) {
    value_panels(p, weights, PackedWords{values, panel_step}, words, correction, accumulator);
  });
}

void score_rows(std::size_t rows, const float* q, Index dim, const KeyRows& keys, float scale,
                float* scores) {
  with_rows(rows, [&](auto block) { score_stored(block, q, dim, keys, scale, scores); });
}

void value_panel(std::size_t rows, const float* weights, const ValueRows& values, Index words,
                 const float* correction, float* accumulator, Index accumulator_stride) {
  with_rows(rows, [&](auto block) {
    value_block(block, weights, StoredWords{values}, words, correction, accumulator,
                accumulator_stride);
  });
}

void value_row(std::size_t panels, const float* weights, const ValueRows& values, Index words,
               float correction, float* accumulator) {
  with_panels(panels, [&](auto p) {
    value_panels(p, weights, StoredWords{values}, words, correction, accumulator);
  });
}

void dot_panel(std::size_t rows, const float* a, Index a_panel, const float* b, Index words,
               float scale, float* out) {
  with_block(rows, [&](auto block) { dot_block(block, a, a_panel, b, words, scale, out); });
}

void add_over_rows(std::size_t keys, const float* a, const float* b, Index words, float* total) {
  with_block(keys, [&](auto block) { add_product<1, weight_stride>(block, a, b, words, total); });
}

void add_over_keys(std::size_t rows, const float* a, const float* b, Index words, float* total) {
  with_block(rows, [&](auto block) { add_product<weight_stride, 1>(block, a, b, words, total); });
}

void add_word(float weight, const float* values, std::uint32_t kept, float* accumulator) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(kept));
  for (Index half = 0; half < panel_width; half += lanes)
    _mm512_store_ps(accumulator + half,
                    _mm512_dpbf16_ps(_mm512_load_ps(accumulator + half), broadcast(weight),
                                     pairs(_mm512_and_si512(load_words(values + half), mask))));
}

}  // namespace assay::kernels::bf16

HWY_POP_ATTRIBUTES
#else
namespace assay::kernels::bf16 {
bool runs() { return false; }
}  // namespace assay::kernels::bf16
#endif
