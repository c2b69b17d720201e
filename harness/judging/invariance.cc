#include "harness/judging/invariance.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <list>
#include <utility>

#include "harness/candidates/cached.h"

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

  Call call() const { return ForwardCall{problem, out}; }
  std::vector<TensorView> writes() const { return {out.o, out.lse}; }
};

void copy_elements(const Tensor& from, const Tensor& to) {
  for (const auto& [begin, end] : from.regions())
    std::copy(from.bytes() + begin, from.bytes() + end, to.bytes() + begin);
}

// Computes the parts in calls of their own, into the places that they have among all rows.
template <class Step, class Parts>
Relation compute_parts(const Asked<Step>& asked, const Parts& parts_into) {
  if (asked.step.c.dropout > 0)
    return Relation::not_applicable("dropout counts the rows and sequences of its call");
  const typename Step::Out out = asked.step.outputs();
  const NamedOutputs from = asked.base.named(), to = out.named();
  for (std::size_t k = 0; k < to.size(); ++k) copy_elements(*from[k].tensor, *to[k].tensor);
  for (const auto& part : parts_into(out.view())) {
    for (const TensorView& t : part.writes()) erase(t);
    const Request request{part.call(), execution_of(asked.step.c)};
    if (const std::string why = asked.candidate.unsupported(request.call); !why.empty())
      return Relation::not_applicable(fmt::format("{} {} alone: {}", part.what, part.number, why));
    const std::string wrong = call_plainly(asked.candidate, request);
    if (!wrong.empty())
      return Relation::violated(fmt::format("{} {} alone: {}", part.what, part.number, wrong));
    clear_unread(asked.step, out);
    const std::string difference = first_difference(asked.base, out);
    if (!difference.empty())
      return Relation::violated(
          fmt::format("all, and {} {} alone: {}", part.what, part.number, difference));
  }
  return Relation::held();
}

constexpr const char* one_sequence = "there is one sequence";
constexpr const char* one_row = "there is one row";
constexpr Index most_sequences = 4;  // that are computed alone

Relation sequence_alone(const AskedForward& asked) {
  const Attention& p = asked.step.in.problem;
  if (p.shape.batch < 2) return Relation::not_applicable(one_sequence);
  return compute_parts(asked, [&](const AttentionOutput& out) {
    std::vector<Part> parts;
    for (Index b = p.shape.batch - 1; b >= 0 && p.shape.batch - b <= most_sequences; --b)
      parts.push_back({sequence_of(p, b), part_of(out, 0, b, 1), "sequence", b});
    return parts;
  });
}

