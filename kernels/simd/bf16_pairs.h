// Products of pairs of bf16 with VDPBF16PS, an instruction of AVX512_BF16.
//
// A word is a pair of bf16 in the 32 bits of a float. The instruction multiplies two words and adds
// to an fp32 sum: first the product of the upper halves, then the product of the lower halves. Each
// of the two is a fused multiply-add that rounds to nearest, reads subnormal numbers as 0 and
// writes 0 for a subnormal result. So words hold the first element of a pair in their upper half,
// and every sum is one chain of such fused multiply-adds, in the order of its elements. Nothing in
// MXCSR changes this. property_tests/bf16_dot_test.cc compares the instruction with this
// description.
//
// Panels are 32 columns wide. Words and panels are aligned for a vector. A row of scores and
// weights has `score_stride` floats, in the backward pass `weight_stride`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/simd/highway_config.h"
#include "problem/tensor.h"

#include <hwy/detect_targets.h>

// Whether this program holds the code.
#define ASSAY_BF16_DOTS (HWY_ARCH_X86 && (HWY_TARGETS & HWY_AVX3) != 0)

namespace assay::kernels::bf16 {

// Whether this program holds the code, and this machine has the instruction.
bool runs();

inline constexpr Index panel_width = 32, score_stride = 128 + 16, weight_stride = 96 + 16;

constexpr Index words_of(Index elements) { return (elements + 1) / 2; }

// The rows of a panel of keys, 16 in each half, with their columns side by side.
struct KeyRows {
  const std::byte* half[2];
  Index stride;  // bytes from one row to the next
  // for each half: bytes from a row to the row that is fetched into the cache meanwhile; 0 if none
  Index ahead[2];
};

// Rows of values where they are stored, in two by two.
struct ValueRows {
  const std::byte *first, *second;
  Index stride;  // bytes from a row to the next one of its kind
  Index ahead;   // as in KeyRows
};

// Packs a panel of 32 keys to [word][key].
void pack_keys(const KeyRows& keys, Index dim, float* to);
// Packs two rows of values, which are whole panels, to 32 words in each panel of columns, with
// `panel_step` floats from one panel to the next. Returns the bits of the largest magnitude.
std::uint16_t pack_values(const std::byte* first, const std::byte* second, Index columns, float* to,
                          Index panel_step);
// Rounds a row of weights to bf16 and packs them to words, in place. `count` is a multiple of 32.
void pack_weights(float* row, Index count);
// Rounds two rows of weights to bf16 and packs them to `count` words, a multiple of 16.
void pack_weights(const float* first, const float* second, Index count, float* to);
// Transposes 16 rows of 16 words.
void transpose_words(const float* from, Index from_stride, float* to, Index to_stride);
// Packs a row of Q or dO, which is whole panels of 32 words, with `panel_step` floats from one
// panel to the next.
void pack_row(const std::byte* row, Index words, float* to, Index panel_step);

// Computes scores = scale * Q K^T for a panel of keys and 1 to 4 or 12 rows. The words of Q are
// interleaved: for each word of the head dimension, those of all rows lie side by side.
void score_panel(std::size_t rows, const float* q, Index words, const float* keys, float scale,
                 float* scores);
// Computes accumulator = correction * accumulator + P V for a panel of columns and as many rows.
void value_panel(std::size_t rows, const float* weights, const float* values, Index words,
                 const float* correction, float* accumulator, Index accumulator_stride);
// Do the same for one row and 1, 2 or 4 panels.
void score_row(std::size_t panels, const float* q, Index words, const float* keys, Index panel_step,
               float scale, float* scores);
void value_row(std::size_t panels, const float* weights, const float* values, Index panel_step,
               Index words, float correction, float* accumulator);
// Do what score_panel, value_panel and value_row do, for up to 4 rows, on keys and values that are
// not packed.
void score_rows(std::size_t rows, const float* q, Index dim, const KeyRows& keys, float scale,
                float* scores);
void value_panel(std::size_t rows, const float* weights, const ValueRows& values, Index words,
                 const float* correction, float* accumulator, Index accumulator_stride);
void value_row(std::size_t panels, const float* weights, const ValueRows& values, Index words,
               float correction, float* accumulator);
// Computes a tile of A B^T times `scale` for a panel of rows of B, which pack_keys packed, and 1 to
// 4 or 12 rows of A, which lie in panels of words as pack_row packs them.
void dot_panel(std::size_t rows, const float* a, Index a_panel, const float* b, Index words,
               float scale, float* out);
// Compute total += A B for a panel of columns, where the product is summed on its own first. The
// words of A are pairs of its rows, where sums go over rows, or of its keys.
void add_over_rows(std::size_t keys, const float* a, const float* b, Index words, float* total);
void add_over_keys(std::size_t rows, const float* a, const float* b, Index words, float* total);
// Adds the products of one word of weights with the words of a panel of columns. Halves of the
// latter that `kept` has no bits for count as 0.
void add_word(float weight, const float* values, std::uint32_t kept, float* accumulator);

}  // namespace assay::kernels::bf16
