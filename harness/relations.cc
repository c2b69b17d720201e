#include "harness/relations.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/visibility.h"

namespace assay {
namespace {

// Whether every element of a storage can be multiplied by the factor without rounding; does so if it can.
bool scale_exactly(const Tensor& t, double factor) {
  TensorView flat = t.view();
  const auto bytes = static_cast<std::size_t>(format(flat.dtype).bits / 8);
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
  for (Index b = 0; b < t.shape[0]; ++b)
    for (Index h = 0; h < t.shape[1]; ++h)
      for (Index i = 0; i < t.shape[2]; ++i)
        for (Index d = 0; d < t.shape[3]; ++d) store(t, t.at(b, h, i, d), -load(t, t.at(b, h, i, d)));
}

std::string run(Candidate& candidate, const Case& c, const Inputs& inputs, const Outputs& out, const kernels::Execution& how) {
  return call_guarded(candidate, c, inputs, out, Poison::nan, how);
}

std::string verdict_of(const std::string& difference) { return difference.empty() ? "held" : "violated: " + difference; }

std::string same_with_threads(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base) {
  Outputs out(c, candidate.gives_lse(), inputs.around);
  if (std::string wrong = run(candidate, c, inputs, out, on_other_threads(c)); !wrong.empty()) return "violated: " + wrong;
  return verdict_of(first_difference(base, out));
}

// V -> -V gives O -> -O.
std::string negated_values(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base) {
  Inputs changed(c, inputs.around);
  if (!scale_exactly(changed.v, -1)) return "not applicable: V is not finite";
  Outputs out(c, candidate.gives_lse(), inputs.around);
  if (std::string wrong = run(candidate, c, changed, out, execution_of(c)); !wrong.empty()) return "violated: " + wrong;
  negate_elements(out.o.view());
  return verdict_of(first_difference(base, out));
}

// Q -> 2 Q, K -> K / 2 changes no product.
std::string exchanged_scale(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base) {
  Inputs changed(c, inputs.around);
  if (!scale_exactly(changed.q, 2) || !scale_exactly(changed.k, 0.5)) return "not applicable: Q or K would round";
  Outputs out(c, candidate.gives_lse(), inputs.around);
  if (std::string wrong = run(candidate, c, changed, out, execution_of(c)); !wrong.empty()) return "violated: " + wrong;
  return verdict_of(first_difference(base, out));
}

// Fills K and V at the keys that no row of the first `rows` sees; returns how many those are.
Index overwrite_unseen_keys(const Case& c, const Inputs& changed, Index rows, double fill) {
  const AttentionShape& s = c.shape;
  Index overwritten = 0;
  RowVisibility row;
  for (Index b = 0; b < s.batch; ++b)
    for (Index g = 0; g < s.kv_heads; ++g) {
      std::vector<char> seen(static_cast<std::size_t>(s.keys), 0);
      if (!masks_elements(changed.problem)) {
        // A union of intervals, the same for every head.
        std::vector<Index> depth(static_cast<std::size_t>(s.keys) + 1, 0);
        for (Index i = 0; i < rows; ++i) {
          const KeyInterval interval = visible_interval(changed.problem, b, i);
          if (interval.begin >= interval.end) continue;
          ++depth[static_cast<std::size_t>(interval.begin)];
          --depth[static_cast<std::size_t>(interval.end)];
        }
        Index open = 0;
        for (std::size_t j = 0; j < seen.size(); ++j) seen[j] = (open += depth[j]) > 0;
      } else {
        for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h)
          for (Index i = 0; i < rows; ++i) {
            evaluate_visibility(changed.problem, b, h, i, row);
            for (Index j = row.begin; j < row.end; ++j)
              if (row.bias[static_cast<std::size_t>(j)] != -std::numeric_limits<double>::infinity()) seen[static_cast<std::size_t>(j)] = 1;
          }
      }
      for (Index j = 0; j < s.keys; ++j) {
        if (seen[static_cast<std::size_t>(j)]) continue;
        ++overwritten;
        const double x = round_to(c.dtype, std::min(fill, format(c.dtype).max_finite));
        for (Index d = 0; d < s.dim; ++d) store(changed.problem.k, changed.problem.k.at(b, g, j, d), fill == fill ? x : fill);
        for (Index d = 0; d < s.value_dim; ++d) store(changed.problem.v, changed.problem.v.at(b, g, j, d), fill == fill ? x : fill);
      }
    }
  return overwritten;
}

// What no row of the first `rows` sees may hold anything: those rows do not change. With all rows this is
// padding; with some of them it is "the future does not leak into the past".
std::string unseen_keys(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base, Index rows, double fill) {
  for (LayoutKind l : {c.k_layout, c.v_layout})
    if (l == LayoutKind::shared_head || l == LayoutKind::shared_batch) return "not applicable: keys are shared";
  Inputs changed(c, inputs.around);
  const Index overwritten = overwrite_unseen_keys(c, changed, rows, fill);
  if (overwritten == 0) return "not applicable: every key is seen";
  Outputs out(c, candidate.gives_lse(), inputs.around);
  if (std::string wrong = run(candidate, c, changed, out, execution_of(c)); !wrong.empty()) return "violated: " + wrong;
  const std::string found = first_difference(base, out, rows);
  if (found.empty() || !std::isnan(fill)) return verdict_of(found);
  // A leak, or a weight of 0 that met NaN?
  Inputs finite(c, inputs.around);
  overwrite_unseen_keys(c, finite, rows, 1e30);
  Outputs again(c, candidate.gives_lse(), inputs.around);
  const bool unchanged = run(candidate, c, finite, again, execution_of(c)).empty() && first_difference(base, again, rows).empty();
  return verdict_of(found) + (unchanged ? "; with finite numbers there nothing changes: the keys are masked, and 0 times NaN is added" : "");
}

// A call for another problem in between leaves nothing behind: its other causality, window, scale and mask are forgotten.
std::string after_another_call(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base) {
  Case scaled = c;
  scaled.scale = 2 * inputs.problem.scale;
  Case other = scaled;
  other.causal = !c.causal;
  other.window_left = c.window_left < 0 ? 1 : -1;
  if (c.keep.pattern == MaskPattern::none) other.keep = {MaskPattern::random, {true, false, false, true}};  // of the keys alone: no memory to speak of
  else other.keep = {};
  for (const Case& between : {other, scaled}) {
    const Inputs in(between, inputs.around);
    if (!candidate.unsupported(in.problem, between.out_dtype()).empty()) continue;
    const Outputs ignored(between, candidate.gives_lse(), inputs.around), out(c, candidate.gives_lse(), inputs.around);
    if (std::string wrong = run(candidate, between, in, ignored, execution_of(c)); !wrong.empty())
      return fmt::format("violated: {}: {}", print_case(between), wrong);
    if (std::string wrong = run(candidate, c, inputs, out, execution_of(c)); !wrong.empty()) return "violated: " + wrong;
    return verdict_of(first_difference(base, out));
  }
  return "not applicable: the candidate takes no other problem of this shape";
}

}  // namespace

