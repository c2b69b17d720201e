#include "harness/candidates/named_candidate.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "oracle/product.h"

namespace assay {
namespace {

// Whether the storage of the tensor has holes of gigabytes, which a copy would fill.
bool has_holes(const TensorView& t) {
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (t.shape[axis] > 1 && std::abs(t.stride[axis]) > (Index{1} << 32) / t.shape[axis])
      return true;
  return false;
}

struct NeededBy {
  const char* feature;
  bool (*needed)(const Attention&);
};

// The features that a problem needs whichever case it comes from: relations change problems.
constexpr NeededBy needs[] = {
    {"negative-scale", [](const Attention& p) { return p.scale < 0; }},
    {"softcap", [](const Attention& p) { return p.softcap != 0; }},
    {"causal", [](const Attention& p) { return p.causal; }},
    {"window", [](const Attention& p) { return p.window_left != -1 || p.window_right != -1; }},
    {"bool", [](const Attention& p) { return bool(p.keep); }},
    {"bias", [](const Attention& p) { return bool(p.bias); }},
    {"finite-min-masks", [](const Attention& p) { return p.finite_min_masks; }},
    {"lengths", [](const Attention& p) { return !p.key_lengths.empty(); }},
    {"starts", [](const Attention& p) { return !p.key_starts.empty(); }},
    {"docs", [](const Attention& p) { return !p.query_segment.empty(); }},
    {"alibi", [](const Attention& p) { return !p.alibi_slopes.empty(); }},
    {"sink", [](const Attention& p) { return !p.sink.empty(); }},
    {"dropout", [](const Attention& p) { return p.dropout > 0; }},
};

std::string unsupported_problem(const Attention& p, const Features& has) {
  for (const NeededBy& need : needs)
    if (!has.has(need.feature) && need.needed(p)) return need.feature;
  if (has_holes(p.q) || has_holes(p.k) || has_holes(p.v))
    return "a tensor whose storage has holes of gigabytes";
  return {};
}

}  // namespace

NamedCandidate::NamedCandidate(Facts facts, Answer answer)
    : Candidate({.name = std::move(facts.name),
                 .abilities = {.forward = true,
                               .cache = true,
                               .backward = true,
                               .product = true,
                               .lse = facts.lse,
                               .gradients_alone = !facts.features.has("attention"),
                               .promises_bits = false,
                               .own_process = facts.own_process,
                               .pages = true},
                 .features = facts.features,
                 .conventions = facts.conventions,
                 .remarks = std::move(facts.remarks)}),
      contracts_(std::move(facts.contracts)),
      answer_(std::move(answer)) {}

std::string NamedCandidate::unsupported(const Call& call) const {
  return std::visit(
      ByCall{[&](const ForwardCall& c) { return unsupported_problem(c.problem, features()); },
             [](const CachedCall& c) -> std::string {
               if (std::string why = without_pages(c.c); !why.empty()) return why;
               if (c.c.cache_dtype() != c.c.dtype)
                 return fmt::format("a cache in {} for queries in {}",
                                    format(c.c.cache_dtype()).name, format(c.c.dtype).name);
               if (c.c.k_layout == LayoutKind::distant || c.c.v_layout == LayoutKind::distant)
                 return "pages so far apart";
               return {};
             },
             [&](const BackwardCall& c) { return unsupported_problem(c.problem, features()); },
             [](const ProductCall&) { return std::string(); },
             [](const auto&) { return std::string("no quantizer"); }},
      call);
}

std::optional<Arithmetic> NamedCandidate::arithmetic(const Call& call,
                                                     const kernels::Execution&) const {
  const auto declared = [&](Dtype dtype) -> std::optional<Arithmetic> {
    const auto found = contracts_.find(dtype);
    if (found == contracts_.end()) return std::nullopt;
    return found->second;
  };
  return std::visit(ByCall{[&](const ForwardCall& c) { return declared(c.problem.q.dtype); },
                           [&](const CachedCall& c) { return declared(c.c.dtype); },
                           [&](const BackwardCall& c) { return declared(c.problem.q.dtype); },
                           [&](const ProductCall& c) { return declared(dtype_of_a(c.problem)); },
                           [](const auto&) { return std::optional<Arithmetic>(); }},
                    call);
}

kernels::Status NamedCandidate::run(const Request& request) {
  for (const NamedCall& call : named_calls(request.call)) answer_(call);
  return {};
}

}  // namespace assay
