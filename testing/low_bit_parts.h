// The codes and scales of a low-bit matrix as numbers, for kernels that tests emulate.
#pragma once

#include <cstdint>
#include <vector>

#include "oracle/product.h"

namespace assay {

// W[k, n] = code[k * N + n] * scale[t * N + n] * tensor scale, t = k / group. A matrix without
// scales is one group with the scale 1.
struct LowBitParts {
  Index group = 0, groups = 0;
  std::vector<double> code, scale;
};

inline LowBitParts parts_of(const LowBitView& w) {
  LowBitParts parts;
  parts.group = w.group > 0 ? w.group : w.k;
  parts.groups = w.group > 0 ? w.groups() : 1;
  // Products of a code and a scale are exact in binary64, and so is the division that undoes them.
  parts.code = decode_weights(w);
  const LowBitTraits& f = traits(w.format);
  for (Index t = 0; t < parts.groups; ++t)
    for (Index n = 0; n < w.n; ++n) {
      double s = 1;
      if (w.group > 0) {
        const Index at = f.layout == CodeLayout::columns ? n * w.groups() + t : t * w.n + n;
        auto bits = static_cast<std::uint64_t>(w.scales[at * (f.scale == Dtype::f16 ? 2 : 1)]);
        if (f.scale == Dtype::f16) bits |= static_cast<std::uint64_t>(w.scales[2 * at + 1]) << 8;
        s = decode(f.scale, bits);
      }
      parts.scale.push_back(s);
    }
  for (Index k = 0; k < w.k; ++k)
    for (Index n = 0; n < w.n; ++n)
      parts.code[usize(k * w.n + n)] /=
          static_cast<double>(w.tensor_scale) * parts.scale[usize(k / parts.group * w.n + n)];
  return parts;
}

}  // namespace assay