Relation in_chunks(const AskedForward& asked) {
  const Attention& p = asked.step.in.problem;
  const Index rows = p.shape.rows, first = (rows + 1) / 3;
  if (rows < 2) return Relation::not_applicable(one_row);
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
  if (p.shape.rows < 2) return Relation::not_applicable(one_row);
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

// Reverses the order of the sequences. Returns why it cannot, or an empty text.
std::string reverse_sequences(Inputs& in) {
  Attention& p = in.problem;
  const Index batch = p.shape.batch;
  const bool one_mask = p.keep && p.keep.stride[0] == 0;
  // Axes may broadcast, so that several indices share an element that must be exchanged once.
  if (p.bias && std::ranges::count(p.bias.stride, 0) > (p.bias.stride[0] == 0 ? 1 : 0))
    return "the bias broadcasts";
  for (const TensorView* t : {&p.q, &p.k, &p.v, &p.bias}) reverse_batch(*t);
  if (p.keep && !one_mask) reverse_blocks(in.keep, batch);
  for (auto* list : {&p.offset, &p.key_lengths, &p.key_starts}) reverse_blocks(*list, batch);
  for (auto* list : {&p.query_segment, &p.key_segment}) reverse_blocks(*list, batch);
  return {};
}

// Why the sequences of a case cannot come in another order; empty if they can.
std::string without_order(const Case& c) {
  if (c.shape.batch < 2) return one_sequence;
  return c.dropout > 0 ? "dropout counts the sequences" : "";
}

void reverse_outputs(const Outputs& out) {
  for (const Tensor* t : {&out.o, &out.lse}) reverse_batch(t->view());
}

Relation reversed_batch(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  if (const std::string why = without_order(step.c); !why.empty())
    return Relation::not_applicable(why);
  Inputs changed(step.in);
  if (const std::string why = reverse_sequences(changed); !why.empty())
    return Relation::not_applicable(why);
  const ForwardStep other{step.c, changed, step.with_lse, step.conventions};
  return same_after(asked, other, execution_of(step.c), reverse_outputs);
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

// The same problem with further keys behind its own, which no row sees.
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

// ---- Through a cache ----

// Which sequences of a cached case a part has, which of their rows, and how many of the keys.
struct Chosen {
  std::vector<Index> sequences;
  Index first_row, rows, keys;
};

Case case_of(const Case& whole, const Chosen& chosen) {
  Case c = whole;
  c.shape.batch = std::ssize(chosen.sequences);
  c.shape.rows = chosen.rows;
  c.shape.keys = chosen.keys;
  c.pokes.clear();  // their elements are copied
  if (chosen.rows != whole.shape.rows) c.cache.chunks.clear();
  const auto choose = [&](std::vector<Index>& list, const auto& entry) {
    if (list.empty()) return;
    list.clear();
    for (const Index b : chosen.sequences) list.push_back(std::min(chosen.keys, entry(whole, b)));
  };
  choose(c.lengths, length_of);
  choose(c.starts, start_of);
  return c;
}

// Element (b, h, i, d) becomes that of sequence sequences[b], row first + i, of another tensor.
// Elements that the other tensor does not have stay as they are.
void copy_chosen(const TensorView& to, const TensorView& from, const Chosen& chosen, Index first) {
  if (!to) return;
  Extents common = to.shape;
  for (const std::size_t axis : {2, 3}) common[axis] = std::min(common[axis], from.shape[axis]);
  for_each_index(common, [&](Index b, Index h, Index i, Index d) {
    store(to, to.at(b, h, i, d), load(from, from.at(chosen.sequences[usize(b)], h, first + i, d)));
  });
}

void choose_segments(std::vector<std::int32_t>& to, const std::vector<std::int32_t>& from,
                     const Chosen& chosen, Index length, Index first, Index count) {
  const Index own = std::ssize(to) / std::max<Index>(1, std::ssize(chosen.sequences));
  for (std::size_t n = 0; n < chosen.sequences.size() && !to.empty(); ++n)
    for (Index i = 0; i < std::min(own, count); ++i)
      to[n * usize(own) + usize(i)] = from[usize(chosen.sequences[n] * length + first + i)];
}

// A part of a cached case as a case of its own, with the elements that it has in the whole.
class CachedPart {
 public:
  CachedPart(const ForwardStep& whole, const Chosen& chosen)
      : c(case_of(whole.c, chosen)), in(c, whole.in.around) {
    const Inputs& all = whole.in;
    copy_chosen(in.q.view(), all.q.view(), chosen, chosen.first_row);
    copy_chosen(in.bias.view(), all.bias.view(), chosen, chosen.first_row);
    for (Tensor Inputs::* t :
         {&Inputs::token_k, &Inputs::token_v, &Inputs::k_scales, &Inputs::v_scales})
      copy_chosen((in.*t).view(), (all.*t).view(), chosen, 0);
    const AttentionShape& s = whole.c.shape;
    Attention& p = in.problem;
    choose_segments(p.query_segment, all.problem.query_segment, chosen, s.rows, chosen.first_row,
                    chosen.rows);
    choose_segments(p.key_segment, all.problem.key_segment, chosen, s.keys, 0, s.keys);
    if (p.keep) choose_mask(all.problem.keep, chosen, s.keys);
  }
  CachedPart(const CachedPart&) = delete;

  const Case c;
  Inputs in;

 private:
  void choose_mask(const BoolView& from, const Chosen& chosen, Index keys) {
    Extents pairs = c.shape.pair_extents();
    pairs[3] = std::min(pairs[3], keys);
    const Extents& stride = in.problem.keep.stride;
    for_each_index(pairs, [&](Index b, Index h, Index i, Index j) {
      in.keep[usize(b * stride[0] + h * stride[1] + i * stride[2] + j * stride[3])] =
          from.at(chosen.sequences[usize(b)], h, chosen.first_row + i, j);
    });
  }
};

// A part in calls of its own, and where its outputs belong.
struct PlacedPart {
  const CachedPart part;
  AttentionOutput out;
  const char* what;
  Index number;

  PlacedPart(const ForwardStep& whole, const Chosen& chosen, const AttentionOutput& to,
             const char* called, Index n)
      : part(whole, chosen), out(to), what(called), number(n) {}
  Call call() const { return CachedCall{part.c, part.in, out}; }
  std::vector<TensorView> writes() const { return {out.o, out.lse}; }
};

// Every sequence by itself. In pages there is room for as many keys as in the call for all; a cache
// of the candidate's own has as many as the sequence.
Relation cached_sequence_alone(const AskedForward& asked) {
  const Case& c = asked.step.c;
  const AttentionShape& s = c.shape;
  if (s.batch < 2) return Relation::not_applicable(one_sequence);
  const bool pages = asked.candidate.abilities().pages;
  std::vector<Index> chosen;
  for (Index b = s.batch - 1; b >= 0 && std::ssize(chosen) < most_sequences; --b)
    if (pages || length_of(c, b) >= std::max<Index>(1, s.rows)) chosen.push_back(b);
  if (chosen.empty()) return Relation::not_applicable("no sequence has as many keys as rows");
  return compute_parts(asked, [&](const AttentionOutput& out) {
    std::list<PlacedPart> parts;
    for (const Index b : chosen)
      parts.emplace_back(asked.step, Chosen{{b}, 0, s.rows, pages ? s.keys : length_of(c, b)},
                         part_of(out, 0, b, 1), "sequence", b);
    return parts;
  });
}

Relation reversed_cache(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  if (const std::string why = without_order(step.c); !why.empty())
    return Relation::not_applicable(why);
  Chosen all{{}, 0, step.c.shape.rows, step.c.shape.keys};
  for (Index b = step.c.shape.batch - 1; b >= 0; --b) all.sequences.push_back(b);
  const CachedPart part(step, all);
  return same_after(asked, {part.c, part.in, step.with_lse, step.conventions}, execution_of(step.c),
                    reverse_outputs);
}

// The tables are wider, as for a longer sequence, and the number of keys is larger.
Relation wider_tables(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  const Case& c = step.c;
  if (!asked.candidate.abilities().pages)
    return Relation::not_applicable("the cache is the candidate's own");
  if (!c.cache.chunks.empty()) return Relation::not_applicable("the rows come in several calls");
  if (c.dropout > 0) return Relation::not_applicable("dropout counts the keys");
  Case whole = c;
  if (whole.lengths.empty()) whole.lengths = {c.shape.keys};
  whole.offset = {OffsetSpec::Kind::lengths, 0};
  Relation found;
  for (const Index more : {77, 1100}) {
    Chosen all{{}, 0, c.shape.rows, c.shape.keys + more};
    for (Index b = 0; b < c.shape.batch; ++b) all.sequences.push_back(b);
    const CachedPart part({whole, step.in, step.with_lse, step.conventions}, all);
    found = same_if_done(asked, {part.c, part.in, step.with_lse, step.conventions});
    if (found.how != Relation::How::held) break;
  }
  return found;
}

// A row that is not the last one is the last token of a shorter sequence.
Relation cached_row_alone(const AskedForward& asked) {
  const Case& c = asked.step.c;
  const Index rows = c.shape.rows, last = rows - 1;
  if (rows < 2) return Relation::not_applicable(one_row);
  std::vector<Index> chosen = {last};
  if (can_chunk(c)) chosen = {0, rows / 2, last};
  std::vector<Index> sequences;
  for (Index b = 0; b < c.shape.batch; ++b) sequences.push_back(b);
  return compute_parts(asked, [&](const AttentionOutput& out) {
    std::list<PlacedPart> parts;
    for (const Index i : chosen)
      parts.emplace_back(asked.step, Chosen{sequences, i, 1, c.shape.keys - (last - i)},
                         part_of(out, 2, i, 1), "row", i);
    return parts;
  });
}

// Q and the tokens, or the pages, lie otherwise.
Relation other_layout_of_cache(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  Case c = step.c;
  c.q_layout = c.q_layout == LayoutKind::bhsd ? LayoutKind::bshd : LayoutKind::bhsd;
  if (c.cache.order == PageOrder::apart) c.k_layout = c.v_layout = c.q_layout;
  else c.cache.order = c.cache.order == PageOrder::rows ? PageOrder::halves : PageOrder::rows;
  const Inputs in(c, step.in.around);
  return same_if_done(asked, {c, in, step.with_lse, step.conventions});
}

// ---- Gradients ----

using AskedBackward = Asked<BackwardStep>;

AttentionBackwardInput part_of(AttentionBackwardInput whole, Index b) {
  for (TensorView* t : {&whole.o, &whole.lse, &whole.d_o, &whole.d_lse}) keep_part(*t, 0, b, 1);
  return whole;
}

// The gradients of one sequence. Those that are sums over the batch go elsewhere.
struct GradientPart {
  Attention problem;
  AttentionBackwardInput in;
  AttentionGradients out;
  const char* what = "sequence";
  Index number;

  Call call() const { return BackwardCall{problem, in, out}; }
  std::vector<TensorView> writes() const {
    return {out.dq, out.dk, out.dv, out.d_bias, out.d_sink};
  }
};

bool sums_over_batch(const TensorView& t) { return t && t.stride[0] == 0; }

Relation gradients_alone(const AskedBackward& asked) {
  const BackwardStep& step = asked.step;
  const Attention& p = step.in.problem;
  if (p.shape.batch < 2) return Relation::not_applicable(one_sequence);
  const GradientOutputs elsewhere = step.outputs();
  return compute_parts(asked, [&](const AttentionGradients& out) {
    std::vector<GradientPart> parts;
    for (Index b = p.shape.batch - 1; b >= 0 && p.shape.batch - b <= most_sequences; --b) {
      GradientPart part{
          .problem = sequence_of(p, b), .in = part_of(step.input(), b), .out = out, .number = b};
      part.out.d_sink = elsewhere.d_sink.view();
      if (sums_over_batch(out.d_bias)) part.out.d_bias = elsewhere.d_bias.view();
      for (TensorView* t : {&part.out.dq, &part.out.dk, &part.out.dv, &part.out.d_bias})
        keep_part(*t, 0, b, 1);
      parts.push_back(part);
    }
    return parts;
  });
}

Relation reversed_gradients(const AskedBackward& asked) {
  const BackwardStep& step = asked.step;
  if (const std::string why = without_order(step.c); !why.empty())
    return Relation::not_applicable(why);
  Inputs changed(step.in);
  if (const std::string why = reverse_sequences(changed); !why.empty())
    return Relation::not_applicable(why);
  const Outputs forward(step.forward);
  reverse_outputs(forward);
  for (const Tensor* t : {&changed.d_o, &changed.d_lse}) reverse_batch(t->view());
  return same_after(asked, BackwardStep{step.c, changed, forward, step.conventions},
                    execution_of(step.c), [&](const GradientOutputs& out) {
                      for (const Tensor* t : {&out.dq, &out.dk, &out.dv, &out.d_bias})
                        reverse_batch(t->view());
                      // Sums over the batch may be made in another order.
                      if (out.d_sink.view()) copy_elements(asked.base.d_sink, out.d_sink);
                      if (sums_over_batch(out.d_bias.view()))
                        copy_elements(asked.base.d_bias, out.d_bias);
                    });
}

constexpr RelationOf<ForwardStep> of_rows[] = {
    {"batch-alone", sequence_alone, true}, {"batch-reversed", reversed_batch, true},
    {"longer-keys", longer_keys, true},    {"row-chunks", in_chunks, true},
    {"row-alone", row_alone, true},        {"other-layout", other_layout, true},
};
constexpr RelationOf<ForwardStep> of_caches[] = {
    {"batch-alone", cached_sequence_alone, true},  {"batch-reversed", reversed_cache, true},
    {"longer-keys", wider_tables, true},           {"row-alone", cached_row_alone, true},
    {"other-layout", other_layout_of_cache, true},
};
constexpr RelationOf<BackwardStep> of_gradients[] = {
    {"batch-alone", gradients_alone, true},
    {"batch-reversed", reversed_gradients, true},
};

}  // namespace

template <>
std::span<const RelationOf<ForwardStep>> invariances_of(const ForwardStep& step) {
  if (step.c.cache) return of_caches;
  return of_rows;
}
template <>
std::span<const RelationOf<BackwardStep>> invariances_of(const BackwardStep&) {
  return of_gradients;
}

}  // namespace assay
