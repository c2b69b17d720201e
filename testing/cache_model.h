// A model of a cache: a plain list of tokens, which are encoded and decoded one by one with
// problem/dtype.h.
#pragma once

#include <cstdint>
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "kernels/cache/cache.h"
#include "kernels/status.h"
#include "problem/tensor.h"

namespace assay {

using kernels::CacheConfig;
using kernels::CacheKind;
using kernels::StatusCode;

inline bool is_scaled(Dtype d) {
  return d == Dtype::f8e4m3 || d == Dtype::f8e5m2 || d == Dtype::f4e2m1;
}

// The numbers that the cache must hold for a vector whose elements share no scale with any other
// vector.
inline std::vector<float> after_rounding(const std::vector<float>& x, Dtype dtype,
                                         Index group_size) {
  std::vector<float> y;
  if (!is_scaled(dtype)) {
    for (float e : x) y.push_back(static_cast<float>(round_to(dtype, e)));
    return y;
  }
  const std::size_t group =
      group_size == 0 ? std::max<std::size_t>(x.size(), 1) : usize(group_size);
  for (std::size_t begin = 0; begin < x.size(); begin += group) {
    const std::size_t end = std::min(begin + group, x.size());
    double absmax = 0;
    for (std::size_t i = begin; i < end; ++i)
      if (std::isfinite(x[i])) absmax = std::max(absmax, std::fabs(static_cast<double>(x[i])));
    int e = -127;
    while (absmax > std::ldexp(format(dtype).max_finite, e)) ++e;
    for (std::size_t i = begin; i < end; ++i)
      y.push_back(static_cast<float>(
          std::ldexp(round_to(dtype, std::ldexp(static_cast<double>(x[i]), -e)), e)));
  }
  return y;
}

// The tokens to append, as [head][token][column], in one of the dtypes and layouts that append
// takes.
struct Tokens {
  Tokens(Index heads, Index count, Index columns, Dtype dtype, int layout, std::mt19937_64& random,
         float special = 0)
      : tensor(dtype, {1, heads, count, columns}, layout_of(heads, count, columns, layout)) {
    std::normal_distribution<double> normal;
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < count; ++i) {
        const double magnitude = std::ldexp(1.0, static_cast<int>(random() % 12) - 8);
        for (Index c = 0; c < columns; ++c)
          store(tensor.view(), tensor.view().at(0, h, i, c), normal(random) * magnitude);
      }
    if (special != 0 && element_count(tensor.view().shape) > 0) {
      const auto below = [&](Index n) {
        return static_cast<Index>(random() % static_cast<std::uint64_t>(n));
      };
      store(tensor.view(), tensor.view().at(0, below(heads), below(count), below(columns)),
            static_cast<double>(special));
    }
  }
  std::vector<float> row(Index h, Index i) const {
    std::vector<float> x;
    for (Index c = 0; c < tensor.view().shape[3]; ++c)
      x.push_back(static_cast<float>(load(tensor.view(), tensor.view().at(0, h, i, c))));
    return x;
  }
  static Layout layout_of(Index heads, Index count, Index columns, int layout) {
    const Index all = heads * count * columns;
    if (layout == 0) return {{all, count * columns, columns, 1}, 0, all};
    if (layout == 1) return {{all, columns, heads * columns, 1}, 0, all};
    return {{2 * all, 2 * count * columns, -2 * columns, 2},
            2 * columns * std::max<Index>(count - 1, 0),
            2 * all};
  }
  Tensor tensor;
};

// This class has the operations of a cache, with the same failures, on lists. A page is an object
// that sequences share.
class CacheModel {
 public:
  explicit CacheModel(const CacheConfig& c) : config(c), sequences(usize(c.sequences)) {
    page_size = c.kind == CacheKind::contiguous ? std::max<Index>(c.capacity, 1) : c.page_size;
    const Index needed = (c.capacity + page_size - 1) / page_size * c.sequences;
    pool = c.kind != CacheKind::contiguous && c.pages > 0 ? c.pages : needed;
  }

  struct Token {
    std::vector<std::vector<float>> k, v;  // per head, as the cache holds them
  };
  struct Sequence {
    std::vector<Token> tokens;
    std::vector<std::shared_ptr<int>> pages;
    Index evicted = 0;
    Index length() const { return static_cast<Index>(tokens.size()); }
  };

  Index pages_used() const {
    std::set<const int*> used;
    for (const Sequence& s : sequences)
      for (const auto& page : s.pages)
        if (page) used.insert(page.get());
    return static_cast<Index>(used.size());
  }

