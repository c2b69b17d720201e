#include "harness/judging/scale_faults.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "problem/cached_tokens.h"
#include "problem/generate.h"

namespace assay {
namespace {

// The indices of a scale.
struct Place {
  Index b, head, token, group;
};

struct ScaleFault {
  const char *name, *words;
  // The scale that is read; `own` are the scales of this tensor, `other` those of the other one.
  double (*read)(const TensorView& own, const TensorView& other, const Place& at);
};

double at(const TensorView& scales, const Place& p) {
  return load(scales, scales.at(p.b, p.head, p.token, p.group));
}

constexpr std::array faults = {
    ScaleFault{"cache-scale-rounded-up", "scales of the cache are rounded up to a power of two",
               [](const TensorView& own, const TensorView&, const Place& p) {
                 return std::exp2(std::ceil(std::log2(at(own, p))));
               }},
    ScaleFault{"cache-scale-rounded-down", "scales of the cache are rounded down to a power of two",
               [](const TensorView& own, const TensorView&, const Place& p) {
                 return std::exp2(std::floor(std::log2(at(own, p))));
               }},
    ScaleFault{"cache-scale-in-16-bits", "scales of the cache are rounded to bf16",
               [](const TensorView& own, const TensorView&, const Place& p) {
                 return round_to(Dtype::bf16, at(own, p));
               }},
    ScaleFault{"cache-scale-missing", "codes of the cache are read without their scales",
               [](const TensorView&, const TensorView&, const Place&) { return 1.0; }},
    ScaleFault{"cache-scale-of-other-tensor", "scales of K and V are exchanged",
               [](const TensorView&, const TensorView& other, const Place& p) {
                 return at(other, {p.b, p.head, p.token, std::min(p.group, other.shape[3] - 1)});
               }},
    ScaleFault{"cache-scale-of-first-token", "all tokens are read with the scale of the first",
               [](const TensorView& own, const TensorView&, const Place& p) {
                 return at(own, {p.b, p.head, 0, p.group});
               }},
    ScaleFault{"cache-scale-of-first-head", "all heads are read with the scale of the first",
               [](const TensorView& own, const TensorView&, const Place& p) {
                 return at(own, {p.b, 0, p.token, p.group});
               }},
    ScaleFault{"cache-scale-of-first-group", "all groups are read with the scale of the first",
               [](const TensorView& own, const TensorView&, const Place& p) {
                 return at(own, {p.b, p.head, p.token, 0});
               }},
};

// One of K and V, with its scales and those of the other one.
struct Scaled {
  const TensorView &values, &own, &other;
  Index group;
};

// K or V as a kernel with this fault reads it.
Tensor misread(const ScaleFault& fault, const Scaled& t) {
  const Extents& e = t.values.shape;
  Tensor to(Dtype::f64, e, make_layout(LayoutKind::bhsd, e, 1));
  const Index group = t.group > 0 ? t.group : std::max<Index>(e[3], 1);
  for_each_index(e, [&](Index b, Index h, Index j, Index d) {
    const Place place{b, h, j, d / group};
    store(to.view(), to.view().at(b, h, j, d),
          load(t.values, t.values.at(b, h, j, d)) / at(t.own, place) *
              fault.read(t.own, t.other, place));
  });
  return to;
}

bool same_numbers(const TensorView& a, const TensorView& b) {
  bool same = true;
  for_each_index(a.shape, [&](Index x, Index h, Index j, Index d) {
    const double p = load(a, a.at(x, h, j, d)), q = load(b, b.at(x, h, j, d));
    same = same && (p == q || (std::isnan(p) && std::isnan(q)));
  });
  return same;
}

}  // namespace

void explain_by_scales(const ScaledKeyValues& read, const AttentionOutput& out,
                       const Contract* contract, const JudgeOptions& options, Diagnosis& found) {
  if (!read.k_scales || found.rows_asked == 0) return;
  JudgeOptions judging = options;
  judging.power = false;
  judging.judged = nullptr;
  const ProjectedAttention& right = read.problem;
  for (const ScaleFault& fault : faults) {
    const Tensor k = misread(fault, {right.k, read.k_scales, read.v_scales, read.group}),
                 v = misread(fault, {right.v, read.v_scales, read.k_scales, read.group});
    if (same_numbers(k.view(), right.k) && same_numbers(v.view(), right.v)) continue;
    const Tensor k_absolute = magnitudes_of(k.view()), v_absolute = magnitudes_of(v.view());
    ProjectedAttention wrong = right;
    wrong.k = k.view();
    wrong.v = v.view();
    wrong.projection = {k_absolute.view(), v_absolute.view(), 1, 0};
    ++found.tried;
    const Verdict verdict =
        contract ? judge(wrong, out, *contract, judging) : judge_by_ladder(wrong, out, 64, judging);
    if (verdict.outcome != Outcome::pass) continue;
    Explanation e;
    e.hypothesis = fault.name;
    e.words = fault.words;
    found.explanations.insert(found.explanations.begin(), std::move(e));
  }
}

}  // namespace assay
