#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "oracle/alteration.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// The range of binary32, without its rounding.
double in_range(double x) {
  if (std::fabs(x) > 0x1.fffffep127) return std::copysign(inf, x);
  return std::fabs(x) < 0x1p-149 ? 0 : x;
}

double exponential(const TiledSoftmax& how, double x) {
  return in_range(std::exp(how.exponent * (how.clamps ? std::min(x, 0.0) : x)));
}

// What is predicted for a row in binary32, if `exponent` is the largest argument of its
// exponentials. Nothing is predicted near the ends of the range.
Foreseen foreseen_of(double exponent, double sum) {
  constexpr double largest = 88.7, some_factors = 12, smallest_sum = 0x1p-100;
  if (exponent > largest + some_factors || sum == 0) return Foreseen::wrong;
  if (exponent > largest - some_factors || sum < smallest_sum) return Foreseen::nothing;
  return Foreseen::outputs;
}

// The running sums of some keys, or of all splits.
struct Sums {
  explicit Sums(Index columns, double first_max = -inf)
      : max(first_max), values(Eigen::RowVectorXd::Zero(columns)) {}
  double max, sum = 0;
  Eigen::RowVectorXd values;
};

// e^(before - after); 0 if nothing was summed before.
double correction(const TiledSoftmax& how, double before, double after, bool in_half) {
  if (before == -inf) return 0;
  const double c = exponential(how, before - after);
  return in_half ? round_to(Dtype::f16, c) : c;
}

double next_maximum(const TiledSoftmax& how, double running, double of_tile, double scale) {
  switch (how.maximum) {
    case TiledSoftmax::Maximum::first: return running > -inf ? running : of_tile;
    case TiledSoftmax::Maximum::of_tile: return of_tile;
    case TiledSoftmax::Maximum::scaled_again: return std::max(running, of_tile * scale);
    case TiledSoftmax::Maximum::before_scale:
      return running > -inf ? std::min(running, of_tile) : of_tile;
    default: return std::max(running, of_tile);
  }
}

}  // namespace

Foreseen sum_in_tiles(const TiledSoftmax& how, const SoftmaxRow& row,
                      const Eigen::Ref<const RowMajor, 0, Eigen::OuterStride<>>& values,
                      Eigen::Ref<Eigen::RowVectorXd> o, double& lse) {
  const Index n = std::ssize(row.scores), end = row.key0 + n;
  bool sees = false, lost = false;
  double exponent = 0;
  const auto add_tile = [&](Sums& s, Index first, Index last) {
    double of_tile = -inf, least = inf;
    for (Index j = first; j < last; ++j) {
      const double score = row.scores[usize(j - row.key0)];
      of_tile = std::max(of_tile, score);
      if (score > -inf) least = std::min(least, score);
    }
    if (how.maximum == TiledSoftmax::Maximum::before_scale) of_tile = least < inf ? least : -inf;
    if (of_tile == -inf) {
      // This kernel keeps the maximum of the last tile only. A masked tile loses it, and the sums.
      if (how.maximum == TiledSoftmax::Maximum::of_tile) s = Sums(o.size()), lost = true;
      return;
    }
    sees = true, lost = false;
    const double next = next_maximum(how, s.max, of_tile, row.scale);
    exponent = std::max({exponent, s.max - next, of_tile - next});
    const double c = correction(how, s.max, next, how.corrections_in_half);
    if (how.rescales_sum) s.sum = in_range(s.sum * c);
    if (how.rescales_values) s.values *= c;
    for (Index j = first; j < last; ++j) {
      const auto at = usize(j - row.key0);
      const double weight = exponential(how, row.scores[at] - next);
      if (!(how.drops_a_lane && j % how.tile == how.tile - 1)) s.sum += weight;
      if (row.scores[at] == -inf || (row.kept && !row.kept[at])) continue;
      s.values += (how.cast ? how.cast(weight) : weight) * values.row(j - row.key0);
    }
    const bool shorter = first / how.tile * how.tile + how.tile > row.all_keys;
    if (how.counts_padding && shorter) s.sum += in_range(std::exp(-next));
    if (last == end)
      s.sum += static_cast<double>(row.padding) * in_range(std::exp(how.fill - next));
    s.max = next;
  };
  Sums all(o.size());
  const Index split = how.split > 0 ? how.split : std::max<Index>(end, 1);
  for (Index from = row.key0 / split * split; from < end; from += split) {
    Sums part(o.size(), how.first_max);
    for (Index t = std::max(from, row.key0) / how.tile * how.tile; t < std::min(end, from + split);
         t += how.tile)
      add_tile(part, std::max({t, row.key0, from}), std::min({t + how.tile, end, from + split}));
    if (part.max == -inf) continue;
    if (how.merge_reads_sum_for_max) part.max = part.sum;
    const double max =
        how.merge_keeps_first_max && all.max > -inf ? all.max : std::max(all.max, part.max);
    const double c = correction(how, all.max, max, false),
                 d = correction(how, part.max, max, false);
    exponent = std::max({exponent, all.max - max, part.max - max});
    all.sum = all.sum * (how.merge_rescales_sum ? c : 1) + part.sum * d;
    all.values = all.values * (how.merge_rescales_values ? c : 1) + part.values * d;
    all.max = max;
  }
  if (row.sink > -inf) {
    const double max = std::max(all.max, row.sink), c = correction(how, all.max, max, false);
    all.sum = all.sum * c + std::exp(row.sink - max);
    all.values *= c;
    all.max = max;
  }
  if (all.sum == 0) {
    o.setConstant(how.zero_sum_is_nan && sees ? std::numeric_limits<double>::quiet_NaN() : 0);
    lse = -inf;
  } else {
    o = all.values / all.sum;
    lse = all.max + std::log(all.sum);
  }
  if (how.tells_beyond_range || !sees || (lost && all.sum == 0)) return Foreseen::outputs;
  return foreseen_of(exponent, all.sum);
}

}  // namespace assay
