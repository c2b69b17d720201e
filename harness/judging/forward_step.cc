#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/candidates/cached.h"
#include "harness/judging/pages.h"
#include "harness/judging/scale_faults.h"
#include "harness/judging/step.h"
#include "oracle/stored_tokens.h"
#include "oracle/visibility.h"

namespace assay {

Call ForwardStep::call(const Out& out) const {
  if (c.cache) return CachedCall{c, in, out.view(), pages};
  return ForwardCall{in.problem, out.view()};
}

WatchedInputs ForwardStep::watched() const {
  return {{{"q", &in.q},
           {"k", &in.k},
           {"v", &in.v},
           {"bias", &in.bias},
           {"token_k", &in.token_k},
           {"token_v", &in.token_v},
           {"up_k", &in.up_k},
           {"up_v", &in.up_v}},
          &in.keep};
}

Verdict ForwardStep::judge(const Out& out, const std::optional<Arithmetic>& arithmetic,
                           const JudgeOptions& options) const {
  if (arithmetic)
    return assay::judge(in.problem, out.view(), std::get<Contract>(*arithmetic), options);
  return judge_by_ladder(in.problem, out.view(), 64, options);
}

namespace {

// What the case says of how its cache came about, as run_through_cache() fills it.
StoredTokens stored_tokens(const Case& c, const Inputs& in) {
  StoredTokens s;
  s.dtype = c.cache_dtype();
  s.group = c.cache.group;
  s.page = c.cache.kind == CacheSpec::Kind::contiguous ? 0 : c.cache.page;
  s.k = in.token_k.view();
  s.v = in.token_v.view();
  const Index past = c.shape.keys - c.shape.rows;
  s.appends = {0, past / 3, past};
  for (const Chunk& rows : chunks_of(c)) s.appends.push_back(past + rows.first + rows.count);
  s.appends.erase(std::unique(s.appends.begin(), s.appends.end()), s.appends.end());
  return s;
}

}  // namespace

Diagnosis ForwardStep::diagnose(const Out& out, const std::optional<Arithmetic>& arithmetic,
                                const Verdict& failed, const JudgeOptions& options) const {
  const Contract* contract = arithmetic ? &std::get<Contract>(*arithmetic) : nullptr;
  const ProjectedAttention problem = anchored(in.problem, conventions);
  // Scales in f32 are known as they are, and the tokens that they came from are not asked.
  const bool has_scales = c.cache && c.cache.scale != CacheScale::e8m0;
  std::optional<StoredTokens> stored;
  if (c.cache && !has_scales) stored = stored_tokens(c, in);
  Diagnosis found =
      assay::diagnose(problem, out.view(), contract, failed, options, stored ? &*stored : nullptr);
  if (has_scales)
    explain_by_scales({problem, in.k_scales.view(), in.v_scales.view(), c.cache.group}, out.view(),
                      contract, options, found);
  return found;
}

void ForwardStep::clear_unread(const Out& out) const {
  struct Unread {
    bool o, lse;
  };
  const Unread masked = {conventions.of<MaskedRows>() == MaskedRows::any,
                         with_lse && conventions.of<MaskedLse>() == MaskedLse::any};
  const Unread weightless = {conventions.of<WeightlessRows>() == WeightlessRows::any,
                             with_lse && conventions.of<WeightlessLse>() == WeightlessLse::any};
  if (!masked.o && !masked.lse && !weightless.o && !weightless.lse) return;
  const Attention p = anchored(in.problem, conventions);
  RowVisibility row;
  for_each_index(p.shape.lse_extents(), [&](Index b, Index h, Index i, Index) {
    evaluate_visibility(p, b, h, i, row);
    if (row.visible > 0 && !is_weightless(p, b, h, i, row)) return;
    const Unread& unread = row.visible > 0 ? weightless : masked;
    for (Index d = 0; unread.o && d < p.shape.value_dim; ++d)
      store(out.o.view(), out.o.view().at(b, h, i, d), 0);
    if (unread.lse) store(out.lse.view(), out.lse.view().at(b, h, i, 0), 0);
  });
}

bool scale_exactly(const Tensor& t, double factor) {
  const TensorView& flat = t.view();
  const auto bytes = usize(format(flat.dtype).bits / 8);
  const auto for_each = [&](const auto& body) {
    for (const auto& [begin, end] : t.regions())
      for (std::size_t e = begin / bytes; e < end / bytes; ++e)
        if (!body(static_cast<Index>(e))) return false;
    return true;
  };
  const bool exact = for_each([&](Index e) {
    const double x = load(flat, e);
    return std::isfinite(x) && round_to(flat.dtype, x * factor) == x * factor;
  });
  return exact && for_each([&](Index e) { return store(flat, e, load(flat, e) * factor), true; });
}

void negate_elements(const TensorView& t) {
  for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
    const Index at = t.at(b, h, i, d);
    store(t, at, -load(t, at));
  });
}