std::map<std::string, std::string> check_relations(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  std::map<std::string, std::string> found;
  found["threads"] = same_with_threads(c, inputs, candidate, base);
  found["after-another"] = after_another_call(c, inputs, candidate, base);
  found["negated-values"] = negated_values(c, inputs, candidate, base);
  found["exchanged-scale"] = exchanged_scale(c, inputs, candidate, base);
  found["unseen-keys-nan"] = unseen_keys(c, inputs, candidate, base, c.shape.rows, nan);
  found["unseen-keys-large"] = unseen_keys(c, inputs, candidate, base, c.shape.rows, 1e30);
  found["future-of-early-rows"] = unseen_keys(c, inputs, candidate, base, (c.shape.rows + 1) / 3, nan);
  return found;
}

std::map<std::string, std::string> check_cache_relations(const Case& c, const Inputs& inputs, Candidate& candidate, const Outputs& base) {
  std::map<std::string, std::string> found;
  auto same = [&](const Case& other, const Inputs& in, const kernels::Execution& how) {
    const Outputs out(other, candidate.gives_lse(), inputs.around);
    if (std::string wrong = run(candidate, other, in, out, how); !wrong.empty()) return "violated: " + wrong;
    return verdict_of(first_difference(base, out));
  };
  found["threads"] = same(c, inputs, on_other_threads(c));
  if (!candidate.bits_are_promised()) {
    for (const char* relation : {"chunks", "pages", "no-cache"}) found[relation] = other_order;
    return found;
  }
  // Rows in other chunks: one call, or several where there was one.
  Case chunked = c;
  chunked.cache.chunks = c.cache.chunks.empty() ? std::vector<Index>{2, 3, 1} : std::vector<Index>{};
  found["chunks"] = !can_chunk(c) ? "not applicable: rows see later keys, or dropout counts them" : same(chunked, inputs, execution_of(c));
  // Another page size, or pages where there were none.
  Case paged = c;
  if (c.cache.kind == CacheSpec::Kind::contiguous) paged.cache.kind = CacheSpec::Kind::paged;
  paged.cache.page = c.cache.page == 3 ? 7 : 3;
  found["pages"] = same(paged, inputs, execution_of(c));
  // Without a cache, on the keys and values themselves.
  if (c.cache.kind == CacheSpec::Kind::latent || c.cache_dtype() != c.dtype) {
    found["no-cache"] = "not applicable: the cache rounds or projects";
  } else {
    Case direct = c;
    direct.cache = {};
    const Inputs in(direct, inputs.around);
    found["no-cache"] = same(direct, in, execution_of(c));
  }
  return found;
}

