// The weights of a low-bit product, in the order in which the kernels read them.
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/status.h"
#include "problem/low_bit.h"

namespace assay::kernels {

// Refuse what pack() refuses. The second one checks the shape alone and reads no byte.
Status validate_low_bit(const LowBitView& w);
Status validate_low_bit_shape(const LowBitView& w);

// W in a low-bit format, in panels of 64 columns. A weight of a 4-bit format takes half a byte, any
// other weight takes one byte; scales and zero points keep their own width. A 2:4 sparse matrix is
// expanded, so it needs the bandwidth of a dense one. Immutable.
class PackedWeights {
 public:
  static constexpr Index panel = 64;

  // The status is invalid_arguments for null and for negative numbers, for group sizes that the
  // format does not have, for codes that it forbids (infinite scales, negative ones in E4M3, zero
  // points above 15 of int4, metadata of fp4_sparse whose positions do not ascend), and for a
  // tensor scale if the format has none.
  static Status pack(const LowBitView& w, std::shared_ptr<const PackedWeights>& packed);
  // Writes the bytes again; nibbles behind K become 0. The buffers have the sizes that sizes_of()
  // gives for this format, k, n and group.
  Status unpack(std::byte* codes, std::byte* scales, std::byte* extra) const;

  LowBit format() const { return format_; }
  Index k() const { return k_; }
  Index n() const { return n_; }
  Index group() const { return group_; }  // K if there are no scales
  Index groups() const { return groups_; }
  bool has_scales() const { return scaled_; }
  float tensor_scale() const { return tensor_scale_; }
  Index panels() const { return (n_ + panel - 1) / panel; }
  Index blocks() const { return (k_ + 7) / 8; }  // each has eight k

  // The blocks of eight k of a panel. With 4 bits, every four columns take 16 bytes; byte i holds,
  // for column (i % 8) / 2, k = i / 8 * 2 + i % 2 in its low nibble and k + 4 in its high nibble.
  // Two table look-ups and one interleaving turn such bytes into pairs of bf16. With 8 bits the
  // order is [k][column].
  const std::uint8_t* panel_codes(Index p) const {
    return codes_.get() + p * blocks() * block_bytes();
  }
  Index block_bytes() const { return panel * 8 * bits_ / 8; }
  // [group][column]; a scale takes one byte, or two if it is f16.
  const std::uint8_t* panel_scales(Index p) const {
    return scales_.data() + p * groups_ * panel * scale_bytes_;
  }
  Index scale_bytes() const { return scale_bytes_; }
  const std::int8_t* panel_zeros(Index p) const { return zeros_.data() + p * groups_ * panel; }

  // Access to single elements.
  std::uint32_t code(Index k, Index n) const;
  float value(Index k, Index n) const;  // decoded, with the zero point subtracted
  float scale(Index t, Index n) const;
  int zero(Index t, Index n) const {
    return zeros_[usize((n / panel * groups_ + t) * panel + n % panel)];
  }

 private:
  PackedWeights() = default;
  std::uint32_t scale_code(Index t, Index n) const;

  LowBit format_ = LowBit::mxfp4;
  Index k_ = 0, n_ = 0, group_ = 0, groups_ = 0;
  int bits_ = 4;
  bool scaled_ = true;
  float tensor_scale_ = 1;
  Index scale_bytes_ = 1;
  hwy::AlignedFreeUniquePtr<std::uint8_t[]> codes_;
  std::vector<std::uint8_t> scales_, kept_;  // kept_ holds the metadata of fp4_sparse, [quad][n]
  std::vector<std::int8_t> zeros_;
};

}  // namespace assay::kernels
