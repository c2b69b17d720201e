#include "problem/features.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace assay {
namespace {

struct Flag {
  const char* name;
  bool (*needed)(const Case&);
};

// The features of attention that a case has or has not.
constexpr Flag features_of_attention[] = {
    {"gqa", [](const Case& c) { return c.shape.query_heads != c.shape.kv_heads; }},
    {"head-dims", [](const Case& c) { return c.shape.dim != c.shape.value_dim; }},
    {"empty",
     [](const Case& c) { return c.shape.batch == 0 || c.shape.rows == 0 || c.shape.keys == 0; }},
    {"scale", [](const Case& c) { return c.scale.has_value(); }},
    {"negative-scale", [](const Case& c) { return c.scale.value_or(1) < 0; }},
    {"softcap", [](const Case& c) { return c.softcap != 0; }},
    {"causal", [](const Case& c) { return c.causal; }},
    {"offset",
     [](const Case& c) {
       const bool used = c.causal || c.alibi || c.window_left != -1 || c.window_right != -1;
       return used && (c.offset.kind != OffsetSpec::Kind::fixed || c.offset.value != 0);
     }},
    {"offset=lengths", [](const Case& c) { return c.offset.kind == OffsetSpec::Kind::lengths; }},
    {"window", [](const Case& c) { return c.window_left != -1 || c.window_right != -1; }},
    {"bool", [](const Case& c) { return c.keep.pattern != MaskPattern::none; }},
    {"bias", [](const Case& c) { return c.bias.pattern != MaskPattern::none; }},
    {"finite-min-masks", [](const Case& c) { return c.finite_min_masks; }},
    {"lengths", [](const Case& c) { return !c.lengths.empty(); }},
    {"starts", [](const Case& c) { return !c.starts.empty(); }},
    {"docs", [](const Case& c) { return !c.documents.empty(); }},
    {"alibi", [](const Case& c) { return c.alibi; }},
    {"sink", [](const Case& c) { return c.sink.has_value(); }},
    {"dropout", [](const Case& c) { return c.dropout != 0; }},
    {"dlse", [](const Case& c) { return c.lse_gradient.has_value(); }},
    {"store", [](const Case& c) { return bool(c.cache) && c.cache_dtype() != c.dtype; }},
    {"scales", [](const Case& c) { return c.cache.scale != CacheScale::e8m0; }},
    {"pages", [](const Case& c) { return c.cache.order != PageOrder::apart; }},
};

template <NamedEnum E>
std::string named(const char* field, E value) {
  return fmt::format("{}={}", field, name_of(value));
}
std::string named(const char* field, Dtype value) {
  return fmt::format("{}={}", field, format(value).name);
}
std::string named(const char* field, LowBit value) {
  return fmt::format("{}={}", field, traits(value).name);
}

}  // namespace

std::vector<std::string> features_of(const Case& c) {
  std::vector<std::string> found = {std::string(name_of(c.operation)), named("dtype", c.dtype)};
  const auto add = [&](std::string name) {
    if (std::ranges::find(found, name) == found.end()) found.push_back(std::move(name));
  };
  if (c.out_dtype() != c.dtype) add("out");
  if (c.operation == Operation::product) {
    add(named("w", c.product.format));
    if (c.product.a_format) add(named("a", *c.product.a_format));
  } else {
    for (const Flag& flag : features_of_attention)
      if (flag.needed(c)) add(flag.name);
    if (c.cache) add(named("cache", c.cache.kind));
  }
  for (const LayoutKind layout : {c.q_layout, c.k_layout, c.v_layout, c.o_layout})
    if (layout != LayoutKind{}) add(named("layout", layout));
  if (c.d_o_layout.value_or(LayoutKind{}) != LayoutKind{}) add(named("layout", *c.d_o_layout));
  return found;
}

const std::vector<std::string>& all_features() {
  static const std::vector<std::string> all = [] {
    std::vector<std::string> names;
    for (const Operation o : values_of<Operation>) names.emplace_back(name_of(o));
    for (const Dtype d : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
      names.push_back(named("dtype", d));
    names.emplace_back("out");
    for (const Flag& flag : features_of_attention) names.emplace_back(flag.name);
    for (const CacheSpec::Kind kind : values_of<CacheSpec::Kind>)
      if (kind != CacheSpec::Kind::none) names.push_back(named("cache", kind));
    for (const LayoutKind layout : values_of<LayoutKind>)
      if (layout != LayoutKind{}) names.push_back(named("layout", layout));
    for (const LowBit w : values_of<LowBit>) names.push_back(named("w", w));
    for (const LowBit a : {LowBit::mxfp4, LowBit::nvfp4, LowBit::f8e4m3, LowBit::f8e5m2})
      names.push_back(named("a", a));
    return names;
  }();
  return all;
}

Features::Features(const std::vector<std::string>& names)
    : all_(false), names_(names.begin(), names.end()) {
  const std::vector<std::string>& all = all_features();
  for (const std::string& name : names)
    if (std::ranges::find(all, name) == all.end())
      throw std::invalid_argument(
          fmt::format("unknown feature '{}'; there are {}", name, fmt::join(all, ", ")));
  all_ = names_.size() == all.size();
}

Features::Features(std::function<std::string(const Case&)> declines)
    : all_(false), declines_(std::move(declines)) {}

std::string Features::missing(const Case& c) const {
  if (all_) return {};
  if (declines_) return declines_(c);
  for (const std::string& name : features_of(c))
    if (!names_.contains(name)) return name;
  return {};
}

}  // namespace assay
