// Inside harness/identify/: in which format a number was stored, from outputs that it makes.
#pragma once

#include <array>
#include <cmath>
#include <optional>
#include <string>

#include "problem/dtype.h"
#include "problem/index.h"

namespace assay {

// A number in a format; nullopt: it is not rounded.
using StoredFormat = std::optional<Dtype>;
inline double stored(StoredFormat dtype, double x) { return dtype ? round_to(*dtype, x) : x; }
inline std::string words_for(StoredFormat dtype) {
  return dtype ? std::string(format(*dtype).name) : "not rounded";
}
inline constexpr std::array<StoredFormat, 5> stored_formats{std::nullopt, Dtype::f16, Dtype::bf16,
                                                            Dtype::f8e4m3, Dtype::f8e5m2};

// The relative error of a weight that is not rounded: more than fast exponentials have, and less
// than binary16.
inline constexpr double weight_error = 0x1p-16;

// How many of the numbers that a model gives agree with those that were computed, within the
// rounding of the output and the tolerance.
struct Agreement {
  Index agree = 0, asked = 0;
  bool fits() const { return asked > 0 && agree * 16 >= asked * 15; }
  void add(double computed, double model, double tolerance) {
    ++asked;
    agree += std::fabs(computed - model) <= tolerance ? 1 : 0;
  }
};

}  // namespace assay
