#include "harness/candidates/paged.h"

#include <algorithm>

#include "harness/judging/outputs.h"

namespace assay {

Attention paged_problem(const Case& c, const Attention& whole, Chunk rows) {
  const AttentionShape& s = c.shape;
  const Index keys = s.keys - s.rows + rows.first + rows.count;
  Attention p = rows_of(whole, rows, keys);
  const auto every = usize(s.batch);
  p.key_lengths.assign(every, keys);
  p.offset.assign(every, keys - rows.count);
  if (!c.starts.empty())
    for (std::size_t b = 0; b < every; ++b)
      p.key_starts.push_back(c.starts[c.starts.size() == 1 ? 0 : b]);
  p.k = {whole.q.data, whole.q.dtype, {s.batch, s.kv_heads, keys, s.dim}, {}, 0};
  p.v = {whole.q.data, whole.q.dtype, {s.batch, s.kv_heads, keys, s.value_dim}, {}, 0};
  return p;
}

PagedTokens paged_tokens(const Case& c, const Inputs& in, const Attention& p) {
  const AttentionShape& s = c.shape;
  const bool paged = c.cache.kind == CacheSpec::Kind::paged;
  PagedTokens made;
  made.size = paged ? c.cache.page : std::max<Index>(s.keys, 1);
  made.each = (s.keys + made.size - 1) / made.size;
  const Index all = made.each * s.batch;
  made.table.assign(usize(all), -1);
  const auto paged_tensor = [&](const TensorView& tokens, Index columns) {
    const Extents shape{all, s.kv_heads, made.size, columns};
    Tensor pages(c.dtype, shape,
                 {{s.kv_heads * made.size * columns, made.size * columns, columns, 1},
                  0,
                  element_count(shape)});
    poison(pages, Poison::nan);
    for (Index b = 0; b < s.batch; ++b)
      for (Index j = p.key_starts.empty() ? 0 : p.key_starts[usize(b)]; j < p.key_lengths[usize(b)];
           ++j) {
        const Index page = all - 1 - (j / made.size * s.batch + b);
        made.table[usize(b * made.each + j / made.size)] = static_cast<std::int32_t>(page);
        for (Index g = 0; g < s.kv_heads; ++g)
          for (Index d = 0; d < columns; ++d)
            store(pages.view(), pages.view().at(page, g, j % made.size, d),
                  load(tokens, tokens.at(b, g, j, d)));
      }
    return pages;
  };
  made.k = paged_tensor(in.token_k.view(), s.dim);
  made.v = paged_tensor(in.token_v.view(), s.value_dim);
  return made;
}

}  // namespace assay
