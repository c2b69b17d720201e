#include "harness/judging/invariance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace assay {
namespace {

using AskedForward = Asked<ForwardStep>;

template <class T>
std::vector<T> part_of(const std::vector<T>& list, Index first, Index count) {
  if (list.empty()) return {};
  return {list.begin() + first, list.begin() + first + count};
}

void keep_part(TensorView& t, std::size_t axis, Index first, Index count) {
  if (!t) return;
  t.origin += first * t.stride[axis];
  t.shape[axis] = count;
}

// The problem of one sequence of the batch.
Attention sequence_of(const Attention& whole, Index b) {
  const AttentionShape& s = whole.shape;
  Attention p = whole;
  p.shape.batch = 1;
  for (TensorView* t : {&p.q, &p.k, &p.v, &p.bias}) keep_part(*t, 0, b, 1);
  if (p.keep) p.keep.data += b * p.keep.stride[0];
  p.offset = part_of(whole.offset, b, 1);
  p.key_lengths = part_of(whole.key_lengths, b, 1);
  p.key_starts = part_of(whole.key_starts, b, 1);
  p.query_segment = part_of(whole.query_segment, b * s.rows, s.rows);
  p.key_segment = part_of(whole.key_segment, b * s.keys, s.keys);
  return p;
}

// The problem of some rows of every sequence. Where positions count, their diagonals are those that
// they have among all rows.
Attention rows_of(const Attention& whole, Index first, Index count) {
  const AttentionShape& s = whole.shape;
  Attention p = whole;
  p.shape.rows = count;
  keep_part(p.q, 2, first, count);
  keep_part(p.bias, 2, first, count);
  if (p.keep) p.keep.data += first * p.keep.stride[2];
  const bool by_position =
      p.causal || p.window_left >= 0 || p.window_right >= 0 || !p.alibi_slopes.empty();
  if (first > 0 && by_position) p.offset.resize(usize(s.batch), 0);
  if (by_position)
    for (Index& n : p.offset) n += first;
  p.query_segment.clear();
  for (Index b = 0; b < s.batch && !whole.query_segment.empty(); ++b) {
    const auto rows = whole.query_segment.begin() + b * s.rows + first;
    p.query_segment.insert(p.query_segment.end(), rows, rows + count);
  }
  return p;
}

AttentionOutput part_of(const AttentionOutput& whole, std::size_t axis, Index first, Index count) {
  AttentionOutput part = whole;
  keep_part(part.o, axis, first, count);
  keep_part(part.lse, axis, first, count);
  return part;
}

void erase(const TensorView& t) {
  if (!t) return;
  for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
    store(t, t.at(b, h, i, d), std::numeric_limits<double>::quiet_NaN());
  });
}

// A part of the problem in a call of its own.
struct Part {
  Attention problem;
  AttentionOutput out;
  const char* what;
  Index number;
};

// Computes the parts in calls of their own, into the places that they have among all rows.
template <class Parts>
Relation compute_parts(const AskedForward& asked, const Parts& parts_into) {
  if (asked.step.c.dropout > 0)
    return Relation::not_applicable("dropout counts the rows and sequences of its call");
  const Outputs out = asked.step.outputs();
  const Outputs& base = asked.base;
  for (const auto& [from, to] : {std::pair{&base.o, &out.o}, {&base.lse, &out.lse}})
    for (const auto& [begin, end] : from->regions())
      std::copy(from->bytes() + begin, from->bytes() + end, to->bytes() + begin);
  for (const Part& part : parts_into(out.view())) {
    for (const TensorView* t : {&part.out.o, &part.out.lse}) erase(*t);
    const Request request{ForwardCall{part.problem, part.out}, execution_of(asked.step.c)};
    if (const std::string why = asked.candidate.unsupported(request.call); !why.empty())
      return Relation::not_applicable(fmt::format("{} {} alone: {}", part.what, part.number, why));
    const std::string wrong = call_plainly(asked.candidate, request);
    if (!wrong.empty())
      return Relation::violated(fmt::format("{} {} alone: {}", part.what, part.number, wrong));
    clear_unread(asked.step, out);
    const std::string difference = first_difference(base, out);
    if (!difference.empty())
      return Relation::violated(
          fmt::format("all, and {} {} alone: {}", part.what, part.number, difference));
  }
  return Relation::held();
}

Relation sequence_alone(const AskedForward& asked) {
  const Attention& p = asked.step.in.problem;
  if (p.shape.batch < 2) return Relation::not_applicable("there is one sequence");
  constexpr Index most = 4;
  return compute_parts(asked, [&](const AttentionOutput& out) {
    std::vector<Part> parts;
    for (Index b = p.shape.batch - 1; b >= 0 && p.shape.batch - b <= most; --b)
      parts.push_back({sequence_of(p, b), part_of(out, 0, b, 1), "sequence", b});
    return parts;
  });
}

Relation in_chunks(const AskedForward& asked) {
  const Attention& p = asked.step.in.problem;
  const Index rows = p.shape.rows, first = (rows + 1) / 3;
  if (rows < 2) return Relation::not_applicable("there is one row");
  return compute_parts(asked, [&](const AttentionOutput& out) {
    std::vector<Part> parts;
    parts.push_back({rows_of(p, 0, first), part_of(out, 2, 0, first), "chunk", 0});
    parts.push_back(
        {rows_of(p, first, rows - first), part_of(out, 2, first, rows - first), "chunk", 1});
    return parts;
  });
}

