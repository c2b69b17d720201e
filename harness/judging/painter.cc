#include "harness/judging/painter.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "oracle/visibility.h"
#include "oracle/weight_map.h"

namespace assay {
namespace {

// The first edge is half an ulp, which is the most that rounding alone costs. The edges after it
// are powers of two.
constexpr int ulp_bins = 24;
double ulp_edge(int bin) { return bin == 0 ? 0 : std::ldexp(1.0, bin - 2); }

Index cells_of(Index extent, Index step) { return (extent + step - 1) / step; }

std::optional<double> drawn(double ratio) {
  if (ratio < 0) return std::nullopt;
  return ratio;
}

// The share of visible pairs in each cell, as a digit.
Pictures::Mask mask_of(const Attention& p, Index b, Index h, Index most) {
  const AttentionShape& s = p.shape;
  Pictures::Mask mask{b, h, s.rows, s.keys, cells_of(s.rows, most), cells_of(s.keys, most), {}};
  const Index keys = cells_of(s.keys, mask.key_step);
  RowVisibility row;
  for (Index first = 0; first < s.rows; first += mask.row_step) {
    const Index last = std::min(s.rows, first + mask.row_step);
    std::vector<Index> seen(usize(keys), 0);
    for (Index i = first; i < last; ++i) {
      evaluate_visibility(p, b, h, i, row);
      for (Index j = row.begin; j < row.end; ++j)
        if (row.bias[usize(j)] != -std::numeric_limits<double>::infinity())
          ++seen[usize(j / mask.key_step)];
    }
    std::string digits;
    for (Index k = 0; k < keys; ++k) {
      const Index end = std::min(s.keys, (k + 1) * mask.key_step);
      const Index pairs = (last - first) * (end - k * mask.key_step);
      const auto share = static_cast<double>(seen[usize(k)]);
      digits += static_cast<char>('0' + std::lround(9.0 * share / static_cast<double>(pairs)));
    }
    mask.cells.push_back(digits);
  }
  return mask;
}

}  // namespace

Painter::Painter(const Attention& p) : shape_(p.shape) {
  const AttentionShape& s = p.shape;
  const bool any = p.causal || p.window_left >= 0 || p.window_right >= 0 ||
                   !p.key_lengths.empty() || !p.key_starts.empty() || masks_elements(p);
  if (!any || s.batch == 0 || s.rows == 0 || s.keys == 0) return;
  // Heads that look the same are drawn only once.
  const Index last_b = s.batch - 1, last_h = s.query_heads - 1;
  for (const auto& [b, h] :
       {std::pair<Index, Index>{0, 0}, {0, last_h}, {last_b, 0}, {last_b, last_h}}) {
    Pictures::Mask mask = mask_of(p, b, h, most_mask_cells);
    if (std::ranges::none_of(mask_, [&](const auto& other) { return other.cells == mask.cells; }))
      mask_.push_back(std::move(mask));
  }
}

Painter::Painter(Index rows, Index columns) : product_rows_(rows), product_columns_(columns) {}

Painter::Grid Painter::make_grid(Output output) const {
  const AttentionShape& s = shape_;
  Index rows = s.rows, columns = s.value_dim;
  switch (output) {
    case Output::lse: columns = 1; break;
    case Output::dq: columns = s.dim; break;
    case Output::dk: rows = s.keys, columns = s.dim; break;
    case Output::dv: rows = s.keys; break;
    case Output::d_bias: columns = s.keys; break;
    case Output::d_sink: rows = columns = 1; break;
    case Output::c: rows = product_rows_, columns = product_columns_; break;
    default: break;
  }
  Grid g{rows, columns, cells_of(rows, most_cells), cells_of(columns, most_cells), {}, -1};
  g.cells.assign(usize(cells_of(rows, g.row_step) * g.cell_columns()), -1);
  return g;
}

void Painter::add(const Element& e) {
  const std::lock_guard lock(mutex_);
  const auto [at, made] = grids_.try_emplace({e.output, e.b, e.h});
  Grid& g = at->second;
  if (made) g = make_grid(e.output);
  const Index row = std::clamp<Index>(e.row, 0, g.rows - 1);
  const Index column = std::clamp<Index>(e.column, 0, g.columns - 1);
  const Index index = row / g.row_step * g.cell_columns() + column / g.column_step;
  double& cell = g.cells[usize(index)];
  cell = std::max(cell, e.ratio);
  g.worst = std::max(g.worst, e.ratio);
  if (e.output == Output::o) {
    double& of_row = tiles_.try_emplace(e.row, -1).first->second;
    of_row = std::max(of_row, e.ratio);
  }
  std::vector<std::int64_t>& ulps =
      ulps_.try_emplace(e.output, usize(ulp_bins) + 1, 0).first->second;
  int bin = 0;
  while (bin < ulp_bins && !(e.ulp < ulp_edge(bin + 1))) ++bin;
  ++ulps[usize(bin)];
}

Pictures::Map Painter::map_of(const Place& place, const Grid& g) {
  const auto& [output, b, h] = place;
  Pictures::Map map{output, b, h, g.rows, g.columns, g.row_step, g.column_step, {}, {}};
  map.row_axis = output == Output::dk || output == Output::dv ? "key" : "query";
  for (std::size_t at = 0; at < g.cells.size(); ++at) {
    if (static_cast<Index>(at) % g.cell_columns() == 0) map.cells.emplace_back();
    map.cells.back().push_back(drawn(g.cells[at]));
  }
  return map;
}

Pictures Painter::pictures(Index row_tile) const {
  const std::lock_guard lock(mutex_);
  Pictures pictures;
  std::map<Output, std::vector<std::pair<Place, const Grid*>>> by_output;
  for (const auto& [place, grid] : grids_)
    by_output[std::get<Output>(place)].emplace_back(place, &grid);
  for (auto& [output, grids] : by_output) {
    if (grids.size() > 1) {
      std::vector<OptionalRatios> ratios;
      for (const auto& [place, grid] : grids) {
        const auto b = usize(std::get<1>(place));
        const auto h = usize(std::get<2>(place));
        if (ratios.size() <= b) ratios.resize(b + 1);
        if (ratios[b].size() <= h) ratios[b].resize(h + 1);
        ratios[b][h] = grid->worst;
      }
      pictures.heads.push_back({output, std::move(ratios)});
    }
    std::ranges::sort(grids, {},
                      [](const auto& g) { return std::pair(-g.second->worst, g.first); });
    grids.resize(std::min<std::size_t>(grids.size(), most_maps));
    for (const auto& [place, grid] : grids) pictures.maps.push_back(map_of(place, *grid));
  }
  if (const Index count = cells_of(shape_.rows, row_tile); !tiles_.empty() && count > 1) {
    std::vector<double> worst(usize(count), -1);
    for (const auto& [row, ratio] : tiles_) {
      double& of_tile = worst[usize(row / row_tile)];
      of_tile = std::max(of_tile, ratio);
    }
    pictures.tiles.emplace().tile = row_tile;
    for (const double ratio : worst) pictures.tiles->ratios.push_back(drawn(ratio));
  }
  for (const auto& [output, counts] : ulps_) {
    Pictures::Ulps ulps{output, {}, {counts.begin(), counts.end() - 1}, counts.back()};
    for (int bin = 0; bin <= ulp_bins; ++bin) ulps.edges.push_back(ulp_edge(bin));
    pictures.ulps.push_back(std::move(ulps));
  }
  pictures.mask = mask_;
  return pictures;
}

std::optional<LackingWeights> weights_of(const ProjectedAttention& problem,
                                         const AttentionOutput& out, const Contract* declared,
                                         const Verdict& failed, int threads) {
  constexpr Index most_cells = 64, tile = 64;
  const Contract contract = declared ? *declared : contract_ladder(problem.q.dtype, tile).front();
  const std::optional<WeightMap> map =
      map_weights(problem, out, contract, failed, most_cells, threads);
  if (!map) return std::nullopt;
  LackingWeights drawn{map->b, map->h, map->rows, map->keys, map->row_step, map->key_step, {}};
  for (const WeightMap::Row& row : map->sampled) {
    OptionalRatios& cells = drawn.cells.emplace_back(usize(cells_of(map->keys, map->key_step)));
    // A picture shows no more digits.
    for (std::size_t k = 0; k < row.shares.size(); ++k)
      cells[k] = std::round(row.shares[k] * 100) / 100;
  }
  return drawn;
}

}  // namespace assay
