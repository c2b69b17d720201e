// The attention kernel of a device, as the dispatcher sees it: what it supports, and how it is
// compiled for given constants.
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "kernels/simd/execution.h"
#include "kernels/status.h"
#include "problem/attention.h"

namespace assay::kernels {

// Whether attention kernels read and write tensors of this dtype.
inline bool is_kernel_dtype(Dtype d) {
  return d == Dtype::f32 || d == Dtype::f16 || d == Dtype::bf16;
}

// Every constant that a backend may compile into a kernel. Problems with equal keys share a kernel.
struct KernelKey {
  Dtype dtype, out_dtype, bias_dtype;
  Index dim, value_dim, group;
  float scale, softcap, dropout;
  Index window_left, window_right;
  bool causal, finite_min_masks;
  // Which of these tensors and lists are there, whatever they hold.
  bool offset, keep, bias, key_lengths, key_starts, alibi, documents, sink, lse;
  // These are set by the backend.
  std::string target;
  Index tile_rows, tile_keys, split_keys;

  // The comparison is total, because no float of a validated problem is NaN.
  auto operator<=>(const KernelKey&) const = default;
};

class CompiledAttention {
 public:
  virtual ~CompiledAttention() = default;
  // Runs the kernel on a problem that has the key for which it was compiled. Thread-safe.
  virtual Status run(const Attention& problem, const AttentionOutput& out,
                     const Execution& how) const = 0;
};

class AttentionBackend {
 public:
  virtual ~AttentionBackend() = default;
  // The name of the device whose memory the backend reads.
  virtual std::string_view device() const = 0;
  // The name of the device that computes, for messages. It differs from device() if data are copied
  // to another device.
  virtual std::string_view name() const { return device(); }
  // Opens the device again after it was lost.
  virtual Status reopen() const { return {}; }
  // If false, the dispatcher gives this backend only problems without a mask, or with one that is
  // all true.
  virtual bool takes_masks() const { return false; }
  virtual bool supports_dtype(Dtype inputs, Dtype output) const = 0;
  virtual bool supports_heads(Index query_heads, Index kv_heads) const = 0;
  // Whether the backend supports the strides, and nested (ragged) input: key lengths, key starts,
  // documents.
  virtual bool supports_layout(const Attention& problem, const AttentionOutput& out) const = 0;
  // The name of any other feature of a problem that the backend does not support ("softcap"); empty
  // if there is none.
  virtual std::string_view unsupported_feature(const Attention& problem) const = 0;
  // Sets target, tile_rows, tile_keys and split_keys.
  virtual Status choose_tiles(KernelKey& key) const = 0;
  virtual Status compile(const KernelKey& key,
                         std::shared_ptr<const CompiledAttention>& kernel) const = 0;
};

// Returns the tiled kernel of this machine, which supports all of docs/semantics.md.
std::shared_ptr<const AttentionBackend> host_backend();

Status key_of(const Attention& problem, const AttentionOutput& out, const AttentionBackend& backend,
              KernelKey& key);

// The compiled kernels of one backend. Each is compiled once. A compilation that fails leaves
// nothing behind. Thread-safe.
class KernelCache {
 public:
  Status get(const KernelKey& key, const AttentionBackend& backend,
             std::shared_ptr<const CompiledAttention>& kernel);
  void clear();

  struct Counters {
    Index hits = 0, misses = 0;
    bool operator==(const Counters&) const = default;
  };
  Counters counters() const;
  void reset_counters();

 private:
  mutable std::mutex mutex_;
  std::map<KernelKey, std::shared_ptr<const CompiledAttention>> kernels_;
  Counters counters_;
};

}  // namespace assay::kernels
