#include "problem/cached_tokens.h"

#include <algorithm>
#include <cmath>

#include "problem/generate.h"
#include "problem/parallel.h"
#include "problem/weight_sets.h"

namespace assay {
namespace {

Tensor contiguous(const Extents& shape, Surroundings around) {
  return Tensor(Dtype::f64, shape, make_layout(LayoutKind::bhsd, shape, 1), around);
}

bool has_scales(const Case& c) { return format(c.cache_dtype()).bits <= 8; }

Index entry(const std::vector<Index>& list, Index b, Index otherwise) {
  return list.empty() ? otherwise : list[list.size() == 1 ? 0 : usize(b)];
}

// Sets every element of `t` to the largest of those with which it shares a scale. Only tokens that
// are stored count for the scales that tokens share.
void share(const Case& c, const TensorView& t) {
  const auto [batch, heads, keys, groups] = t.shape;
  const auto take = [&](Extents first, Extents last) {
    double largest = 0;
    const auto all = [&](const auto& visit) {
      for (Index b = first[0]; b < last[0]; ++b)
        for (Index h = first[1]; h < last[1]; ++h)
          for (Index j = first[2]; j < last[2]; ++j) visit(b, j, t.at(b, h, j, 0));
    };
    all([&](Index b, Index j, Index at) {
      const bool stored = j >= entry(c.starts, b, 0) && j < entry(c.lengths, b, keys);
      if (stored || !is_given(c.cache.scale)) largest = std::max(largest, load(t, at));
    });
    all([&](Index, Index, Index at) { store(t, at, largest); });
  };
  const Index page = c.cache.kind == CacheSpec::Kind::paged ? c.cache.page : keys;
  switch (c.cache.scale) {
    case CacheScale::f32_token:
      for (Index b = 0; b < batch; ++b)
        for (Index j = 0; j < keys; ++j) take({b, 0, j}, {b + 1, heads, j + 1});
      break;
    case CacheScale::f32_page:
      for (Index b = 0; b < batch; ++b)
        for (Index h = 0; h < heads; ++h)
          for (Index j = 0; j < keys; j += page)
            take({b, h, j}, {b + 1, h + 1, std::min(keys, j + page)});
      break;
    case CacheScale::f32_tensor: take({}, {batch, heads, keys}); break;
    default: break;
  }
}

// The scale of numbers up to `largest`. Given scales are made too small for the largest numbers, so
// that codes saturate. Scales that users have found with other data can be too small as well.
double scale_for(const Case& c, double largest) {
  const Dtype dtype = c.cache_dtype();
  if (c.cache.scale == CacheScale::e8m0) return std::ldexp(1.0, covering_exponent(dtype, largest));
  const float scale = static_cast<float>(largest) / static_cast<float>(format(dtype).max_finite);
  return std::max(0x1p-126F, is_given(c.cache.scale) ? 0.75F * scale : scale);
}

}  // namespace

Index columns_of_a_scale(const Case& c, Index columns) {
  return has_scales(c) && c.cache.group > 0 ? c.cache.group : std::max<Index>(columns, 1);
}

Tensor scales_of_tokens(const Case& c, const TensorView& tokens, Surroundings around) {
  if (!has_scales(c)) return {};
  const auto [batch, heads, keys, columns] = tokens.shape;
  const Index group = columns_of_a_scale(c, columns);
  const Extents shape{batch, heads, keys, (columns + group - 1) / group};
  Tensor scales = contiguous(shape, around);
  const TensorView& to = scales.view();
  parallel_for(batch * heads * keys, 0, [&](Index row) {
    const Index j = row % keys, h = row / keys % heads, b = row / keys / heads;
    for (Index t = 0; t < shape[3]; ++t) {
      double largest = 0;
      for (Index d = t * group; d < std::min(columns, (t + 1) * group); ++d)
        if (const double x = std::fabs(load(tokens, tokens.at(b, h, j, d))); std::isfinite(x))
          largest = std::max(largest, x);
      store(to, to.at(b, h, j, t), largest);
    }
  });
  share(c, to);
  for (Index e = 0; e < element_count(shape); ++e) store(to, e, scale_for(c, load(to, e)));
  return scales;
}

double scaled_for_cache(const Case& c, double x, double scale) {
  if (!has_scales(c)) return x;
  const Dtype dtype = c.cache_dtype();
  const double quotient =
      c.cache.scale == CacheScale::e8m0
          ? x / scale
          : static_cast<double>(static_cast<float>(x) / static_cast<float>(scale));
  constexpr double most = format(Dtype::f32).max_finite;
  if (format(dtype).max_finite * scale <= most) return quotient;
  double code = round_to(dtype, quotient);
  while (std::fabs(code) * scale > most) code = decode(dtype, encode(dtype, code) - 1);
  return code;
}

Tensor values_of_tokens(const Case& c, const TensorView& tokens, const TensorView& scales,
                        Surroundings around) {
  Tensor out = contiguous(tokens.shape, around);
  const TensorView& to = out.view();
  const Index group = columns_of_a_scale(c, tokens.shape[3]);
  parallel_for(tokens.shape[0] * tokens.shape[1] * tokens.shape[2], 0, [&](Index row) {
    const Index i = row % tokens.shape[2], h = row / tokens.shape[2] % tokens.shape[1],
                b = row / tokens.shape[2] / tokens.shape[1];
    for (Index d = 0; d < tokens.shape[3]; ++d) {
      const double x = load(tokens, tokens.at(b, h, i, d)),
                   scale = scales ? load(scales, scales.at(b, h, i, d / group)) : 1;
      store(to, to.at(b, h, i, d),
            scale * round_to(c.cache_dtype(), scaled_for_cache(c, x, scale)));
    }
  });
  return out;
}

Tensor magnitudes_of(const TensorView& t, Surroundings around) {
  Tensor to = contiguous(t.shape, around);
  for_each_index(t.shape, [&](Index b, Index h, Index j, Index d) {
    if (const double x = std::fabs(load(t, t.at(b, h, j, d))); std::isfinite(x))
      store(to.view(), to.view().at(b, h, j, d), x);
  });
  return to;
}

}  // namespace assay