bool shares_keys(const Case& c) {
  for (LayoutKind l : {c.k_layout, c.v_layout})
    if (l == LayoutKind::shared_head || l == LayoutKind::shared_batch) return true;
  return false;
}

namespace {

// Whether a row that sees no key reads V all the same.
bool reads_masked_keys(const Conventions& conventions) {
  const auto rows = conventions.of<MaskedRows>();
  return rows != MaskedRows::zero && rows != MaskedRows::nan;
}
// Whether a row whose every visible score is -inf reads V at keys that it does not see.
bool weightless_rows_read_all(const Conventions& conventions) {
  return conventions.of<WeightlessRows>() == WeightlessRows::mean_of_v;
}

// The keys that some row of the first `rows` sees, through the query heads of kv head g. By
// convention a row without weight may read them all.
std::vector<char> seen_keys(const Attention& p, const Conventions& conventions, Index b, Index g,
                            Index rows) {
  const AttentionShape& s = p.shape;
  std::vector<char> seen(usize(s.keys), 0);
  const bool reads_all = reads_masked_keys(conventions),
             weightless_too = weightless_rows_read_all(conventions);
  if (!masks_elements(p) && !weightless_too) {
    // The seen keys are a union of intervals, which is the same for every head.
    std::vector<Index> depth(usize(s.keys) + 1, 0);
    for (Index i = 0; i < rows; ++i) {
      KeyInterval interval = visible_interval(p, b, i);
      if (interval.begin >= interval.end) {
        if (!reads_all) continue;
        interval = {0, s.keys};
      }
      ++depth[usize(interval.begin)];
      --depth[usize(interval.end)];
    }
    Index open = 0;
    for (std::size_t j = 0; j < seen.size(); ++j) seen[j] = (open += depth[j]) > 0;
    return seen;
  }
  RowVisibility row;
  for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h)
    for (Index i = 0; i < rows; ++i) {
      evaluate_visibility(p, b, h, i, row);
      if ((row.visible == 0 && reads_all) || (weightless_too && is_weightless(p, b, h, i, row)))
        return std::vector<char>(usize(s.keys), 1);
      for (Index j = row.begin; j < row.end; ++j) {
        const auto key = usize(j);
        if (row.bias[key] != -std::numeric_limits<double>::infinity()) seen[key] = 1;
      }
    }
  return seen;
}

bool is_padding(const Attention& p, Index b, Index j) {
  return (!p.key_starts.empty() && j < p.key_starts[usize(b)]) ||
         (!p.key_lengths.empty() && j >= p.key_lengths[usize(b)]);
}

bool is_finite(const TensorView& t) {
  bool finite = true;
  for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
    finite = finite && std::isfinite(load(t, t.at(b, h, i, d)));
  });
  return finite;
}

}  // namespace

bool a_key_may_spread(const Conventions& conventions, const Attention& p) {
  return conventions.of<MaskedNan>() == MaskedNan::spreads && !(is_finite(p.k) && is_finite(p.v));
}

