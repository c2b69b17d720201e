// Bitwise comparison of outputs, and pieces of problems, whose rows must have the same bits as in
// the whole.
#pragma once

#include <cstdint>
#include <bit>
#include <cmath>
#include <string>

#include <fmt/format.h>

#include "problem/attention.h"

namespace assay {

// Whether two numbers have equal bits. All NaNs count as equal. Elements come from load(), which is
// exact.
inline bool same_bits(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

// Describes the first element of row (b, h, i) of `a` that differs from the same element of row
// (b2, h, i2) of `other`. The text is empty if none differs.
inline std::string row_difference(const AttentionOutput& a, Index b, Index h, Index i,
                                  const AttentionOutput& other, Index b2, Index i2,
                                  Index value_dim) {
  const double l = load(a.lse, a.lse.at(b, h, i, 0)),
               m = load(other.lse, other.lse.at(b2, h, i2, 0));
  if (!same_bits(l, m)) return fmt::format("LSE[{}, {}, {}]: {} and {}", b, h, i, l, m);
  for (Index c = 0; c < value_dim; ++c) {
    const double x = load(a.o, a.o.at(b, h, i, c)), y = load(other.o, other.o.at(b2, h, i2, c));
    if (!same_bits(x, y)) return fmt::format("O[{}, {}, {}, {}]: {} and {}", b, h, i, c, x, y);
  }
  return "";
}

// The rows [row0, row0 + rows) of batch b, with all heads, over the first `keys` keys. This does
// not work with dropout, whose draws depend on the number of a row within its call.
inline Attention piece_of(const Attention& p, Index b, Index row0, Index rows, Index keys) {
  Attention piece = p;
  piece.shape.batch = 1;
  piece.shape.rows = rows;
  piece.shape.keys = keys;
  piece.q.origin = p.q.at(b, 0, row0, 0);
  piece.k.origin = p.k.at(b, 0, 0, 0);
  piece.v.origin = p.v.at(b, 0, 0, 0);
  piece.offset = {p.offset_of(b) + row0};
  const auto batch = usize(b);
  if (!p.key_lengths.empty()) piece.key_lengths = {std::min(p.key_lengths[batch], keys)};
  if (!p.key_starts.empty()) piece.key_starts = {std::min(p.key_starts[batch], keys)};
  if (p.keep) piece.keep.data = p.keep.data + b * p.keep.stride[0] + row0 * p.keep.stride[2];
  if (p.bias) piece.bias.origin = p.bias.at(b, 0, row0, 0);
  if (!p.query_segment.empty()) {
    const auto queries = p.query_segment.begin() + b * p.shape.rows + row0;
    const auto segments = p.key_segment.begin() + b * p.shape.keys;
    piece.query_segment.assign(queries, queries + rows);
    piece.key_segment.assign(segments, segments + keys);
  }
  return piece;
}

}  // namespace assay
