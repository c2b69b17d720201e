// Inside oracle/: an element against its enclosure and its bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/verdict.h"

namespace assay {

// The verdict under the first of the contracts that is not refuted, or under the last. Nobody is
// told of elements under a contract that was refuted.
template <class Contracts, class Judge>
Verdict climb(const Contracts& ladder, const JudgeOptions& options, const Judge& judge) {
  JudgeOptions quiet = options;
  quiet.judged = nullptr;
  Verdict v;
  for (const auto& contract : ladder) {
    v = judge(contract, quiet);
    if (v.outcome == Outcome::fail && &contract != &ladder.back()) continue;
    return options.judged ? judge(contract, options) : v;
  }
  return v;
}

enum class Decision { inside, outside, undecided };

// What the output rounding leaves open: every number that rounds to y lies in [low, high].
struct Preimage {
  double low, high;
};
inline Preimage preimage(double y, Dtype out, double arithmetic_roundoff) {
  if (unit_roundoff(out) <= arithmetic_roundoff)
    return {y, y};  // nothing is rounded on the way out
  if (y == std::numeric_limits<double>::infinity())
    return {overflow_threshold(out), std::numeric_limits<double>::infinity()};
  if (y == -std::numeric_limits<double>::infinity())
    return {-std::numeric_limits<double>::infinity(), -overflow_threshold(out)};
  const double h = half_ulp(out, y);
  return {y - h, y + h};
}

// The bound of what is stored, from the bound of what is computed: the output rounding comes on
// top.
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
