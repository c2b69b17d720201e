// Low-bit matrices as data, byte by byte: codes, scales and what belongs to them; and the low-bit
// product. Meaning: docs/semantics.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "problem/tensor.h"

namespace assay {

// fp4 has f16 scales for groups. fp4_sparse has them too, and keeps two of each four consecutive k.
enum class LowBit : std::uint8_t { mxfp4, nvfp4, fp4, fp4_sparse, f8e4m3, f8e5m2, int8, int4 };

// Where the bytes of a matrix [K, N] lie. G is the group size; a column has the groups
// t = 0 .. ceil(K / G) - 1.
// - columns: column n is ceil(K * bits / 8) bytes with k ascending. A byte holds two nibbles, the
//   low one first. Scales are [N][groups].
// - words: 32-bit words [ceil(K / 8)][N] of eight nibbles along k, the least significant first.
//   Scales are [groups][N].
// - sparse: words [ceil(K / 16)][N] of the eight codes that are kept of 16 k, in the same order.
//   The metadata are words [ceil(K / 32)][N] of eight nibbles, one for each four k: the position of
//   the second kept code * 4 + the position of the first. Scales are [groups][N].
// - bytes: codes are [K][N], and scales are [groups][N].
// Nibbles and words behind K hold no data, and must not be used as data whatever they hold.
enum class CodeLayout : std::uint8_t { columns, words, sparse, bytes };

struct LowBitTraits {
  LowBit value;
  std::string_view name;
  int bits;       // of a code
  Dtype element;  // of the code; without meaning for integers
  // If true, value = (q - zero point) * scale. q and zero points are -128 to 127 for int8, and 0 to
  // 15 for int4.
  bool integer;
  CodeLayout layout;
  Dtype scale;      // e8m0, f8e4m3 (its sign clear) or f16 (finite or NaN)
  Index group;      // size along k; the default where it is free
  bool group_free;  // it can be any multiple of 8; for f8 also 0, which means no scales
};
template <>
inline constexpr auto table_of<LowBit> = [] {
  using enum CodeLayout;
  return complete<LowBitTraits>({
      {LowBit::mxfp4, "mxfp4", 4, Dtype::f4e2m1, false, columns, Dtype::e8m0, 32, false},
      {LowBit::nvfp4, "nvfp4", 4, Dtype::f4e2m1, false, columns, Dtype::f8e4m3, 16, false},
      {LowBit::fp4, "fp4", 4, Dtype::f4e2m1, false, words, Dtype::f16, 128, true},
      {LowBit::fp4_sparse, "fp4-sparse", 4, Dtype::f4e2m1, false, sparse, Dtype::f16, 128, true},
      {LowBit::f8e4m3, "f8e4m3", 8, Dtype::f8e4m3, false, columns, Dtype::e8m0, 32, true},
      {LowBit::f8e5m2, "f8e5m2", 8, Dtype::f8e5m2, false, columns, Dtype::e8m0, 32, true},
      {LowBit::int8, "int8", 8, Dtype::f64, true, bytes, Dtype::f16, 128, true},
      {LowBit::int4, "int4", 4, Dtype::f64, true, words, Dtype::f16, 128, true},
  });
}();

constexpr const LowBitTraits& traits(LowBit format) { return row_of(format); }

// A view of bytes that others own. value[k, n] = decoded code * decoded scale * tensor_scale.
struct LowBitView {
  LowBit format = LowBit::mxfp4;
  Index k = 0, n = 0;
  Index group = 32;
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  // The zero points [groups][N], one byte each, or the metadata of fp4_sparse.
  const std::byte* extra = nullptr;
  float tensor_scale = 1;  // nvfp4 only

  Index groups() const { return group > 0 ? (k + group - 1) / group : 0; }
  explicit operator bool() const { return codes != nullptr; }
};

// The numbers of bytes in the parts of a matrix.
struct LowBitSizes {
  Index codes = 0, scales = 0, extra = 0;
};
LowBitSizes sizes_of(LowBit format, Index k, Index n, Index group);

// A matrix with storage of its own, written element by element: the reference packer. Codes behind
// K are filled with ones, so that a kernel that reads them as data gives a wrong result.
class LowBitMatrix {
 public:
  LowBitMatrix() = default;
  LowBitMatrix(LowBit format, Index k, Index n, Index group,
               Surroundings around = Surroundings::bands);

  LowBitView view() const;
  void set_code(Index k, Index n, std::uint32_t code);
  void set_scale(Index t, Index n, std::uint32_t code);
  void set_zero(Index t, Index n, int zero);
  void set_tensor_scale(float scale) { tensor_scale_ = scale; }
  // Sets the group of four that begins at k = 4 * quad: the kept positions, first < second, and
  // their codes.
  void set_kept(Index quad, Index n, int first, int second, std::uint32_t first_code,
                std::uint32_t second_code);

  const Tensor& codes() const { return codes_; }
  const Tensor& scales() const { return scales_; }
  const Tensor& extra() const { return extra_; }

 private:
  LowBit format_ = LowBit::mxfp4;
  Index k_ = 0, n_ = 0, group_ = 0;
  float tensor_scale_ = 1;
  Tensor codes_, scales_, extra_;
};

// Quantizes the finite numbers value(k, n) by the declared rules. Each division is rounded to
// binary64 and then once to its code, with ties to even. a is the largest magnitude of a group.
// - mxfp4, f8: scale = 2^(floor(log2 a) - e), at least 2^-127, where e is the exponent of the
//   element's largest number.
// - nvfp4: tensor scale = RN32(a of the matrix / (6 * 448)), or 1 where that is 0;
//   scale = RN(a / (6 * tensor scale)). Codes are those of x / (scale * tensor scale), and 0 where
//   that scale is 0.
// - fp4, fp4_sparse: scale = max(RN16(a / 6), 2^-24). fp4_sparse keeps the two largest magnitudes
//   of four k; ties go to the lower index.
// - int8, int4: h and l are the largest and the smallest of the group and 0;
//   scale = max(RN16((h - l) / (levels - 1)), 2^-24);
//   zero point = RN(-l / scale) + the smallest q, code = RN(x / scale) + zero point. Both are
//   clamped to the range of q.
// Elements saturate. Throws std::domain_error for NaN, infinity, and a scale that overflows its
// format.
LowBitMatrix quantize(LowBit format, Index k, Index n, Index group,
                      const std::function<double(Index k, Index n)>& value,
                      Surroundings around = Surroundings::bands);

// C[m, n] = sum_k A[m, k] W[k, n], with exact products and sums of what the codes mean. A is a
// tensor [1, 1, M, K] in f32, f16 or bf16, or it is low-bit with k along columns; its n then counts
// the rows of A.
struct Product {
  Index m = 0, n = 0, k = 0;
  TensorView a;
  LowBitView a_low;
  LowBitView w;
};

}  // namespace assay
