// The declared rules of quantizing, and matrices that hold every code, scale and tie, by which
// quantizers and dequantizers are judged bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "problem/low_bit.h"
#include "problem/names.h"

namespace assay {

// How the scale of a group is rounded where scales are powers of two (E8M0). a is the largest
// magnitude of the group; x is the largest number of the element, and e its exponent.
// - floor: 2^(floor(log2 a) - e). What is above x then saturates.
// - ceil: 2^(ceil(log2 a) - e)
// - rceil: the least power of two with a <= scale * x
// - even: floor for RN(a), which is a rounded to the precision of the element, ties to even
// Every scale is at least 2^-127.
enum class GroupScale : std::uint8_t { floor, ceil, rceil, even };
template <>
inline constexpr auto table_of<GroupScale> = complete<Named<GroupScale>>({
    {GroupScale::floor, "floor"},
    {GroupScale::ceil, "ceil"},
    {GroupScale::rceil, "rceil"},
    {GroupScale::even, "even"},
});

// quantize() of problem/low_bit.h has the rule `floor`. Formats without E8M0 scales have one rule
// whatever `rule` is.
LowBitMatrix quantize_by(GroupScale rule, LowBit format, Index k, Index n, Index group,
                         const std::function<double(Index k, Index n)>& value,
                         Surroundings around = Surroundings::bands);

// The exponent of the scale of a group in a cache, which is that of `rceil` for any finite largest
// magnitude: the least e >= -127 with largest <= 2^e * (largest number of the element).
int covering_exponent(Dtype element, double largest);

// f32 numbers [k][n].
struct WeightSet {
  Index k = 0, n = 0;
  std::vector<float> values;
  double at(Index row, Index column) const {
    return static_cast<double>(values[usize(row * n + column)]);
  }
};
// Numbers that a quantizer rounds: for scales over the whole range, every number that has a code,
// the ties between them, the neighbours of those ties, what saturates, zeros of both signs, and the
// groups at which the rules of scales differ. A column has one scale.
WeightSet ties_of(LowBit format, Index group);

// Every code under scales over the whole range, with every zero point: what a dequantizer reads.
// NaN and infinities are among them where the format has them.
LowBitMatrix codes_of(LowBit format, Index group);

}  // namespace assay