Relation ask_with_nan(const Conventions& conventions, const Attention& p,
                      const std::function<Relation(const UnseenFill&)>& ask) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), finite = 1e30;
  Relation found = ask({nan, nan});
  if (found.how != Relation::How::violated || ask({finite, finite}).how != Relation::How::held)
    return found;
  constexpr const char* why =
      "with finite numbers there nothing changes: the keys are masked, and 0 times NaN is added";
  const bool padded = !p.key_lengths.empty() || !p.key_starts.empty();
  const bool strict = conventions.declares(Convention::masked_nan) &&
                      conventions.of<MaskedNan>() == MaskedNan::ignored;
  if (!strict && !(padded && ask({nan, finite}).how != Relation::How::held)) {
    if (conventions.declares(Convention::masked_nan))
      return Relation::not_applicable("NaN at a masked key may spread by convention");
    return Relation::by_convention(fmt::format("NaN at a masked key spreads; {}", why));
  }
  found.why += fmt::format("; {}", why);
  return found;
}

Index overwrite_unseen_keys(const Case& c, const Inputs& changed, const Conventions& conventions,
                            Index rows, const UnseenFill& fill) {
  const Attention asked = anchored<Attention>(changed.problem, conventions);
  const AttentionShape& s = c.shape;
  const TensorView &k = changed.problem.k, &v = changed.problem.v;
  const auto stored = [&](double x) {
    return std::isnan(x) ? x : round_to(c.dtype, std::min(x, format(c.dtype).max_finite));
  };
  const double padding = stored(fill.padding), masked = stored(fill.masked);
  Index overwritten = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index g = 0; g < s.kv_heads; ++g) {
      const std::vector<char> seen = seen_keys(asked, conventions, b, g, rows);
      for (Index j = 0; j < s.keys; ++j) {
        if (seen[usize(j)]) continue;
        ++overwritten;
        const double x = is_padding(changed.problem, b, j) ? padding : masked;
        for (Index d = 0; d < s.dim; ++d) store(k, k.at(b, g, j, d), x);
        for (Index d = 0; d < s.value_dim; ++d) store(v, v.at(b, g, j, d), x);
      }
    }
  return overwritten;
}

namespace {

using AskedForward = Asked<ForwardStep>;

// The same step on other inputs, or for another case.
ForwardStep with_inputs(const ForwardStep& step, const Inputs& in) {
  return {step.c, in, step.with_lse, step.conventions};
}
ForwardStep of_case(const ForwardStep& step, const Case& c, const Inputs& in) {
  return {c, in, step.with_lse, step.conventions};
}

// -V instead of V gives -O instead of O.
Relation negated_values(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  const Inputs changed(step.in);
  if (!scale_exactly(changed.v, -1)) return Relation::not_applicable("V is not finite");
  return same_after(asked, with_inputs(step, changed), execution_of(step.c),
                    [](const Outputs& out) { negate_elements(out.o.view()); });
}

// Whether products that read numbers below `floor` as 0 read another set of elements as 0 after
// they were multiplied by `factor`.
bool crosses_floor(const TensorView& t, double factor, double floor) {
  bool crosses = false;
  for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
    const double x = std::fabs(load(t, t.at(b, h, i, d)));
    crosses = crosses || (x != 0 && (x < floor) != (x * factor < floor));
  });
  return crosses;
}

// Whether Q times the scale, which a kernel may round to the dtype of Q, is subnormal somewhere.
// Its double would be rounded otherwise.
bool is_subnormal_when_scaled(const Attention& p) {
  const double factor = std::min(1.0, std::fabs(static_cast<double>(p.scale)));
  const double least = p.q.dtype == Dtype::f16 ? 0x1p-14 : 0x1p-126;
  bool found = false;
  for_each_index(p.q.shape, [&](Index b, Index h, Index i, Index d) {
    const double x = std::fabs(load(p.q, p.q.at(b, h, i, d)));
    found = found || (x != 0 && x * factor < least);
  });
  return found;
}

