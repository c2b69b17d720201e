#include "harness/pictures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "oracle/visibility.h"

namespace assay {
namespace {

using Json = nlohmann::json;

// Half an ulp is what rounding alone costs; from one on, powers of two.
constexpr int ulp_bins = 24;
double ulp_edge(int bin) { return bin == 0 ? 0 : std::ldexp(1.0, bin - 2); }

Json number(double x) {
  if (std::isfinite(x)) return x;
  return std::isnan(x) ? "nan" : "inf";
}

// Which share of each cell's pairs is visible, as a digit.
Json mask_of(const Attention& p, Index b, Index h, Index most) {
  const AttentionShape& s = p.shape;
  const Index row_step = (s.rows + most - 1) / most, key_step = (s.keys + most - 1) / most;
  const Index rows = (s.rows + row_step - 1) / row_step, keys = (s.keys + key_step - 1) / key_step;
  Json cells = Json::array();
  RowVisibility row;
  for (Index r = 0; r < rows; ++r) {
    std::vector<Index> seen(static_cast<std::size_t>(keys), 0);
    const Index first = r * row_step, last = std::min(s.rows, first + row_step);
    for (Index i = first; i < last; ++i) {
      evaluate_visibility(p, b, h, i, row);
      for (Index j = row.begin; j < row.end; ++j)
        if (row.bias[static_cast<std::size_t>(j)] != -std::numeric_limits<double>::infinity()) ++seen[static_cast<std::size_t>(j / key_step)];
    }
    std::string digits;
    for (Index k = 0; k < keys; ++k) {
      const Index pairs = (last - first) * (std::min(s.keys, (k + 1) * key_step) - k * key_step);
      digits += static_cast<char>('0' + std::lround(9.0 * static_cast<double>(seen[static_cast<std::size_t>(k)]) / static_cast<double>(pairs)));
    }
    cells.push_back(digits);
  }
  return {{"b", b}, {"h", h}, {"rows", s.rows}, {"keys", s.keys}, {"row_step", row_step}, {"key_step", key_step}, {"cells", cells}};
}

}  // namespace

Pictures::Pictures(const Attention& p) : shape_(p.shape), mask_(Json::array()) {
  const AttentionShape& s = p.shape;
  const bool any = p.causal || p.window_left >= 0 || p.window_right >= 0 || !p.key_lengths.empty() || !p.key_starts.empty() || masks_elements(p);
  if (!any || s.batch == 0 || s.rows == 0 || s.keys == 0) return;
  // Heads that look the same are drawn once.
  for (const auto& [b, h] : {std::pair<Index, Index>{0, 0}, {0, s.query_heads - 1}, {s.batch - 1, 0}, {s.batch - 1, s.query_heads - 1}}) {
    Json drawn = mask_of(p, b, h, most_mask_cells);
    if (std::ranges::none_of(mask_, [&](const Json& other) { return other["cells"] == drawn["cells"]; })) mask_.push_back(std::move(drawn));
  }
}

Pictures::Pictures(Index rows, Index columns) : mask_(Json::array()), product_rows_(rows), product_columns_(columns) {}

Pictures::Grid Pictures::make_grid(Output output) const {
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
  Grid g{rows, columns, (rows + most_cells - 1) / most_cells, (columns + most_cells - 1) / most_cells, {}, -1};
  g.cells.assign(static_cast<std::size_t>((rows + g.row_step - 1) / g.row_step * ((columns + g.column_step - 1) / g.column_step)), -1);
  return g;
}

void Pictures::add(const Element& e) {
  const std::lock_guard lock(mutex_);
  const auto [at, made] = grids_.try_emplace({e.output, e.b, e.h});
  Grid& g = at->second;
  if (made) g = make_grid(e.output);
  const Index row = std::clamp<Index>(e.row, 0, g.rows - 1), column = std::clamp<Index>(e.column, 0, g.columns - 1);
  double& cell = g.cells[static_cast<std::size_t>(row / g.row_step * ((g.columns + g.column_step - 1) / g.column_step) + column / g.column_step)];
  cell = std::max(cell, e.ratio);
  g.worst = std::max(g.worst, e.ratio);
  if (e.output == Output::o) {
    double& of_row = tiles_.try_emplace(e.row, -1).first->second;
    of_row = std::max(of_row, e.ratio);
  }
  std::vector<std::int64_t>& ulps = ulps_.try_emplace(e.output, static_cast<std::size_t>(ulp_bins) + 1, 0).first->second;
  int bin = 0;
  while (bin < ulp_bins && !(e.ulp < ulp_edge(bin + 1))) ++bin;
  ++ulps[static_cast<std::size_t>(bin)];
}

Json Pictures::json(Index row_tile) const {
  const std::lock_guard lock(mutex_);
  Json j = Json::object();
  std::map<Output, std::vector<std::pair<std::tuple<Output, Index, Index>, const Grid*>>> by_output;
  for (const auto& [place, grid] : grids_) by_output[std::get<0>(place)].emplace_back(place, &grid);
  for (auto& [output, grids] : by_output) {
    Json ratios = Json::array();
    for (const auto& [place, g] : grids) {
      const auto b = static_cast<std::size_t>(std::get<1>(place)), h = static_cast<std::size_t>(std::get<2>(place));
      while (ratios.size() <= b) ratios.push_back(Json::array());
      while (ratios[b].size() <= h) ratios[b].push_back(nullptr);
      ratios[b][h] = number(g->worst);
    }
    if (grids.size() > 1) j["heads"].push_back({{"output", name_of(output)}, {"ratios", ratios}});
    std::ranges::sort(grids, [](const auto& x, const auto& y) { return std::pair(-x.second->worst, x.first) < std::pair(-y.second->worst, y.first); });
    grids.resize(std::min<std::size_t>(grids.size(), 4));
    for (const auto& [place, g] : grids) {
      const Index columns = (g->columns + g->column_step - 1) / g->column_step;
      Json cells = Json::array();
      for (std::size_t at = 0; at < g->cells.size(); ++at) {
        if (static_cast<Index>(at) % columns == 0) cells.push_back(Json::array());
        cells.back().push_back(g->cells[at] < 0 ? Json() : number(g->cells[at]));
      }
      j["maps"].push_back({{"output", name_of(output)},
                           {"b", std::get<1>(place)},
                           {"h", std::get<2>(place)},
                           {"rows", g->rows},
                           {"columns", g->columns},
                           {"row_step", g->row_step},
                           {"column_step", g->column_step},
                           {"row_axis", output == Output::dk || output == Output::dv ? "key" : "query"},
                           {"cells", cells}});
    }
  }
  if (!tiles_.empty()) {
    std::vector<double> worst(static_cast<std::size_t>(shape_.rows + row_tile - 1) / static_cast<std::size_t>(row_tile), -1);
    for (const auto& [row, ratio] : tiles_) worst[static_cast<std::size_t>(row / row_tile)] = std::max(worst[static_cast<std::size_t>(row / row_tile)], ratio);
    Json ratios = Json::array();
    for (const double w : worst) ratios.push_back(w < 0 ? Json() : number(w));
    if (worst.size() > 1) j["tiles"] = {{"tile", row_tile}, {"ratios", ratios}};
  }
  for (const auto& [output, counts] : ulps_) {
    Json edges = Json::array(), in_bins = Json::array();
    for (int bin = 0; bin <= ulp_bins; ++bin) edges.push_back(ulp_edge(bin));
    for (int bin = 0; bin < ulp_bins; ++bin) in_bins.push_back(counts[static_cast<std::size_t>(bin)]);
    j["ulps"].push_back({{"output", name_of(output)}, {"edges", edges}, {"counts", in_bins}, {"above", counts.back()}});
  }
  if (!mask_.empty()) j["mask"] = mask_;
  return j;
}

}  // namespace assay
