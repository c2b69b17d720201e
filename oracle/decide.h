// Inside oracle/: decides whether an element is inside its bound, given an enclosure of its exact
// value.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/verdict.h"

namespace assay {

// The verdict under the first contract that is not refuted or, if all are refuted, under the last
// one. options.judged is not told of elements that were judged under a refuted contract.
template <class Contracts, class Judge>
Verdict climb(const Contracts& ladder, const JudgeOptions& options, const Judge& judge) {
  JudgeOptions quiet = options;
  quiet.judged = nullptr;
  Verdict v;
  for (const auto& contract : ladder) {
    v = judge(contract, quiet);
    if (v.outcome == Outcome::fail && &contract != &ladder.back()) continue;
    if (options.judged) v = judge(contract, options);
    break;
  }
  v.declared = false;
  return v;
}

enum class Decision { inside, outside, undecided };

// What is known of a computed number after the output rounding: every number that rounds to y lies
// in [low, high].
struct Preimage {
  double low, high;
};
inline Preimage preimage(double y, Dtype out, double arithmetic_roundoff) {
  if (unit_roundoff(out) <= arithmetic_roundoff)
    return {y, y};  // the output rounding changes nothing
  if (y == std::numeric_limits<double>::infinity())
    return {overflow_threshold(out), std::numeric_limits<double>::infinity()};
  if (y == -std::numeric_limits<double>::infinity())
    return {-std::numeric_limits<double>::infinity(), -overflow_threshold(out)};
  const double h = half_ulp(out, y);
  return {y - h, y + h};
}

// bounds.md, 13, Flushed subnormals: what is known of a number that was stored as 0, if the kernel
// writes 0 in the place of every subnormal number
inline Preimage flushed_preimage(Dtype out) {
  const double least_normal = std::ldexp(1.0, format(out).min_exponent);
  return {-least_normal, least_normal};
}

// The bound of the stored number, from the bound of the computed one: the error of the output
// rounding is added.
inline double stored_bound(double bound, double exact, Dtype out, double arithmetic_roundoff) {
  const bool rounds = unit_roundoff(out) > arithmetic_roundoff;
  return bound + (rounds ? half_ulp(out, std::fabs(exact) + bound) : 0);
}

// `slack` is the relative error of the bound itself.
inline Decision decide(const Preimage& y, double o, double low, double radius, double bound,
                       double slack) {
  const double distance = std::max({0.0, (y.low - o) - low, (o - y.high) + low});
  if (distance + radius <= bound * (1 - slack) || (distance == 0 && radius == 0))
    return Decision::inside;
  if (distance - radius > bound * (1 + slack)) return Decision::outside;
  return Decision::undecided;
}

}  // namespace assay