// 2 Q and K / 2 instead of Q and K change no product.
Relation exchanged_scale(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  const auto contract =
      declared<Contract>(asked.candidate, step.call(asked.base), execution_of(step.c));
  if (contract && (crosses_floor(step.in.problem.q, 2, contract->operand_floor) ||
                   crosses_floor(step.in.problem.k, 0.5, contract->operand_floor)))
    return Relation::not_applicable("other elements of Q or K would be read as 0");
  if (!contract && is_subnormal_when_scaled(step.in.problem))
    return Relation::not_applicable("Q times the scale is subnormal");
  const Inputs changed(step.in);
  if (!scale_exactly(changed.q, 2) || !scale_exactly(changed.k, 0.5))
    return Relation::not_applicable("Q or K would round");
  return same_after(asked, with_inputs(step, changed), execution_of(step.c));
}

bool is_nan(const TensorView& t, Index b, Index h, Index i, Index d) {
  return std::isnan(load(t, t.at(b, h, i, d)));
}

// NaN has been written to the keys that no row of the first `rows` sees. A later row that sees one
// of them is NaN, and so is its LSE. Any other row is as before. Returns what is wrong.
std::string wrong_late_row(const AskedForward& asked, const Outputs& out, Index rows) {
  const Conventions& conventions = asked.step.conventions;
  const Attention p = anchored<Attention>(asked.step.in.problem, conventions);
  const AttentionShape& s = p.shape;
  constexpr double masked = -std::numeric_limits<double>::infinity();
  RowVisibility row;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h) {
      const std::vector<char> seen = seen_keys(p, conventions, b, h / s.group(), rows);
      for (Index i = rows; i < s.rows; ++i) {
        evaluate_visibility(p, b, h, i, row);
        bool spoilt = false;
        for (Index j = row.begin; j < row.end; ++j)
          spoilt = spoilt || (!seen[usize(j)] && row.bias[usize(j)] != masked);
        if (!spoilt) continue;
        const auto told = [&](const char* output) {
          return fmt::format("{}[b={}, h={}, row={}] is not NaN, and the row sees a key of NaN",
                             output, b, h, i);
        };
        if (asked.step.with_lse && !is_nan(out.lse.view(), b, h, i, 0)) return told("LSE");
        // Dropout may drop every weight of the row.
        for (Index d = 0; d < s.value_dim && p.dropout == 0; ++d)
          if (!is_nan(out.o.view(), b, h, i, d)) return told("O");
      }
    }
  return {};
}

// Overwrites the keys that no row of the first `rows` sees. Those rows must not change. With all
// rows this checks padding; with the early rows it checks that the future does not leak into the
// past, and that it reaches the rows that see it.
Relation unseen_keys(const AskedForward& asked, Index rows, const UnseenFill& fill) {
  const ForwardStep& step = asked.step;
  if (shares_keys(step.c)) return Relation::not_applicable("keys are shared");
  if (a_key_may_spread(step.conventions, step.in.problem))
    return Relation::not_applicable("a key holds NaN or an infinity, which may spread");
  const Inputs changed(step.in);
  if (overwrite_unseen_keys(step.c, changed, step.conventions, rows, fill) == 0)
    return Relation::not_applicable("every key is seen");
  const ForwardStep other = with_inputs(step, changed);
  const Outputs out = step.outputs();
  const std::string wrong =
      run_guarded(other, asked.candidate, out, Poison::nan, execution_of(step.c));
  if (!wrong.empty()) return Relation::violated(wrong);
  Relation found = Relation::unless(first_difference(asked.base, out, rows));
  if (found.how != Relation::How::held || !std::isnan(fill.masked)) return found;
  return Relation::unless(wrong_late_row(asked, out, rows));
}
Relation unseen_keys_with_nan(const AskedForward& asked, Index rows) {
  return ask_with_nan(asked.step.conventions, asked.step.in.problem,
                      [&](const UnseenFill& fill) { return unseen_keys(asked, rows, fill); });
}

Relation unseen_keys_nan(const AskedForward& asked) {
  return unseen_keys_with_nan(asked, asked.step.c.shape.rows);
}
Relation unseen_keys_large(const AskedForward& asked) {
  return unseen_keys(asked, asked.step.c.shape.rows, {1e30, 1e30});
}
Relation future_of_early_rows(const AskedForward& asked) {
  return unseen_keys_with_nan(asked, (asked.step.c.shape.rows + 1) / 3);
}

