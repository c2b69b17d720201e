#include "oracle/conventional.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// A view of this shape, all of whose elements are the same 0.
TensorView zeros(const Extents& shape) {
  static float zero = 0;
  TensorView view;
  view.data = &zero;
  view.dtype = Dtype::f32;
  view.shape = shape;
  return view;
}

// The first key that belongs to a sequence, and the one after its last.
KeyInterval keys_of_sequence(const Attention& p, Index b) {
  return {p.key_starts.empty() ? 0 : p.key_starts[usize(b)],
          p.key_lengths.empty() ? p.shape.keys : std::min(p.shape.keys, p.key_lengths[usize(b)])};
}

// The values of an anchor that make different problems, ours first.
std::vector<Anchor> anchors_of(const Attention& p, const Conventions& declared) {
  if (declared.declares(Convention::anchor)) return {declared.of<Anchor>()};
  std::vector<Anchor> anchors = {Anchor::top_left};
  if (!p.offset.empty() || !uses_offset(p)) return anchors;
  if (p.shape.rows != p.shape.keys) anchors.push_back(Anchor::bottom_right);
  const auto is_shorter = [&](Index n) { return n != p.shape.keys; };
  if (std::ranges::any_of(p.key_lengths, is_shorter)) anchors.push_back(Anchor::end_of_lengths);
  return anchors;
}

// The value of one convention under which outputs are right, with all others as given: ours if it
// is among them. `any` is never found, because it asks nothing.
std::optional<std::size_t> narrowed(Convention c, const Conventions& others,
                                    const std::function<bool(const Conventions&)>& right) {
  const auto& values = row_of(c).values;
  for (std::size_t k = 0; k < values.size(); ++k) {
    Conventions tried = others;
    tried.declare(c, k);
    if (values[k] != "any" && right(tried)) return k;
  }
  return std::nullopt;
}

// The elements that no bound decided.
std::int64_t undecided(const Verdict& v) {
  std::int64_t count = v.hull_only;
  for (const auto& [reason, elements] : v.excused) count += elements;
  return count;
}

}  // namespace

bool has_substitute(MaskedRows rows) {
  return rows == MaskedRows::mean_of_v || rows == MaskedRows::mean_within_lengths ||
         rows == MaskedRows::unmasked;
}

ProjectedAttention substitute(const ProjectedAttention& p, MaskedRows rows) {
  ProjectedAttention other = p;
  other.causal = false;
  other.offset.clear();
  other.window_left = other.window_right = -1;
  other.keep = {};
  other.bias = {};
  other.alibi_slopes.clear();
  other.query_segment.clear();
  other.key_segment.clear();
  if (rows != MaskedRows::mean_within_lengths) {
    other.key_lengths.clear();
    other.key_starts.clear();
  }
  if (rows == MaskedRows::unmasked) return other;
  other.q = zeros(p.shape.q_extents());
  other.k = zeros(p.shape.k_extents());
  other.softcap = 0;
  return other;
}

// bounds.md, 13: what an fp32 without subnormals loses
Contract flushing(const Contract& contract) {
  constexpr double least_normal = 0x1p-126;
  Contract flushes = contract;
  flushes.product_floor = std::max(contract.product_floor, 2 * least_normal);
  flushes.exp_floor = std::max(contract.exp_floor, least_normal);
  return flushes;
}

bool MaskedNanReach::reaches(Index h, Index row, Index c) {
  if (!kv_.any_key_not_finite && !kv_.any_value_not_finite) return false;
  if (h != h_ || row != row_) look(h, row);
  return by_key_ || (c >= 0 && by_value_[usize(c)]);
}

void MaskedNanReach::look(Index h, Index row) {
  h_ = h;
  row_ = row;
  by_key_ = false;
  by_value_.assign(usize(p_.shape.value_dim), 0);
  RowVisibility seen;
  evaluate_visibility(p_, kv_.b, h, row, seen);
  const KeyInterval keys = keys_of_sequence(p_, kv_.b);
  for (Index j = keys.begin; j < keys.end; ++j) {
    if (seen.bias[usize(j)] != -inf) continue;
    by_key_ = by_key_ || kv_.key_not_finite[usize(j)];
    if (!kv_.value_not_finite[usize(j)]) continue;
    for (Index c = 0; c < p_.shape.value_dim; ++c)
      if (!std::isfinite(load(p_.v, p_.v.at(kv_.b, kv_.g, j, c)))) by_value_[usize(c)] = 1;
  }
}

std::optional<Conventions> explaining_conventions(
    const Attention& p, const Conventions& declared,
    const std::function<bool(const Conventions&)>& right) {
  std::optional<Conventions> found;
  for (const Anchor anchor : anchors_of(p, declared)) {
    // The most lenient values decide quickly that it is no convention. They are narrowed then.
    Conventions c = declared;
    if (anchor != Anchor::top_left) c.declare(anchor);
    Conventions lenient;
    lenient.declare(MaskedRows::any);
    lenient.declare(MaskedLse::any);
    lenient.declare(MaskedNan::spreads);
    lenient.declare(Subnormals::flushed);
    c = c.over(lenient);
    if (!right(c)) continue;
    bool all = true;
    for (const Convention each : values_of<Convention>) {
      if (declared.declares(each) || each == Convention::anchor) continue;
      const std::optional<std::size_t> value = narrowed(each, c, right);
      all = all && value;
      if (value) c.declare(each, *value);
    }
    if (!all) continue;
    if (anchor == Anchor::top_left) return c;
    if (found) return std::nullopt;  // two diagonals are right: which one is meant is not known
    found = c;
  }
  return found;
}

Verdict by_convention(const Attention& p, Verdict own, const JudgeOptions& options,
                      const std::function<Verdict(const JudgeOptions&)>& judge_under) {
  if (own.outcome != Outcome::fail || own.outside == 0) return own;
  const auto is_declared = [&](Convention c) { return options.conventions.declares(c); };
  if (std::ranges::all_of(values_of<Convention>, is_declared)) return own;
  JudgeOptions quick = options;
  quick.judged = nullptr;
  quick.power = false;
  quick.evidence = EvidenceRule::off;
  const std::optional<Conventions> all =
      explaining_conventions(p, options.conventions, [&](const Conventions& c) {
        quick.conventions = c;
        const Verdict v = judge_under(quick);
        return v.outcome != Outcome::fail && v.outcome != Outcome::error;
      });
  if (!all) return own;
  JudgeOptions found = options;
  found.conventions = *all;
  Verdict v = judge_under(found);
  // Another diagonal under which elements cannot be judged does not make them right.
  if (found.conventions.of<Anchor>() != options.conventions.of<Anchor>() &&
      undecided(v) > undecided(own))
    return own;
  for (const Convention c : values_of<Convention>)
    if (!options.conventions.declares(c) && all->index(c) != 0) v.differs.declare(c, all->index(c));
  if (v.outcome != Outcome::pass && v.outcome != Outcome::suspect) return v;
  v.outcome = Outcome::convention;
  v.reason = told_conventions(v.differs);
  return v;
}

}  // namespace assay
