// Inside problem/: how the generators draw numbers, and the families of values.
#pragma once

#include <Random123/philox.h>

#include <cstdint>
#include <algorithm>

#include "problem/case.h"
#include "problem/random.h"

namespace assay {

struct Position {
  Index b, h, i, d;
};

enum class Stream : std::uint32_t {
  q = 1,
  k,
  v,
  keep,
  bias,
  d_o,
  latent,
  rotary,
  up_k,
  up_v,
  a,
  codes,
  scales,
  zeros,
  d_lse
};

// 128 random bits of one position.
class Draw {
 public:
  Draw(std::uint64_t seed, Stream stream, Index b, Index h, Index i, Index d) {
    const r123::Philox4x32::ctr_type counter = {{low(i), low(d) ^ high(i) << 16, low(h), low(b)}};
    const r123::Philox4x32::key_type key = {
        {low(static_cast<Index>(seed)),
         static_cast<std::uint32_t>(seed >> 32) ^ static_cast<std::uint32_t>(stream) << 24}};
    words_ = r123::Philox4x32()(counter, key);
  }
  Draw(std::uint64_t seed, Stream stream, const Position& p)
      : Draw(seed, stream, p.b, p.h, p.i, p.d) {}
  std::uint32_t word(std::size_t w) const { return words_[w]; }
  // A number in [0, 1), a multiple of 2^-32.
  double unit(std::size_t w = 0) const { return words_[w] * 0x1p-32; }
  bool chance(double p) const { return unit(3) < p; }
  double normal() const { return normal_from(words_); }
  double sign(std::size_t w = 1) const { return words_[w] & 1 ? -1.0 : 1.0; }

 private:
  static std::uint32_t low(Index x) { return static_cast<std::uint32_t>(x); }
  static std::uint32_t high(Index x) {
    return static_cast<std::uint32_t>(static_cast<std::uint64_t>(x) >> 32);
  }
  r123::Philox4x32::ctr_type words_;
};

inline double max_of(Dtype dtype) { return format(dtype).max_finite; }
inline double min_subnormal(Dtype dtype) { return 2 * half_min_subnormal(dtype); }

// A value of V, of dO or of A, whose rows have so many columns.
inline double value(Values family, const Draw& draw, const Position& p, Dtype dtype,
                    Index columns) {
  const double n = draw.normal();
  switch (family) {
    case Values::uniform: return 1 + draw.unit();
    case Values::tiny: return 0x1p-12 * n;
    case Values::huge: return 512 * n;
    case Values::cancel: return (p.i & 1 ? -512 : 512) * (1 + 0.25 * draw.unit()) + n;
    case Values::offset: return 1000 + 4 * n;
    case Values::one_hot: return p.i % columns == p.d ? 1 : 0;
    case Values::near_overflow: return draw.sign() * max_of(dtype) * (0.5 + 0.5 * draw.unit());
    case Values::subnormal:
      return draw.sign() * min_subnormal(dtype) * static_cast<double>(draw.word(0) % 64);
    case Values::signed_zeros: return draw.word(0) % 8 == 0 ? draw.sign() : draw.sign() * 0.0;
    case Values::ramp:
      return static_cast<double>(p.i + 1) * 1e-3 + static_cast<double>(p.d + 1) * 1e-6;
    case Values::heavy_tail: return std::clamp(n * n * n * 4, -200.0, 200.0);
    case Values::ones: return 1;
    case Values::constant: return 0.25 + static_cast<double>(p.d % 16);
    case Values::biased: return -2.3 - 0.3 * draw.unit();
    case Values::head_number: return static_cast<double>(p.h + 1 + 16 * (p.b % 8));
    case Values::integers: return static_cast<double>(draw.word(0) % 17) - 8;
    case Values::balanced: return (p.i + p.d) & 1 ? -1 : 1;
    default: return n;
  }
}

}  // namespace assay
