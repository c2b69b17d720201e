#include "harness/result.h"

#include <fmt/format.h>

#include <cmath>

namespace assay {
namespace {

constexpr std::array<const char*, change_count> change_names = {"deleted", "duplicated", "exchanged", "misweighted"};
constexpr std::array<const char*, tile_kind_count> tile_kind_names = {"only", "first", "interior", "last_full", "tail"};

// JSON has no NaN and no infinity.
Json number(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  return x;
}

Json to_json(const Element& e, Index row_tile) {
  Json j = {{"b", e.b},
            {"h", e.h},
            {"row", e.row},
            {"tile", e.row / row_tile},
            {"got", number(e.got)},
            {"exact", number(e.exact)},
            {"bound", number(e.bound)},
            {"ratio", number(e.ratio)},
            {"ulp", number(e.ulp)}};
  if (e.output > Output::lse) j["output"] = name_of(e.output);
  if (e.column >= 0) j["column"] = e.column;
  if (!e.why.empty()) j["why"] = e.why;
  return j;
}

std::string hex_of(const std::bitset<max_tile>& lanes, Index tile) {
  std::string text;
  for (Index digit = 0; digit < (tile + 3) / 4; ++digit) {
    unsigned value = 0;
    for (unsigned bit = 0; bit < 4; ++bit) value |= static_cast<unsigned>(lanes[static_cast<std::size_t>(digit) * 4 + bit]) << bit;
    text += fmt::format("{:x}", value);
  }
  return text;
}

}  // namespace

Json to_json(const CaseResult& r) {
  const Verdict& v = r.verdict;
  Json j = {{"case", r.line},
            {"candidate", r.candidate},
            {"reproduce", r.reproduce},
            {"outcome", name_of(r.outcome)},
            {"reason", r.reason},
            {"dtype", r.dtype},
            {"seconds", {{"generate", r.generate_seconds}, {"candidate", r.candidate_seconds}, {"judge", r.judge_seconds}}},
            {"relations", r.relations}};
  if (v.outputs.empty()) return j;
  j["contract"] = v.contract;
  j["elements"] = {{"compared", v.outputs.contains(Output::c) ? Json::object() : Json{{"O", 0}, {"LSE", 0}}},
                   {"inside", v.inside},
                   {"outside", v.outside},
                   {"hull_only", v.hull_only},
                   {"exact", v.exact},
                   {"excused", v.excused},
                   {"failures", v.failures}};
  j["not_finite"] = {
      {"nan_expected", v.nan_expected}, {"nan_found", v.nan_found}, {"infinity_expected", v.infinity_expected}, {"infinity_found", v.infinity_found}};
  j["rows"] = {{"judged", v.rows_judged}, {"all", v.rows_total}, {"in_balls", v.rows_in_balls}};
  if (!v.sampled.empty())
    j["rows"]["sample"] = {
        {"rule", "one row of each equal stretch of a head's rows"}, {"rows_of_a_head", v.sample_rows}, {"seed", v.sample_seed}, {"first", v.sampled}};
  for (const auto& [output, compared] : v.outputs) {
    const std::string name(name_of(output));
    j["elements"]["compared"][name] = compared.elements;
    if (compared.worst.bound > 0) j["worst"][name] = to_json(compared.worst, v.row_tile);
  }
  if (v.outside > 0) j["first_failure"] = to_json(v.first_failure, v.row_tile);
  if (r.quantization) j["quantization"] = {{"weights", r.quantization->weights}, {"products", r.quantization->products}};
  j["bias"] = {{"mean_ratio", number(v.mean_ratio)}, {"slope_t", number(v.slope_t)}};
  if (const GradientPower& g = v.gradient_power; g.pairs > 0)
    j["gradient_power"] = {{"pairs", g.pairs}, {"dQ", g.by_dq}, {"dK", g.by_dk}, {"dV", g.by_dv}, {"any", g.by_any}};
  if (r.pictures) j.update(r.pictures->json(v.row_tile));
  const Power& p = v.power;
  Json& power = j["power"];
  power["pairs"] = p.pairs;
  power["tile"] = v.tile;
  power["tail_lanes"] = v.tile - r.tail_step;
  for (std::size_t change = 0; change < change_count; ++change) {
    power["shown"][change_names[change]] = {{"o", p.by_output[change]}, {"lse", p.by_lse[change]}, {"either", p.by_either[change]}};
    for (std::size_t kind = 0; kind < tile_kind_count; ++kind)
      if (p.lanes[kind][change].any()) power["lanes"][tile_kind_names[kind]][change_names[change]] = hex_of(p.lanes[kind][change], v.tile);
  }
  return j;
}

Json failed_result(const std::string& line, const std::string& candidate, Outcome outcome, const std::string& reason, Surroundings around) {
  return {{"case", line}, {"candidate", candidate}, {"reproduce", check_command(candidate, line, around)}, {"outcome", name_of(outcome)}, {"reason", reason}};
}

void Adequacy::add(const Json& result) {
  if (!result.contains("power") || result["outcome"] != "pass") return;
  const Json& power = result["power"];
  const Index tile = power["tile"];
  Cells& cells = cells_[{result["dtype"], tile}];
  cells.tail_lanes = power["tail_lanes"];
  for (std::size_t kind = 0; kind < tile_kind_count; ++kind)
    for (std::size_t change = 0; change < change_count; ++change) {
      auto& lanes = cells.lanes[kind][change];
      lanes.resize(static_cast<std::size_t>(tile));
      if (!power.contains("lanes") || !power["lanes"].contains(tile_kind_names[kind]) || !power["lanes"][tile_kind_names[kind]].contains(change_names[change]))
        continue;
      const std::string hex = power["lanes"][tile_kind_names[kind]][change_names[change]];
      for (std::size_t lane = 0; lane < lanes.size() && lane / 4 < hex.size(); ++lane) {
        const char digit = hex[lane / 4];
        const int value = digit <= '9' ? digit - '0' : digit - 'a' + 10;
        if (value >> (lane % 4) & 1) lanes[lane] = true;
      }
    }
}

Json Adequacy::summary() const {
  Json all = Json::object();
  for (const auto& [key, cells] : cells_) {
    Json& entry = all[fmt::format("{} tile {}", key.first, key.second)];
    Index shown = 0, total = 0;
    for (std::size_t kind = 0; kind < tile_kind_count; ++kind)
      for (std::size_t change = 0; change < change_count; ++change) {
        const std::size_t lanes = static_cast<TileKind>(kind) == TileKind::tail ? static_cast<std::size_t>(cells.tail_lanes) : cells.lanes[kind][change].size();
        Index here = 0;
        for (std::size_t lane = 0; lane < lanes; ++lane) here += cells.lanes[kind][change][lane];
        shown += here;
        total += static_cast<Index>(lanes);
        if (here < static_cast<Index>(lanes)) entry["missing"][tile_kind_names[kind]][change_names[change]] = static_cast<Index>(lanes) - here;
      }
    entry["shown"] = shown;
    entry["cells"] = total;
  }
  return all;
}

}  // namespace assay
