#include "harness/cases/shrink.h"

#include <algorithm>
#include <cmath>

namespace assay {

namespace {

// Adds the changed case if it differs and check_case() accepts it.
template <class Change>
void add_step(std::vector<Case>& steps, const Case& c, const Change& change) {
  Case next = c;
  change(next);
  if (next == c) return;
  try {
    check_case(next);
  } catch (const CaseError&) {
    return;  // another feature needs the one that was changed
  }
  steps.push_back(std::move(next));
}

// Brings a number nearer to 0: at once, by half, and by one.
template <class Of>
void add_smaller_numbers(std::vector<Case>& steps, const Case& c, const Of& of) {
  const Index now = of(c), sign = now < 0 ? -1 : 1;
  if (now == 0) return;
  for (const Index target : {Index{0}, now / 2, now - sign})
    if (target * sign < now * sign) add_step(steps, c, [&](Case& n) { of(n) = target; });
}

// Makes a list shorter, and each of its numbers smaller.
template <class Of>
void add_smaller_lists(std::vector<Case>& steps, const Case& c, const Of& of, Index least) {
  for (std::size_t k = 0; k < of(c).size(); ++k) {
    const Index now = of(c)[k];
    for (const Index target : {least, now / 2, now - 1})
      if (target >= least && target < now) add_step(steps, c, [&](Case& n) { of(n)[k] = target; });
  }
  if (of(c).size() > 1) add_step(steps, c, [&](Case& n) { of(n).pop_back(); });
}

// The numbers of features: where they reach, and in what pieces keys come.
void add_smaller_features(std::vector<Case>& steps, const Case& c) {
  const auto step = [&](const auto& change) { add_step(steps, c, change); };
  add_smaller_lists(steps, c, [](auto& n) -> auto& { return n.lengths; }, 0);
  add_smaller_lists(steps, c, [](auto& n) -> auto& { return n.starts; }, 0);
  add_smaller_lists(steps, c, [](auto& n) -> auto& { return n.documents; }, 1);
  add_smaller_lists(steps, c, [](auto& n) -> auto& { return n.cache.chunks; }, 1);
  if (c.offset.kind == OffsetSpec::Kind::fixed)
    add_smaller_numbers(steps, c, [](auto& n) -> auto& { return n.offset.value; });
  for (Index Case::* side : {&Case::window_left, &Case::window_right}) {
    if (c.*side < 0) continue;
    step([&](Case& n) { n.*side = -1; });
    add_smaller_numbers(steps, c, [&](auto& n) -> auto& { return n.*side; });
  }
  for (const Index page : {Index{1}, c.cache.page / 2})
    if (c.cache && page >= 1 && page < c.cache.page) step([&](Case& n) { n.cache.page = page; });
  for (LayoutKind Case::* layout :
       {&Case::q_layout, &Case::k_layout, &Case::v_layout, &Case::o_layout})
    step([&](Case& n) { n.*layout = {}; });
  step([&](Case& n) { n.d_o_layout.reset(); });
}

std::vector<Case> smaller_products(const Case& c) {
  std::vector<Case> steps;
  const auto step = [&](const auto& change) { add_step(steps, c, change); };
  for (Index ProductSpec::* extent : {&ProductSpec::m, &ProductSpec::n, &ProductSpec::k}) {
    const Index now = c.product.*extent;
    for (Index target : {Index{1}, now / 2, now - 4, now - 1})
      if (target >= 1 && target < now)
        step([&](Case& n) {
          n.product.*extent = target;
          fit_lists(n);
        });
  }
  const Case plain;
  step([&](Case& n) { n.pokes.clear(); });
  step([&](Case& n) { n.product.a_format.reset(); });
  step([&](Case& n) { n.product.group.reset(); });
  step([&](Case& n) {
    if (n.product.group) n.product.group = 8;
  });
  step([&](Case& n) { n.product.scales = ScaleFamily::unit; });
  step([&](Case& n) { n.product.zeros = ZeroFamily::random; });
  step([&](Case& n) { n.product.weights = Weights::ramp; });
  step([&](Case& n) { n.values = Values::ones; });
  step([&](Case& n) { n.values = plain.values; });
  step([&](Case& n) { n.q_layout = n.o_layout = {}; });
  step([&](Case& n) { n.threads = 1; });
  step([&](Case& n) { n.target.clear(); });
  step([&](Case& n) { n.out.reset(); });
  step([&](Case& n) { n.dtype = Dtype::f32; });
  step([&](Case& n) { n.sample_rows = 0; });
  step([&](Case& n) { n.seed = 1; });
  // Some families are plainer than others. Only steps to the plainer one are kept, because
  // shrinking would not end otherwise.
  std::erase_if(steps, [&](const Case& n) {
    return (c.values == Values::ones && n.values != Values::ones) ||
           (c.product.weights == Weights::ramp && n.product.weights != Weights::ramp) ||
           (c.product.group && *c.product.group == 8 && n.product.group != c.product.group);
  });
  return steps;
}

}  // namespace

void fit_lists(Case& c) {
  if (c.operation == Operation::product) {
    std::erase_if(c.pokes, [&](const Poke& p) {
      return p.position[2] >= c.product.m || p.position[3] >= c.product.k;
    });
    return;
  }
  const AttentionShape& s = c.shape;
  for (auto* list : {&c.lengths, &c.starts}) {
    if (list->size() > 1) list->resize(usize(std::max<Index>(s.batch, 1)));
    for (Index& x : *list) x = std::min(x, s.keys);
  }
  std::erase_if(c.pokes, [&](const Poke& p) {
    const bool of_queries = p.tensor == 'q' || p.tensor == 'm' || p.tensor == 'g';
    const Index rows = of_queries ? s.rows : s.keys,
                heads = of_queries ? s.query_heads : s.kv_heads;
    const Index columns = p.tensor == 'm'                      ? s.keys
                          : p.tensor == 'v' || p.tensor == 'g' ? s.value_dim
                                                               : s.dim;
    return p.position[0] >= s.batch || p.position[1] >= heads || p.position[2] >= rows ||
           p.position[3] >= columns;
  });
}

std::vector<Case> smaller(const Case& c) {
  if (c.operation == Operation::product) return smaller_products(c);
  std::vector<Case> steps;
  const auto step = [&](const auto& change) { add_step(steps, c, change); };
  const Case plain;
  // Cuts extents to the smallest, to the half, and by one.
  for (Index AttentionShape::* extent :
       {&AttentionShape::batch, &AttentionShape::rows, &AttentionShape::keys, &AttentionShape::dim,
        &AttentionShape::value_dim}) {
    const Index now = c.shape.*extent;
    for (Index target : {Index{1}, now / 2, now - 1})
      if (target >= 1 && target < now)
        step([&](Case& n) {
          n.shape.*extent = target;
          fit_lists(n);
        });
  }
  auto heads = [&](Index q, Index kv) {
    step([&](Case& n) {
      n.shape.query_heads = q;
      n.shape.kv_heads = kv;
      fit_lists(n);
    });
  };
  if (c.shape.query_heads > 1) {
    heads(1, 1);
    if (c.shape.kv_heads > 1) heads(c.shape.group(), 1);
    heads(c.shape.kv_heads, c.shape.kv_heads);
    if (c.shape.kv_heads > 2) heads(2 * c.shape.group(), 2);
    if (c.shape.group() > 2) {
      heads(2 * c.shape.kv_heads, c.shape.kv_heads);
      heads(c.shape.group() / 2 * c.shape.kv_heads, c.shape.kv_heads);
      heads((c.shape.group() - 1) * c.shape.kv_heads, c.shape.kv_heads);
    }
  }
  // Sets the features back to their defaults, one at a time.
  step([&](Case& n) {
    n.operation = Operation::attention;
    n.gradient = plain.gradient;
    n.d_o_layout.reset();
    std::erase_if(n.pokes, [](const Poke& p) { return p.tensor == 'g'; });
  });
  step([&](Case& n) { n.gradient = plain.gradient; });
  step([&](Case& n) { n.cache = {}; });
  step([&](Case& n) { n.cache.chunks.clear(); });
  step([&](Case& n) { n.cache.order = PageOrder::apart; });
  step([&](Case& n) { n.cache.scale = CacheScale::e8m0; });
  step(
      [&](Case& n) { n.cache.dtype.reset(), n.cache.group = 0, n.cache.scale = CacheScale::e8m0; });
  step([&](Case& n) {
    if (n.cache) n.cache.kind = CacheSpec::Kind::contiguous;
  });
  step([&](Case& n) { n.keep = {}; });
  step([&](Case& n) { n.bias = {}, n.finite_min_masks = false; });
  step([&](Case& n) { n.pokes.clear(); });
  step([&](Case& n) { n.hidden = plain.hidden; });
  step([&](Case& n) { n.documents.clear(); });
  step([&](Case& n) { n.causal = false; });
  step([&](Case& n) { n.window_left = n.window_right = -1; });
  step([&](Case& n) { n.offset = {}; });
  step([&](Case& n) { n.lengths.clear(); });
  step([&](Case& n) { n.starts.clear(); });
  step([&](Case& n) { n.alibi = false; });
  step([&](Case& n) { n.sink.reset(); });
  step([&](Case& n) { n.lse_gradient.reset(); });
  step([&](Case& n) { n.softcap = 0; });
  step([&](Case& n) { n.dropout = 0, n.dropout_seed = 0; });
  step([&](Case& n) { n.scale.reset(); });
  step([&](Case& n) {
    if (n.scale) n.scale = std::fabs(*n.scale);
  });
  step([&](Case& n) {
    n.q_layout = n.k_layout = n.v_layout = n.o_layout = {};
    n.d_o_layout.reset();
  });
  step([&](Case& n) { n.threads = 1; });
  step([&](Case& n) { n.target.clear(); });
  step([&](Case& n) { n.out.reset(); });
  step([&](Case& n) { n.dtype = Dtype::f32; });
  step([&](Case& n) { n.sample_rows = 0; });
  step([&](Case& n) { n.scores = Scores::normal; });
  step([&](Case& n) { n.values = Values::normal; });
  step([&](Case& n) { n.seed = 1; });
  step([&](Case& n) { n.keep.varies = MaskSpec{}.varies; });
  step([&](Case& n) { n.bias.varies = MaskSpec{}.varies; });
  add_smaller_features(steps, c);
  return steps;
}

Case shrink(Case failing, const FirstFailing& first_failing,
            const std::function<bool()>& keep_going) {
  while (keep_going()) {
    std::vector<Case> steps = smaller(failing);
    const std::optional<std::size_t> found = first_failing(steps);
    if (!found) break;
    failing = std::move(steps[*found]);
  }
  return failing;
}

Case shrink(Case failing, const std::function<bool(const Case&)>& fails,
            const std::function<bool()>& keep_going) {
  const auto first = [&](const std::vector<Case>& steps) -> std::optional<std::size_t> {
    for (std::size_t k = 0; k < steps.size() && keep_going(); ++k)
      if (fails(steps[k])) return k;
    return std::nullopt;
  };
  return shrink(std::move(failing), FirstFailing(first), keep_going);
}

}  // namespace assay