Relation row_alone(const AskedForward& asked) {
  const Attention& p = asked.step.in.problem;
  if (p.shape.rows < 2) return Relation::not_applicable("there is one row");
  return compute_parts(asked, [&](const AttentionOutput& out) {
    std::vector<Part> parts;
    for (const Index i : {Index{0}, p.shape.rows / 2, p.shape.rows - 1})
      parts.push_back({rows_of(p, i, 1), part_of(out, 2, i, 1), "row", i});
    return parts;
  });
}

// Exchanges sequence b with the last but b, for all b.
void reverse_batch(const TensorView& t) {
  if (!t || t.stride[0] == 0) return;
  const Index batch = t.shape[0];
  for_each_index({batch / 2, t.shape[1], t.shape[2], t.shape[3]},
                 [&](Index b, Index h, Index i, Index d) {
                   const Index x = t.at(b, h, i, d), y = t.at(batch - 1 - b, h, i, d);
                   const double value = load(t, x);
                   store(t, x, load(t, y));
                   store(t, y, value);
                 });
}

template <class T>
void reverse_blocks(std::vector<T>& list, Index batch) {
  const Index block = std::ssize(list) / std::max<Index>(batch, 1);
  for (Index b = 0; b < batch / 2; ++b)
    std::swap_ranges(list.begin() + b * block, list.begin() + (b + 1) * block,
                     list.begin() + (batch - 1 - b) * block);
}

Relation reversed_batch(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  const Index batch = step.c.shape.batch;
  if (batch < 2) return Relation::not_applicable("there is one sequence");
  if (step.c.dropout > 0) return Relation::not_applicable("dropout counts the sequences");
  Inputs changed(step.in);
  Attention& p = changed.problem;
  const bool one_mask = p.keep && p.keep.stride[0] == 0;
  // Axes may broadcast, so that several indices share an element that must be exchanged once.
  if (p.bias && std::ranges::count(p.bias.stride, 0) > (p.bias.stride[0] == 0 ? 1 : 0))
    return Relation::not_applicable("the bias broadcasts");
  for (const TensorView* t : {&p.q, &p.k, &p.v, &p.bias}) reverse_batch(*t);
  if (p.keep && !one_mask) reverse_blocks(changed.keep, batch);
  for (auto* list : {&p.offset, &p.key_lengths, &p.key_starts}) reverse_blocks(*list, batch);
  for (auto* list : {&p.query_segment, &p.key_segment}) reverse_blocks(*list, batch);
  const ForwardStep other{step.c, changed, step.with_lse, step.conventions};
  return same_after(asked, other, execution_of(step.c), [](const Outputs& out) {
    reverse_batch(out.o.view());
    if (out.lse.view()) reverse_batch(out.lse.view());
  });
}

Relation same_if_done(const AskedForward& asked, const ForwardStep& other) {
  const Outputs out = other.outputs();
  if (const std::string why = asked.candidate.unsupported(other.call(out)); !why.empty())
    return Relation::not_applicable(why);
  return same_after(asked, other, execution_of(other.c));
}

// Whether the elements of the tensors of `x` are those of `y` at the same places. Some families of
// inputs and masks depend on the number of keys.
bool are_among(const Attention& x, const Attention& y) {
  bool same = true;
  for (const auto& [of, in] :
       {std::pair{&x.q, &y.q}, {&x.k, &y.k}, {&x.v, &y.v}, {&x.bias, &y.bias}})
    if (*of)
      for_each_index(of->shape, [&](Index b, Index h, Index i, Index d) {
        const double one = load(*of, of->at(b, h, i, d)), other = load(*in, in->at(b, h, i, d));
        same = same && (one == other || (std::isnan(one) && std::isnan(other)));
      });
  if (x.keep)
    for_each_index(x.shape.pair_extents(), [&](Index b, Index h, Index i, Index j) {
      same = same && x.keep.at(b, h, i, j) == y.keep.at(b, h, i, j);
    });
  return same;
}

// The same keys, behind which lie others that no row sees.
Relation longer_keys(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  const Attention& p = step.in.problem;
  if (shares_keys(step.c)) return Relation::not_applicable("keys are shared");
  if (p.dropout > 0) return Relation::not_applicable("dropout counts the keys");
  constexpr Index more = 77;
  Case longer = step.c;
  longer.shape.keys += more;
  if (longer.lengths.empty()) longer.lengths = {step.c.shape.keys};
  if (!p.offset.empty() && step.c.offset.kind == OffsetSpec::Kind::end)
    longer.offset = {OffsetSpec::Kind::fixed, p.offset[0]};
  try {
    check_case(longer);
  } catch (const CaseError& e) {
    return Relation::not_applicable(e.what());
  }
  const Inputs in(longer, step.in.around);
  if (!are_among(p, in.problem))
    return Relation::not_applicable("the inputs depend on the number of keys");
  return same_if_done(asked, {longer, in, step.with_lse, step.conventions});
}

Relation other_layout(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  Case c = step.c;
  if (shares_keys(c)) return Relation::not_applicable("keys are shared");
  const LayoutKind to = c.q_layout == LayoutKind::bhsd ? LayoutKind::bshd : LayoutKind::bhsd;
  c.q_layout = c.k_layout = c.v_layout = to;
  const Inputs in(c, step.in.around);
  return same_if_done(asked, {c, in, step.with_lse, step.conventions});
}

constexpr RelationOf<ForwardStep> rows[] = {
    {"batch-alone", sequence_alone, true}, {"batch-reversed", reversed_batch, true},
    {"longer-keys", longer_keys, true},    {"row-chunks", in_chunks, true},
    {"row-alone", row_alone, true},        {"other-layout", other_layout, true},
};

}  // namespace

std::span<const RelationOf<ForwardStep>> invariances_of_rows() { return rows; }

}  // namespace assay
