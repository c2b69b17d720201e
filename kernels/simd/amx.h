// Products of pairs of bf16 with TDPBF16PS, an instruction of AMX.
//
// It adds the products of 16 rows of words with 16 columns of words, up to 16 words deep, to a tile
// of fp32 sums. Of every chunk of 16 words, the products of the upper halves are one chain of fused
// multiply-adds from 0, those of the lower halves are another, the two sums are added, and the
// result is added to the tile. Each of these steps rounds to nearest, reads subnormal numbers as 0
// and writes 0 for a subnormal result. Nothing in MXCSR changes this. property_tests/amx_test.cc
// compares the instruction with this description.
//
// Words are those of kernels/simd/bf16_pairs.h, and so are panels.
#pragma once

#include "kernels/simd/bf16_pairs.h"
#include "problem/tensor.h"

// Whether this program holds the code.
#if ASSAY_BF16_DOTS && defined(__linux__) && defined(__x86_64__)
#define ASSAY_AMX 1
#else
#define ASSAY_AMX 0
#endif

namespace assay::kernels::amx {

// Whether this program holds the code, this machine has the instruction, and the system lets the
// process use it.
bool runs();

inline constexpr Index tile_rows = 16, chunk_words = 16;

constexpr Index whole_chunks(Index words) {
  return (words + chunk_words - 1) / chunk_words * chunk_words;
}
constexpr Index whole_tiles(Index rows) { return (rows + tile_rows - 1) / tile_rows * tile_rows; }

// The tile registers of this thread, as long as the object lives. Fewer rows than 16 serve
// add_groups() with as many rows, and nothing else.
class Configured {
 public:
  explicit Configured(Index rows = tile_rows);
  ~Configured();
  Configured(const Configured&) = delete;
  Configured& operator=(const Configured&) = delete;
};

enum class Sum { from_zero, onto };

// Computes C = A B or C += A B for a panel of columns. A has rows of words, `a_stride` floats
// apart, and C rows of sums. `rows` is at most 32. A and C have memory for whole_tiles(rows): the
// further rows of C become anything. B is a panel, [word][column]; `words` are whole chunks.
void multiply(Index rows, const float* a, Index a_stride, const float* b, Index words, Sum sum,
              float* c, Index c_stride);

// Groups of words: the last of them may be shorter.
struct Groups {
  Index count, words, words_of_last;
};
// Computes totals += scale * A W over some groups, each summed on its own first, for a panel of
// columns. `rows` is at most 32, and A has memory for whole_tiles(rows). A group has whole chunks
// of words, [word][column] in W. Its scales are a panel.
void add_groups(Index rows, const float* a, Index a_stride, const float* weights,
                const Groups& groups, const float* scales, float* totals, Index totals_stride);

// Computes C = K Q^T for 32 keys where they are stored, whose elements are whole chunks of words,
// and 16 rows of Q. `q` is [word][row], with the halves of a word as they are in memory, and C is
// [key][row]. Both sums of a chunk are the same numbers as in multiply(), in exchanged places.
void multiply_stored(const bf16::KeyRows& keys, const float* q, Index words, float* c);

}  // namespace assay::kernels::amx
