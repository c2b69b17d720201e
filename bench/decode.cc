// Benchmarks of one row over long keys. Such a call reads K and V once, so its limit is how fast
// this machine reads as many bytes.
#include <fmt/format.h>

#include <memory>
#include <optional>

#include "bench/data.h"
#include "bench/machine.h"
#include "bench/modes.h"
#include "bench/table.h"
#include "kernels/cache/cache.h"
#include "kernels/simd/targets.h"

namespace assay::bench {
namespace {

constexpr Index query_heads = 8;

struct Source {
  const char* name;
  std::optional<kernels::CacheKind> cache;  // absent: contiguous tensors
  Dtype dtype;
};

constexpr Source sources[] = {
    {"tensor-f32", {}, Dtype::f32},
    {"tensor-bf16", {}, Dtype::bf16},
    {"cache-f32", kernels::CacheKind::contiguous, Dtype::f32},
    {"cache-bf16", kernels::CacheKind::contiguous, Dtype::bf16},
    {"cache-f8e4m3", kernels::CacheKind::contiguous, Dtype::f8e4m3},
    {"cache-f4e2m1", kernels::CacheKind::contiguous, Dtype::f4e2m1},
    {"paged-f32", kernels::CacheKind::paged, Dtype::f32},
    {"paged-bf16", kernels::CacheKind::paged, Dtype::bf16},
    {"paged-f8e4m3", kernels::CacheKind::paged, Dtype::f8e4m3},
    {"paged-f4e2m1", kernels::CacheKind::paged, Dtype::f4e2m1},
};

Run decode_tensors(const AttentionShape& shape, Dtype dtype, int threads) {
  return [threads, data = std::make_shared<const Data>(shape, dtype, false, false)] {
    expect_success("attention_forward",
                   kernels::attention_forward(data->problem, data->out(), threads));
  };
}

// `source` is in f32. Its K and V are appended to the cache, and its Q and O are used.
Run decode_cache(const Data& source, kernels::CacheKind kind, Dtype dtype, int threads) {
  const AttentionShape& s = source.problem.shape;
  kernels::CacheConfig config;
  config.kind = kind;
  config.kv_heads = s.kv_heads;
  config.dim = s.dim;
  config.value_dim = s.value_dim;
  config.capacity = s.keys;
  config.dtype = dtype;
  std::unique_ptr<kernels::Cache> made;
  expect_success("Cache::create", kernels::Cache::create(config, made));
  expect_success("append", made->append(0, source.k.view(), source.v.view()));
  Attention problem = source.problem;
  problem.k = problem.v = {};
  return
      [problem, &source, threads, cache = std::shared_ptr<const kernels::Cache>(std::move(made))] {
        expect_success("attention_cached",
                       kernels::attention_cached(problem, *cache, {}, source.out(), threads));
      };
}

}  // namespace

void decode_mode(Rounds& rounds, const Settings& settings) {
  fmt::print(rounds.tables(),
             "\nDecode: one row, B = 1, H = {}, on {}. cache: a contiguous cache; paged: a cache "
             "with pages of {} tokens.\n"
             "Medians of GB/s (1e9) of K and V, without scales, and of this rate as a fraction of "
             "the rate of plain reads\n"
             "of as many bytes on as many threads, measured around each repetition.\n",
             query_heads, kernels::Target().name(), kernels::CacheConfig{}.page_size);
  std::vector<std::string> names;
  for (const Source& source : sources) names.emplace_back(source.name);
  Table table(rounds, Table::Cell::rate, "threads  Hkv    D      L", names);
  for (const int threads : settings.threads)
    for (const Index kv_heads : {8, 2})
      for (const Index dim : settings.full ? std::vector<Index>{64, 128} : std::vector<Index>{128})
        for (const Index length : settings.full ? std::vector<Index>{4096, 16384, 65536}
                                                : std::vector<Index>{4096, 32768}) {
          const AttentionShape shape{1, query_heads, kv_heads, 1, length, dim, dim};
          const Data source(shape, Dtype::f32, false, false);
          const Tensor footprint = uniform(Dtype::f32, {2, kv_heads, length, dim}, 5);
          std::vector<Entry> entries;
          for (const Source& from : sources) {
            const auto bytes = usize(2 * kv_heads * length * dim * format(from.dtype).bits / 8);
            Entry e{fmt::format("decode/{}/H:{}/{}/D:{}/L:{}/threads:{}", from.name, query_heads,
                                kv_heads, dim, length, threads),
                    nullptr,
                    4.0 * static_cast<double>(query_heads * length * dim),
                    static_cast<double>(bytes),
                    Entry::Limit::bytes,
                    [reader = Reader(footprint.bytes(), bytes, threads)](double seconds) mutable {
                      return reader.gigabytes_per_second(seconds);
                    }};
            e.prepare = [&shape, &source, &from, threads] {
              return from.cache ? decode_cache(source, *from.cache, from.dtype, threads)
                                : decode_tensors(shape, from.dtype, threads);
            };
            entries.push_back(std::move(e));
          }
          table.line(fmt::format("{:>7} {:>4} {:>4} {:>6}", threads, kv_heads, dim, length),
                     entries);
        }
  table.summary();
}

}  // namespace assay::bench