  StatusCode append(Index sequence, const Tokens& k, const Tokens& v) {
    if (!exists(sequence)) return StatusCode::invalid_cache_state;
    Sequence& s = sequences[usize(sequence)];
    const Index count = k.tensor.view().shape[2], heads = k.tensor.view().shape[1];
    if (s.length() + count > config.capacity) return StatusCode::invalid_cache_state;
    std::vector<Token> tokens;
    for (Index i = 0; i < count; ++i) {
      Token t;
      for (Index h = 0; h < heads; ++h) {
        for (const Tokens* part : {&k, &v})
          for (float x : part->row(h, i))
            if (config.dtype == Dtype::f4e2m1 && !std::isfinite(x))
              return StatusCode::invalid_arguments;
        t.k.push_back(after_rounding(k.row(h, i), config.dtype, config.group_size));
        t.v.push_back(after_rounding(v.row(h, i), config.dtype, config.group_size));
      }
      tokens.push_back(t);
    }
    if (count == 0) return StatusCode::success;
    auto pages = s.pages;
    const bool open = s.length() % page_size != 0;
    Index fresh = 0;
    // The copy of a shared page counts as one fresh page.
    if (open && s.pages.back().use_count() > 2) pages.back() = std::make_shared<int>(), ++fresh;
    for (; static_cast<Index>(pages.size()) * page_size < s.length() + count; ++fresh)
      pages.push_back(std::make_shared<int>());
    if (pages_used() + fresh > pool) return StatusCode::invalid_cache_state;
    s.pages = pages;
    s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
    return StatusCode::success;
  }
  StatusCode evict(Index sequence, Index position) {
    if (!exists(sequence)) return StatusCode::invalid_cache_state;
    Sequence& s = sequences[usize(sequence)];
    if (position < 0 || position > s.length()) return StatusCode::invalid_arguments;
    for (Index page = 0; (page + 1) * page_size <= position; ++page) s.pages[usize(page)].reset();
    s.evicted = std::max(s.evicted, position);
    return StatusCode::success;
  }
  StatusCode fork(Index from, Index to) {
    if (!exists(from) || !exists(to) || sequences[usize(to)].length() > 0)
      return StatusCode::invalid_cache_state;
    const Sequence copy = sequences[usize(from)];
    sequences[usize(to)] = copy;
    return StatusCode::success;
  }
  StatusCode reset(Index sequence) {
    if (!exists(sequence)) return StatusCode::invalid_cache_state;
    sequences[usize(sequence)] = {};
    return StatusCode::success;
  }

  bool exists(Index sequence) const { return sequence >= 0 && sequence < config.sequences; }
  Index longest() const {
    Index n = 0;
    for (const Sequence& s : sequences) n = std::max(n, s.length());
    return n;
  }
  // Returns everything that is held as f32 tensors [B, heads, longest, columns], with NaN where
  // nothing is held. For a latent cache there is one head, the keys are [c ; rotary part], and the
  // values are c.
  std::pair<Tensor, Tensor> held() const {
    const bool latent = config.kind == CacheKind::latent;
    const Index heads = latent ? 1 : config.kv_heads, keys = longest();
    const auto make = [&](Index columns) {
      const Extents shape{config.sequences, heads, keys, columns};
      return Tensor(
          Dtype::f32, shape,
          {{heads * keys * columns, keys * columns, columns, 1}, 0, element_count(shape)});
    };
    Tensor k = make(latent ? config.rank + config.rotary : config.dim),
           v = make(latent ? config.rank : config.value_dim);
    for (Tensor* t : {&k, &v})
      for (Index b = 0; b < config.sequences; ++b)
        for (Index h = 0; h < heads; ++h)
          for (Index j = 0; j < keys; ++j) {
            const Sequence& s = sequences[usize(b)];
            const Index columns = t->view().shape[3];
            std::vector<float> row(usize(columns), NAN);
            if (j >= s.evicted && j < s.length()) {
              const Token& token = s.tokens[usize(j)];
              const auto head = usize(h);
              row = t == &k || latent ? token.k[head] : token.v[head];
              if (t == &k && latent)
                row.insert(row.end(), token.v[head].begin(), token.v[head].end());
            }
            for (Index c = 0; c < columns; ++c)
              store(t->view(), t->view().at(b, h, j, c), static_cast<double>(row[usize(c)]));
          }
    return {std::move(k), std::move(v)};
  }

  const CacheConfig config;
  Index page_size, pool;
  std::vector<Sequence> sequences;
};

}  // namespace assay
