// Key/value caches: sequences of appends and reads. Reading a cache gives what recomputing from the
// appended tokens would give, after the rounding to the cache's dtype and after no other change.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/simd/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

enum class CacheKind : std::uint8_t { contiguous, paged, latent };

struct CacheConfig {
  CacheKind kind = CacheKind::contiguous;
  Index sequences = 1;  // the batch
  Index kv_heads = 1;
  Index dim = 64, value_dim = 64;  // of K and V, as attention sees them
  // positions of a sequence, including evicted ones: eviction frees pages, not positions
  Index capacity = 0;
  Index page_size = 16;      // paged and latent: tokens of a page, any positive number
  Index pages = 0;           // of the pool that all sequences share; 0: enough for all of them
  Dtype dtype = Dtype::f32;  // f32, f16, bf16, f8e4m3, f8e5m2 or f4e2m1
  // f8 and f4: how many elements share a scale, along K or V of one head (or along the latent
  // vector) of one token; 0: all of them. The scale is E8M0: the least 2^e, e >= -127, with absmax
  // <= 2^e * (largest finite number of the dtype), where absmax is taken over the finite elements.
  // Codes saturate at the largest code that f32 holds under the scale. Groups never span tokens.
  Index group_size = 0;
  // latent: a token is a vector of `rank` elements and a rotary part of `rotary` elements, which
  // all heads share. For head g, K = [ up_k[g] c ; rotary part ] with dim = (rows of up_k) +
  // rotary, and V = up_v[g] c.
  Index rank = 512, rotary = 64;
};

// The up-projections of a latent cache: up_k [1, Hkv, dim - rotary, rank] and up_v
// [1, Hkv, value_dim, rank], in f32, f16 or bf16.
struct UpProjection {
  TensorView up_k, up_v;
};

// Every operation either succeeds or changes nothing. The status is invalid_cache_state if an
// append goes beyond the capacity or the pool, if token strides make a tensor overlap itself, if a
// sequence does not exist, or if the target of a fork is not empty. It is invalid_arguments for
// wrong shapes, dtypes and positions, for null, and for NaN or infinity into f4e2m1, which has
// neither. A cache must not be read while it is written.
class Cache {
 public:
  static Status create(const CacheConfig& config, std::unique_ptr<Cache>& cache);
  virtual ~Cache() = default;

  virtual const CacheConfig& config() const = 0;
  // Return the number of tokens appended so far (including evicted ones), and how many of them were
  // evicted. The sequence must exist.
  virtual Index length(Index sequence) const = 0;
  virtual Index evicted(Index sequence) const = 0;

  // Appends tokens: k [1, Hkv, n, D] and v [1, Hkv, n, Dv]; for a latent cache k [1, 1, n, rank]
  // and v [1, 1, n, rotary]. They are f32, f16 or bf16. Elements are rounded to nearest, ties to
  // even; f8 and f4 saturate, infinities included, and NaN stays NaN.
  virtual Status append(Index sequence, const TensorView& k, const TensorView& v) = 0;
  // Drops all tokens before `position`, which is at most the length; the others keep their
  // positions. Pages that are dropped as a whole go back to the pool.
  virtual Status evict(Index sequence, Index position) = 0;
  // Makes `to`, which must be empty, a copy of `from`. The two share pages until one of them
  // writes.
  virtual Status fork(Index from, Index to) = 0;
  virtual Status reset(Index sequence) = 0;
};

// Computes attention over the contents of the cache. In `problem`, K and V are absent, and
// shape.batch is the number of sequences. shape.keys (the length of the longest sequence),
// key_lengths and key_starts are taken from the cache. An empty `offset` means length(b) - rows:
// the rows are the last tokens appended.
// - Contiguous and paged: O and LSE are bitwise those of attention_forward over the same keys and
//   values in f32.
// - Latent: up_k is absorbed into the queries. With q' = up_k[g]^T q (FMA chains over dim - rotary,
//   in fp32), O' and LSE are bitwise those of attention_forward over queries [q' ; rotary part],
//   keys [c ; rotary part] and values c, and O = up_v[g] O' (summed over the rank in any order).
//   The error of a score from this is at most gamma_N |q|^T |up_k| |c|, with N = dim + rank
//   roundings. The up-projections are assumed to be finite. The kernel needs a workspace of 2 rank
//   + rotary floats for each row and query head.
Status attention_cached(const Attention& problem, const Cache& cache,
                        const UpProjection& projection, const AttentionOutput& out,
                        const Execution& how = {});

}  // namespace assay::kernels