std::map<std::string, std::string> check_backward_relations(const Case& c, const Inputs& inputs, const Outputs& forward, Candidate& candidate,
                                                            const GradientOutputs& base) {
  std::map<std::string, std::string> found;
  auto gradients = [&](const Inputs& in, const kernels::Execution& how, const auto& change) -> std::string {
    const GradientOutputs out(c, in);
    if (std::string wrong = call_backward_guarded(candidate, in, forward, out, Poison::nan, how); !wrong.empty()) return "violated: " + wrong;
    change(out);
    return verdict_of(first_difference(base, out));
  };
  const kernels::Execution how = execution_of(c);
  found["threads"] = gradients(inputs, on_other_threads(c), [](const GradientOutputs&) {});
  {
    // dO -> -dO turns every gradient around.
    const Inputs changed(c, inputs.around);
    found["negated-gradient"] =
        !scale_exactly(changed.d_o, -1) ? "not applicable: dO is not finite" : gradients(changed, how, [](const GradientOutputs& out) {
          for (const Tensor* t : {&out.dq, &out.dk, &out.dv, &out.d_sink}) negate_elements(t->view());
          // Every element of storage once, however often it is broadcast.
          TensorView flat = out.d_bias.view();
          for (Index e = 0; flat && e < static_cast<Index>(out.d_bias.size_in_bytes()) / 4; ++e) store(flat, e, -load(flat, e));
        });
  }
  {
    const Inputs changed(c, inputs.around);
    const bool shared = c.k_layout == LayoutKind::shared_head || c.k_layout == LayoutKind::shared_batch || c.v_layout == LayoutKind::shared_head ||
                        c.v_layout == LayoutKind::shared_batch;
    found["unseen-keys-nan"] = shared ? "not applicable: keys are shared"
                               : overwrite_unseen_keys(c, changed, c.shape.rows, std::numeric_limits<double>::quiet_NaN()) == 0
                                   ? "not applicable: every key is seen"
                                   : gradients(changed, how, [](const GradientOutputs&) {});
  }
  return found;
}

}  // namespace assay