// A call for another problem in between must not change the outputs. The kernel must forget the
// other causality, window, scale and mask.
Relation after_another_call(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  const Case& c = step.c;
  Case scaled = c;
  scaled.scale = 2 * step.in.problem.scale;
  Case other = scaled;
  other.causal = !c.causal;
  other.window_left = c.window_left < 0 ? 1 : -1;
  // A mask of the keys alone needs very little memory.
  if (c.keep.pattern == MaskPattern::none)
    other.keep = {MaskPattern::random, {true, false, false, true}};
  else other.keep = {};
  for (const Case& between : {other, scaled}) {
    asked.begins(between);
    const Inputs in(between, step.in.around);
    const ForwardStep another = of_case(step, between, in);
    const Outputs ignored = another.outputs();
    if (!asked.candidate.unsupported(another.call(ignored)).empty()) continue;
    const std::string wrong =
        run_guarded(another, asked.candidate, ignored, Poison::nan, execution_of(c));
    if (!wrong.empty())
      return Relation::violated(fmt::format("{}: {}", print_case(between), wrong));
    return same_after(asked, step, execution_of(c));
  }
  return Relation::not_applicable("the candidate takes no other problem of this shape");
}

// The same outputs by another call, which the candidate may decline.
Relation same_if_supported(const AskedForward& asked, const ForwardStep& other) {
  const Outputs out = other.outputs();
  if (const std::string why = why_unsupported(asked.candidate, other.call(out)); !why.empty())
    return Relation::not_applicable(why);
  return same_after(asked, other, execution_of(other.c));
}

Relation same_case(const AskedForward& asked, const Case& c) {
  const ForwardStep& step = asked.step;
  return same_if_supported(asked, of_case(step, c, step.in));
}

// Computes the rows in other chunks: in one call, or in several where there was one.
Relation other_chunks(const AskedForward& asked) {
  Case chunked = asked.step.c;
  if (!can_chunk(chunked))
    return Relation::not_applicable("rows see later keys, or dropout counts them");
  const bool one_call = chunked.cache.chunks.empty();
  chunked.cache.chunks = one_call ? std::vector<Index>{2, 3, 1} : std::vector<Index>{};
  return same_case(asked, chunked);
}

// Uses pages of another size, or pages where there were none.
Relation other_pages(const AskedForward& asked) {
  Case paged = asked.step.c;
  if (paged.cache.kind == CacheSpec::Kind::contiguous) paged.cache.kind = CacheSpec::Kind::paged;
  paged.cache.page = paged.cache.page == 3 ? 7 : 3;
  return same_case(asked, paged);
}

// Computes without a cache, from the keys and values themselves.
Relation no_cache(const AskedForward& asked) {
  const ForwardStep& step = asked.step;
  if (step.c.cache.kind == CacheSpec::Kind::latent || step.c.cache_dtype() != step.c.dtype)
    return Relation::not_applicable("the cache rounds or projects");
  Case direct = step.c;
  direct.cache = {};
  const Inputs in(direct, step.in.around);
  return same_if_supported(asked, of_case(step, direct, in));
}

constexpr RelationOf<ForwardStep> forward_relations[] = {
    {"threads", same_on_other_threads<ForwardStep>},
    {"after-another", after_another_call},
    {"negated-values", negated_values},
    {"exchanged-scale", exchanged_scale},
    {"unseen-keys-nan", unseen_keys_nan},
    {"unseen-keys-large", unseen_keys_large},
    {"future-of-early-rows", future_of_early_rows},
};

constexpr RelationOf<ForwardStep> relations_of_a_cache[] = {
    {"threads", same_on_other_threads<ForwardStep>},
    {"chunks", other_chunks, true},
    {"pages", other_pages, true},
    {"no-cache", no_cache, true},
    {"own-pages", own_pages},
    {"shared-pages", shared_pages},
};

}  // namespace

std::span<const RelationOf<ForwardStep>> ForwardStep::relations() const {
  if (c.cache) return relations_of_a_cache;
  return forward_relations;
}

}  // namespace assay
