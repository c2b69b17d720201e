#include "kernels/dispatch/backend.h"

#include "kernels/attention/attention.h"

namespace assay::kernels {
namespace {

class HostKernel : public CompiledAttention {
 public:
  Status run(const Attention& problem, const AttentionOutput& out,
             const Execution& how) const override {
    return attention_forward(problem, out, how);
  }
};

class HostBackend : public AttentionBackend {
 public:
  std::string_view device() const override { return "host"; }
  bool supports_dtype(Dtype inputs, Dtype output) const override {
    return is_kernel_dtype(inputs) && is_kernel_dtype(output);
  }
  bool supports_heads(Index query_heads, Index kv_heads) const override {
    return query_heads % kv_heads == 0;
  }
  bool supports_layout(const Attention&, const AttentionOutput&) const override { return true; }
  std::string_view unsupported_feature(const Attention&) const override { return {}; }
  Status choose_tiles(KernelKey& key) const override {
    const ForwardTiling tiling = forward_tiling(key.dim, key.value_dim);
    key.target = "host";  // whatever the SIMD target: the call says it
    key.tile_rows = tiling.rows;
    key.tile_keys = tiling.keys;
    key.split_keys = tiling.split_keys;
    return {};
  }
  // Highway has compiled the kernel for every target already, so only the object is made here.
  Status compile(const KernelKey&,
                 std::shared_ptr<const CompiledAttention>& kernel) const override {
    kernel = std::make_shared<HostKernel>();
    return {};
  }
};

}  // namespace

std::shared_ptr<const AttentionBackend> host_backend() {
  static const auto backend = std::make_shared<const HostBackend>();
  return backend;
}

Status key_of(const Attention& p, const AttentionOutput& out, const AttentionBackend& backend,
              KernelKey& key) {
  key = {};
  key.dtype = p.q.dtype;
  key.out_dtype = out.o.dtype;
  key.bias_dtype = p.bias ? p.bias.dtype : Dtype::f32;
  key.dim = p.shape.dim;
  key.value_dim = p.shape.value_dim;
  key.group = p.shape.group();
  key.scale = p.scale;
  key.softcap = p.softcap;
  key.dropout = p.dropout;
  key.window_left = p.window_left;
  key.window_right = p.window_right;
  key.causal = p.causal;
  key.finite_min_masks = p.finite_min_masks;
  key.offset = !p.offset.empty();
  key.keep = static_cast<bool>(p.keep);
  key.bias = static_cast<bool>(p.bias);
  key.key_lengths = !p.key_lengths.empty();
  key.key_starts = !p.key_starts.empty();
  key.alibi = !p.alibi_slopes.empty();
  key.documents = !p.query_segment.empty();
  key.sink = !p.sink.empty();
  key.lse = static_cast<bool>(out.lse);
  return backend.choose_tiles(key);
}

Status KernelCache::get(const KernelKey& key, const AttentionBackend& backend,
                        std::shared_ptr<const CompiledAttention>& kernel) {
  // The lock is held while compiling too: another caller that asks for the same kernel waits for
  // it.
  const std::lock_guard lock(mutex_);
  if (const auto found = kernels_.find(key); found != kernels_.end()) {
    ++counters_.hits;
    kernel = found->second;
    return {};
  }
  ++counters_.misses;
  if (Status status = backend.compile(key, kernel); !status.ok()) return status;
  kernels_.emplace(key, kernel);
  return {};
}

void KernelCache::clear() {
  const std::lock_guard lock(mutex_);
  kernels_.clear();
}

KernelCache::Counters KernelCache::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

void KernelCache::reset_counters() {
  const std::lock_guard lock(mutex_);
  counters_ = {};
}

}  // namespace assay::kernels
