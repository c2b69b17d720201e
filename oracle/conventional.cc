#include "oracle/conventional.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "oracle/decide.h"
#include "oracle/safety_factors.h"

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

// bounds.md, 13, Means of V: the problem without scores, and without masks that add to them
ProjectedAttention with_scores_of_0(const ProjectedAttention& p) {
  ProjectedAttention other = p;
  other.q = zeros(p.shape.q_extents());
  other.k = zeros(p.shape.k_extents());
  other.softcap = 0;
  other.alibi_slopes.clear();
  return other;
}

// Replaces the bias by one that hides the same keys and adds nothing to others.
void keep_only_hidden(Substitute& s) {
  const TensorView given = s.problem.bias;
  if (!given) return;
  const double minimum = s.problem.finite_min_masks ? -format(given.dtype).max_finite : -inf;
  Extents stored = given.shape;
  Index elements = 1;
  TensorView only = given;
  only.dtype = Dtype::f32;
  only.origin = 0;
  for (std::size_t axis = 4; axis-- > 0;) {
    if (given.stride[axis] == 0) stored[axis] = std::min<Index>(stored[axis], 1);
    only.stride[axis] = given.stride[axis] == 0 ? 0 : elements;
    elements *= stored[axis];
  }
  s.bias.resize(usize(elements));
  only.data = s.bias.data();
  for_each_index(stored, [&](Index b, Index h, Index i, Index j) {
    const double x = load(given, given.at(b, h, i, j));
    store(only, only.at(b, h, i, j), x == -inf || x == minimum ? -inf : 0);
  });
  s.problem.bias = only;
  s.problem.finite_min_masks = false;
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

KeyInterval keys_of_sequence(const Attention& p, Index b) {
  return {p.key_starts.empty() ? 0 : p.key_starts[usize(b)],
          p.key_lengths.empty() ? p.shape.keys : std::min(p.shape.keys, p.key_lengths[usize(b)])};
}

std::optional<Substitute> substitute(const ProjectedAttention& p, MaskedRows rows) {
  const bool means = rows == MaskedRows::mean_of_v || rows == MaskedRows::mean_within_lengths;
  if (!means && rows != MaskedRows::unmasked) return std::nullopt;
  ProjectedAttention other = means ? with_scores_of_0(p) : p;
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
  return Substitute{std::move(other), {}};
}

std::optional<Substitute> substitute(const ProjectedAttention& p, WeightlessRows rows) {
  if (rows == WeightlessRows::mean_of_v) return substitute(p, MaskedRows::mean_of_v);
  if (rows != WeightlessRows::mean_of_visible) return std::nullopt;
  Substitute s{with_scores_of_0(p), {}};
  keep_only_hidden(s);
  return s;
}

// bounds.md, 13, Flushed subnormals: what an fp32 without subnormals loses
Contract flushing(const Conventions& conventions, const Contract& contract, Operands operands) {
  using safety::least_normal;
  if (conventions.of<Subnormals>() != Subnormals::flushed) return contract;
  Contract flushes = contract;
  flushes.product_floor =
      std::max(contract.product_floor, safety::losses_of_flushed_product * least_normal);
  if (operands == Operands::flushed)
    flushes.operand_floor = std::max(contract.operand_floor, least_normal);
  flushes.exp_floor = std::max(contract.exp_floor, least_normal);
  return flushes;
}

// bounds_product.md, 2, Operands that are read as 0: the floor where subnormals are flushed
ProductContract flushing(const Conventions& conventions, const ProductContract& contract) {
  if (conventions.of<Subnormals>() != Subnormals::flushed) return contract;
  ProductContract flushes = contract;
  flushes.floor = std::max(contract.floor, safety::least_normal);
  flushes.operand_floor = std::max(contract.operand_floor, safety::least_normal);
  return flushes;
}

std::unique_ptr<ZeroedInputs> zeroed_inputs(const ProjectedAttention& p) {
  const auto is_lost = [](double x) { return x != 0 && std::fabs(x) < safety::least_normal; };
  auto zeroed = std::make_unique<ZeroedInputs>(p);
  for (TensorView Attention::* member : {&Attention::q, &Attention::k, &Attention::v}) {
    TensorView& t = zeroed->problem.*member;
    const auto [batch, heads, length, columns] = t.shape;
    bool any = false;
    for_each_index(t.shape, [&](Index b, Index h, Index i, Index j) {
      any = any || is_lost(load(t, t.at(b, h, i, j)));
    });
    if (!any) continue;
    const Layout dense{{heads * length * columns, length * columns, columns, 1},
                       0,
                       batch * heads * length * columns};
    const TensorView to = zeroed->tensors.emplace_back(t.dtype, t.shape, dense).view();
    for_each_index(t.shape, [&](Index b, Index h, Index i, Index j) {
      const double x = load(t, t.at(b, h, i, j));
      store(to, to.at(b, h, i, j), is_lost(x) ? 0 : x);
    });
    t = to;
  }
  if (zeroed->tensors.empty()) return nullptr;
  return zeroed;
}

Verdict judge_by(std::span<const Contract> contracts, const ProjectedAttention& problem,
                 const JudgeOptions& options, const JudgeContract& judge) {
  const auto with = [&](const ProjectedAttention& p, Operands operands, const JudgeOptions& under) {
    const auto judge_one = [&](const Contract& c, const JudgeOptions& o) {
      return judge(p, flushing(o.conventions, c, operands), o);
    };
    return contracts.size() == 1 ? judge_one(contracts.front(), under)
                                 : climb(contracts, under, judge_one);
  };
  if (options.conventions.of<Subnormals>() != Subnormals::flushed)
    return with(problem, Operands::flushed, options);
  JudgeOptions quiet = options;
  quiet.judged = nullptr;
  const Verdict v = with(problem, Operands::flushed, quiet);
  const auto told = [&](const ProjectedAttention& p, Operands operands, const Verdict& found) {
    return options.judged ? with(p, operands, options) : found;
  };
  if (v.outcome != Outcome::inconclusive) return told(problem, Operands::flushed, v);
  const auto is_right = [](const Verdict& w) {
    return w.outcome == Outcome::pass || w.outcome == Outcome::suspect;
  };
  const Verdict read = with(problem, Operands::read, quiet);
  if (is_right(read)) return told(problem, Operands::read, read);
  if (const std::unique_ptr<ZeroedInputs> zeroed = zeroed_inputs(problem)) {
    const Verdict of_zeroed = with(zeroed->problem, Operands::read, quiet);
    if (is_right(of_zeroed)) return told(zeroed->problem, Operands::read, of_zeroed);
  }
  return told(problem, Operands::flushed, v);
}

bool ZeroTimesNan::of_masked(Index h, Index row, Index c) {
  if (!anything()) return false;
  look(h, row);
  return by_key_ || (c >= 0 && by_value_[usize(c)]);
}

bool ZeroTimesNan::of_visible(Index h, Index row, Index c) {
  if (!anything()) return false;
  look(h, row);
  return by_visible_value_[usize(c)];
}

void ZeroTimesNan::look(Index h, Index row) {
  if (h == h_ && row == row_) return;
  h_ = h;
  row_ = row;
  by_key_ = false;
  by_value_.assign(usize(p_.shape.value_dim), 0);
  by_visible_value_ = by_value_;
  RowVisibility seen;
  evaluate_visibility(p_, kv_.b, h, row, seen);
  const KeyInterval keys = keys_of_sequence(p_, kv_.b);
  for (Index j = keys.begin; j < keys.end; ++j) {
    const bool masked = seen.bias[usize(j)] == -inf;
    by_key_ = by_key_ || (masked && kv_.key_not_finite[usize(j)]);
    if (!kv_.value_not_finite[usize(j)]) continue;
    for (Index c = 0; c < p_.shape.value_dim; ++c)
      if (!std::isfinite(load(p_.v, p_.v.at(kv_.b, kv_.g, j, c))))
        (masked ? by_value_ : by_visible_value_)[usize(c)] = 1;
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
    lenient.declare(WeightlessRows::any);
    lenient.declare(WeightlessLse::any);
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

namespace {

// The sum of the errors of some rows.
double size_of_errors(JudgeOptions under, const Conventions& conventions,
                      const std::function<Verdict(const JudgeOptions&)>& judge_under) {
  constexpr Index rows = 32;
  std::mutex mutex;
  double sum = 0;
  under.conventions = conventions;
  under.sample_rows = under.sample_rows > 0 ? std::min(under.sample_rows, rows) : rows;
  under.judged = [&](const Element& e) {
    const double error = std::fabs(e.got - e.exact);
    const std::lock_guard lock(mutex);
    if (std::isfinite(error)) sum += error;
  };
  judge_under(under);
  return sum;
}

// Wrong outputs of a kernel that may mean another diagonal: where the errors are less than half as
// large under another one, the verdict is that under it, so that the fault is told and not the
// diagonal. It is a failure in either case.
Verdict of_nearest_anchor(const Attention& p, Verdict own, const JudgeOptions& options,
                          const JudgeOptions& quick,
                          const std::function<Verdict(const JudgeOptions&)>& judge_under) {
  const std::vector<Anchor> anchors = anchors_of(p, options.conventions);
  if (anchors.size() < 2) return own;
  double least = size_of_errors(quick, options.conventions, judge_under) / 2;
  std::optional<Anchor> nearest;
  for (const Anchor anchor : anchors) {
    if (anchor == options.conventions.of<Anchor>()) continue;
    Conventions tried = options.conventions;
    tried.declare(anchor);
    const double size = size_of_errors(quick, tried, judge_under);
    if (!(size < least)) continue;
    least = size;
    nearest = anchor;
  }
  if (!nearest) return own;
  JudgeOptions under = options;
  under.conventions.declare(*nearest);
  Verdict v = judge_under(under);
  if (v.outcome != Outcome::fail || v.outside == 0 || undecided(v) > undecided(own)) return own;
  v.differs.declare(*nearest);
  v.reason += fmt::format("; judged under {}, where errors are less than half as large",
                          v.differs.names().front());
  return v;
}

}  // namespace

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
  if (!all) return of_nearest_anchor(p, std::move(own), options, quick, judge_under);
  JudgeOptions found = options;
  found.conventions = *all;
  Verdict v = judge_under(found);
  // Conventions under which nothing can be judged explain nothing.
  if (v.outcome == Outcome::inconclusive && v.inside == 0) return own;
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
