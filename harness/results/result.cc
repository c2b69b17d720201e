#include "harness/results/result.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "harness/results/schema.h"
#include "harness/results/told_arithmetic.h"

namespace assay {
namespace {

std::string hex_of(const std::bitset<max_tile>& lanes, Index tile) {
  std::string text;
  for (std::size_t digit = 0; digit < usize(tile + 3) / 4; ++digit) {
    unsigned value = 0;
    for (unsigned bit = 0; bit < 4; ++bit)
      value |= static_cast<unsigned>(lanes[digit * 4 + bit]) << bit;
    text += fmt::format("{:x}", value);
  }
  return text;
}

Conventions conventions_named(const std::vector<std::string>& names) {
  try {
    return names.empty() ? Conventions()
                         : Conventions::parse(fmt::format("{}", fmt::join(names, ",")));
  } catch (const ConventionError& e) {
    throw SchemaError(fmt::format("differs: {}", e.what()));
  }
}

std::bitset<max_tile> lanes_of_hex(const std::string& text) {
  std::bitset<max_tile> lanes;
  for (std::size_t digit = 0; digit < text.size(); ++digit) {
    const auto value = std::string_view("0123456789abcdef").find(text[digit]);
    if (value == std::string_view::npos || digit * 4 + 3 >= lanes.size())
      throw SchemaError("power.lanes: no set of lanes: \"" + text + "\"");
    for (unsigned bit = 0; bit < 4; ++bit) lanes[digit * 4 + bit] = (value >> bit & 1) != 0;
  }
  return lanes;
}

}  // namespace

template <class Fields, Described<Relation> Value>
void describe_fields(Fields& fields, Value& r) {
  fields("result", r.how);
  fields.unless("why", r.why, std::string());
  fields.unless("declined", r.declined, {});
}

template <class Fields, Described<Seconds> Value>
void describe_fields(Fields& fields, Value& s) {
  fields("generate", s.generate);
  fields("candidate", s.candidate);
  fields("judge", s.judge);
}

template <class Fields, Described<QuantizationError> Value>
void describe_fields(Fields& fields, Value& q) {
  fields("weights", q.weights);
  fields("products", q.products);
}

template <class Fields, Described<Atypical> Value>
void describe_fields(Fields& fields, Value& a) {
  fields("s", a.s);
  fields("median", a.median);
  fields("limit", a.limit);
  fields("b", a.b);
  fields("h", a.h);
  fields("row", a.row);
  fields.unless("of_column", a.of_column, false);
}

template <class Fields, Described<FilterAnswer> Value>
void describe_fields(Fields& fields, Value& f) {
  fields("fault", f.fault);
  fields("share", f.share);
  fields("z", f.z);
  fields("least", f.least);
}

template <class Fields, Described<Evidence> Value>
void describe_fields(Fields& fields, Value& e) {
  fields.unless("not_asked", e.not_asked, std::string());
  fields.unless("arithmetic", e.arithmetic, std::string());
  fields("fits", e.fits);
  fields.unless("reason", e.reason, std::string());
  fields("rows", e.rows);
  fields("filters", e.filters);
  fields("z_limit", e.z_limit);
  fields("questions", e.questions);
  fields("rows_asked", e.rows_asked);
  fields("replicates", e.replicates);
  fields("seed", e.seed);
}

template <class Fields, Described<Explanation> Value>
void describe_fields(Fields& fields, Value& e) {
  fields("hypothesis", e.hypothesis);
  fields("words", e.words);
  fields.unless("same", e.same, std::vector<std::string>());
  fields.unless("arithmetic", e.arithmetic, std::string());
  fields("median", e.median);
  fields("largest", e.largest);
  fields("limit", e.limit);
}

template <class Fields, Described<Diagnosis> Value>
void describe_fields(Fields& fields, Value& d) {
  fields("explanations", d.explanations);
  fields("tried", d.tried);
  fields("rows_asked", d.rows_asked);
  fields.unless("not_asked", d.not_asked, std::string());
}

// `row_tile` is the number of rows in a tile, from which follows the tile of the element.
template <class Fields, Described<Element> Value>
void describe_element(Fields& fields, Value& e, Index row_tile) {
  fields("output", e.output);
  fields("b", e.b);
  fields("h", e.h);
  fields("row", e.row);
  fields.unless("column", e.column, Index{-1});
  fields.derived("tile", e.row / row_tile);
  fields("got", e.got);
  fields("exact", e.exact);
  fields("bound", e.bound);
  fields("ratio", e.ratio);
  fields("ulp", e.ulp);
  fields.unless("why", e.why, std::string());
}

template <class Fields, Described<GradientPower> Value>
void describe_fields(Fields& fields, Value& g) {
  fields("pairs", g.pairs);
  fields("dQ", g.by_dq);
  fields("dK", g.by_dk);
  fields("dV", g.by_dv);
  fields("any", g.by_any);
}

template <class Fields, Described<Power> Value>
void describe_lanes(Fields& fields, Value& p, Index tile) {
  for (int kind = 0; kind < tile_kind_count; ++kind) {
    auto& lanes = p.lanes[static_cast<std::size_t>(kind)];
    bool any = false;
    for (const auto& of_change : lanes) any = any || of_change.any();
    fields.object_if(name_of(static_cast<TileKind>(kind)).data(), any, [&](auto& of_kind) {
      for (std::size_t change = 0; change < change_count; ++change) {
        std::string hex = lanes[change].any() ? hex_of(lanes[change], tile) : std::string();
        of_kind.unless(name_of(static_cast<Change>(change)).data(), hex, std::string());
        if constexpr (Fields::reads) lanes[change] = lanes_of_hex(hex);
      }
    });
  }
}

template <class Fields, Described<CaseResult> Value>
void describe_power(Fields& fields, Value& r) {
  auto& p = r.verdict.power;
  fields("pairs", p.pairs);
  fields("tile", r.verdict.tile);
  Index tail_lanes = r.verdict.tile - r.tail_step;
  fields("tail_lanes", tail_lanes);
  if constexpr (Fields::reads) r.tail_step = r.verdict.tile - tail_lanes;
  fields.object("shown", [&](auto& shown) {
    for (std::size_t change = 0; change < change_count; ++change)
      shown.object(name_of(static_cast<Change>(change)).data(), [&](auto& through) {
        through("o", p.by_output[change]);
        through("lse", p.by_lse[change]);
        through("either", p.by_either[change]);
      });
  });
  bool any = false;
  for (const auto& of_kind : p.lanes)
    for (const auto& lanes : of_kind) any = any || lanes.any();
  fields.object_if("lanes", any, [&](auto& lanes) { describe_lanes(lanes, p, r.verdict.tile); });
}

// The outputs that were compared, and the worst element of each that has a bound.
template <class Fields, Described<Verdict> Value>
void describe_outputs(Fields& fields, Value& v) {
  std::map<Output, std::int64_t> compared;
  for (const auto& [output, part] : v.outputs) compared[output] = part.elements;
  fields("compared", compared);
  if constexpr (Fields::reads)
    for (const auto& [output, elements] : compared) v.outputs[output].elements = elements;
}

template <class Fields, Described<Verdict> Value>
void describe_worst(Fields& fields, Value& v) {
  for (auto& [output, part] : v.outputs)
    fields.object_if(name_of(output).data(), part.worst.bound > 0,
                     [&](auto& worst) { describe_element(worst, part.worst, v.row_tile); });
}

template <class Fields, Described<CaseResult> Value>
void describe_verdict(Fields& fields, Value& r) {
  auto& v = r.verdict;
  fields("contract", v.contract);
  fields.object_if("arithmetic", v.arithmetic.has_value(),
                   [&](auto& arithmetic) { describe_arithmetic(arithmetic, v); });
  fields.object("elements", [&](auto& elements) {
    describe_outputs(elements, v);
    elements("inside", v.inside);
    elements("outside", v.outside);
    elements("hull_only", v.hull_only);
    elements("exact", v.exact);
    elements("excused", v.excused);
    elements("failures", v.failures);
  });
  fields.object("not_finite", [&](auto& not_finite) {
    not_finite("nan_expected", v.nan_expected);
    not_finite("nan_found", v.nan_found);
    not_finite("infinity_expected", v.infinity_expected);
    not_finite("infinity_found", v.infinity_found);
  });
  fields.object("rows", [&](auto& rows) {
    rows("judged", v.rows_judged);
    rows("all", v.rows_total);
    rows("in_balls", v.rows_in_balls);
    rows("tile", v.row_tile);
    rows.object_if("sample", !v.sampled.empty(), [&](auto& sample) {
      sample.derived("rule", std::string("one row of each equal stretch of a head's rows"));
      sample("rows_of_a_head", v.sample_rows);
      sample("seed", v.sample_seed);
      sample("first", v.sampled);
    });
  });
  bool any_worst = false;
  for (const auto& [output, part] : v.outputs) any_worst = any_worst || part.worst.bound > 0;
  fields.object_if("worst", any_worst, [&](auto& worst) { describe_worst(worst, v); });
  fields.object_if("first_failure", v.outside > 0,
                   [&](auto& first) { describe_element(first, v.first_failure, v.row_tile); });
  const bool weighed = !v.evidence.arithmetic.empty() || !v.evidence.not_asked.empty();
  fields.object_if("evidence", weighed,
                   [&](auto& evidence) { describe_fields(evidence, v.evidence); });
  std::vector<std::string> differs = v.differs.names();
  fields.unless("differs", differs, {});
  if constexpr (Fields::reads) v.differs = conventions_named(differs);
  fields.unless("by_evidence", v.by_evidence, false);
  fields.object("bias", [&](auto& bias) {
    bias("mean_ratio", v.mean_ratio);
    bias("slope_t", v.slope_t);
  });
  fields.object_if("gradient_power", v.gradient_power.pairs > 0,
                   [&](auto& power) { describe_fields(power, v.gradient_power); });
  fields.object("power", [&](auto& power) { describe_power(power, r); });
}

template <class Fields, Described<CaseResult> Value>
void describe_fields(Fields& fields, Value& r) {
  fields("case", r.line);
  fields("candidate", r.candidate);
  fields("reproduce", r.reproduce);
  fields.unless("dtype", r.dtype, std::string());
  fields("outcome", r.outcome);
  fields("reason", r.reason);
  fields.unless("bad_input", r.bad_input, false);
  fields.unless("shrunk", r.shrunk, std::string());
  fields.unless("seconds", r.seconds, Seconds());
  fields.unless("relations", r.relations, Relations());
  fields.optional("quantization", r.quantization);
  fields.object_if("diagnosis", r.diagnosis.was_asked(),
                   [&](auto& diagnosis) { describe_fields(diagnosis, r.diagnosis); });
  if constexpr (Fields::reads) {
    if (fields.has("contract")) describe_verdict(fields, r);
    Pictures pictures;
    describe_fields(fields, pictures);
    if (pictures != Pictures()) r.pictures = std::move(pictures);
    r.verdict.outcome = r.outcome;
    r.verdict.reason = r.reason;
  } else {
    if (r.was_compared()) describe_verdict(fields, r);
    if (r.pictures) describe_fields(fields, *r.pictures);
  }
}

std::string text_of(const Relation& r) {
  const std::string_view how = name_of(r.how);
  std::string text = r.why.empty() ? std::string(how) : fmt::format("{}: {}", how, r.why);
  for (const auto& [why, n] : r.declined) text += fmt::format("; {} declined: {}", n, why);
  return text;
}

std::int64_t CaseResult::elements_compared() const {
  std::int64_t elements = 0;
  for (const auto& [output, part] : verdict.outputs) elements += part.elements;
  return elements;
}

std::optional<std::pair<Output, double>> worst_ratio(const CaseResult& r) {
  std::optional<std::pair<Output, double>> worst;
  for (const auto& [output, part] : r.verdict.outputs)
    if (part.worst.bound > 0 && (!worst || part.worst.ratio > worst->second))
      worst = {output, part.worst.ratio};
  return worst;
}

double worst_finite_ratio(const CaseResult& r) {
  double worst = -1;
  for (const auto& [output, part] : r.verdict.outputs)
    if (part.worst.bound > 0 && std::isfinite(part.worst.ratio))
      worst = std::max(worst, part.worst.ratio);
  return worst;
}

Json to_json(const CaseResult& result) { return write_fields(result); }

void read_json(const Json& json, const std::string& where, CaseResult& result) {
  read_fields(json, where, result);
}

}  // namespace assay
