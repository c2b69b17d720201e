#include "oracle/power.h"

#include <cmath>
#include <vector>

#include "oracle/key_values.h"
#include "oracle/lanes.h"

namespace assay {

void Power::add(const Power& other) {
  pairs += other.pairs;
  for (std::size_t c = 0; c < change_count; ++c) {
    by_output[c] += other.by_output[c];
    by_lse[c] += other.by_lse[c];
    by_either[c] += other.by_either[c];
    for (std::size_t k = 0; k < tile_kind_count; ++k) lanes[k][c] |= other.lanes[k][c];
  }
}

namespace {

// So many vectors of columns are looked at before one asks whether they are enough.
constexpr Index at_once = 4;

TileKind tile_kind(Index key, Index keys, Index tile) {
  const Index t = key / tile, tiles = (keys + tile - 1) / tile;
  if (tiles == 1) return TileKind::only;
  if (t == 0) return TileKind::first;
  if (t + 1 < tiles) return TileKind::interior;
  return keys % tile == 0 ? TileKind::last_full : TileKind::tail;
}

}  // namespace

void certify_row(const KeyValues& kv, const Block& block, Index r, const double* full_bound,
                 double lse_bound, Index keys, Index tile, Power& power) {
  const Index columns = kv.values.cols(), n = block.count;
  const Index dv = block.value_dim;
  // `inverse` is 1 / (2 B) for each column. It is 0 where a column cannot show anything, because it
  // is padding or its bound is not finite.
  std::vector<double> o(usize(columns), 0), inverse(o.size(), 0);
  for (Index c = 0; c < dv; ++c) {
    const BlockElement& element = block.element(r, c);
    if (element.kind != Kind::finite) continue;
    const double b = full_bound[r * dv + c];
    o[usize(c)] = element.value;
    if (b > 0x1p-1000 && std::isfinite(b)) inverse[usize(c)] = 0.5 / b;
    else if (b <= 0x1p-1000) inverse[usize(c)] = 0x1p999;
  }
  double from_zero = 0;
  for (std::size_t c = 0; c < o.size(); ++c)
    from_zero = std::max(from_zero, std::fabs(o[c]) * inverse[c]);
  const double* weights = block.weight.data() + r * n;
  // Changes of the log-sum-exp by p, log1p(p) for instance, are compared with 2 lse_bound.
  const double shown_growth = std::expm1(2 * lse_bound), shown_loss = -std::expm1(-2 * lse_bound);
  for (Index j = 0; j < n; ++j) {
    if (!block.visible[block.pair(r, j)]) continue;
    ++power.pairs;
    const Index key = block.key0 + j;
    // The last key is exchanged with the one before it.
    const Index next = key + 1 < keys ? key + 1 : key - 1;
    const double* v = kv.values.data() + key * columns;
    const double* neighbour = next >= 0 ? kv.values.data() + next * columns : v;
    // A key that dropout drops has the value 0.
    const bool kept = block.kept.empty() || block.kept[block.pair(r, j)];
    const double kept_value = kept ? 1 : 0, p = weights[j];
    const Index at_next = next - block.key0;
    const bool next_counts =
        at_next >= 0 && at_next < n && (block.kept.empty() || block.kept[block.pair(r, at_next)]);
    const double exchanged = std::fabs(kept_value * p - (next_counts ? weights[at_next] : 0));
    const auto shows_misweighted = [&](double centred) {
      return 0.01 * p * centred > 1 + 0.01 * p;
    };
    const auto shows_exchanged = [&](double exchange) { return exchanged * exchange > 1; };
    // The largest changes of the columns, until the changes that are hardest to see would be seen.
    double centred = 0, exchange = 0;
    for (Index c = 0; c < columns; c += at_once * lane_count) {
      Doubles from_mean{}, from_neighbour{};
      for (Index at = c; at < std::min(c + at_once * lane_count, columns); at += lane_count) {
        const Doubles x = load_lanes(v + at), scale = load_lanes(inverse.data() + at);
        from_mean = larger(from_mean, absolute(kept_value * x - load_lanes(o.data() + at)) * scale);
        from_neighbour = larger(from_neighbour, absolute(x - load_lanes(neighbour + at)) * scale);
      }
      for (int l = 0; l < lane_count; ++l) {  // NaN, of an infinite V, is never the larger
        centred = std::max(centred, from_mean[l]);
        exchange = std::max(exchange, from_neighbour[l]);
      }
      if (shows_misweighted(centred) && (exchanged == 0 || shows_exchanged(exchange))) break;
    }
    // A row that loses its only key is fully masked and gives 0.
    const std::array<bool, change_count> output = {p < 1 ? p * centred > 1 - p : from_zero > 1,
                                                   p * centred > 1 + p, shows_exchanged(exchange),
                                                   shows_misweighted(centred)};
    const std::array<bool, change_count> lse = {p < 1 ? p > shown_loss : std::isfinite(lse_bound),
                                                p > shown_growth, false, 0.01 * p > shown_growth};
    const auto kind = static_cast<std::size_t>(tile_kind(key, keys, tile));
    for (std::size_t c = 0; c < change_count; ++c) {
      power.by_output[c] += output[c];
      power.by_lse[c] += lse[c];
      power.by_either[c] += output[c] || lse[c];
      if (output[c] || (lse[c] && static_cast<Change>(c) == Change::misweighted))
        power.lanes[kind][c].set(usize(key % tile));
    }
  }
}

}  // namespace assay
