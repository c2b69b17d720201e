// Kernels on a device: attention behind the dispatcher, and the FP4 product.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "kernels/backend.h"
#include "kernels/device/session.h"
#include "problem/low_bit.h"

namespace assay::kernels {

// What is tried when the device refuses memory, each with a warning that names the reason. The output's bits stay the same.
struct DevicePolicy {
  bool split = true;       // a buffer was refused: half of the batch, or of the heads, at a time
  bool halve_tile = true;  // a launch was refused: half of the rows a work-group
  std::function<void(std::string_view)> warn;  // none: standard error
};

struct DeviceCounters {
  Index splits = 0, halved_tiles = 0;
  bool operator==(const DeviceCounters&) const = default;
};

// Takes tensors of the host's memory, with any strides, and copies them to the device and back. All of docs/semantics.md but dropout and softcaps outside [2^-100, 2^100]. Nothing
// of the caller's is written before the last call of the device has succeeded; scratch of the host: copies of inputs that are not contiguous, and
// of the outputs.
class DeviceBackend : public AttentionBackend {
 public:
  explicit DeviceBackend(std::shared_ptr<DeviceSession> session, DevicePolicy policy = {});

  std::string_view name() const override { return shared_->session->name(); }
  std::string_view device() const override { return "host"; }  // whose memory it reads
  bool takes_masks() const override { return true; }
  bool supports_dtype(Dtype inputs, Dtype output) const override;
  bool supports_heads(Index query_heads, Index kv_heads) const override { return query_heads % kv_heads == 0; }
  bool supports_layout(const Attention&, const AttentionOutput&) const override { return true; }
  std::string_view unsupported_feature(const Attention& problem) const override;
  Status choose_tiles(KernelKey& key) const override;
  Status compile(const KernelKey& key, std::shared_ptr<const CompiledAttention>& kernel) const override;
  Status reopen() const override;

  DeviceSession& session() const { return *shared_->session; }
  DeviceCounters counters() const { return {shared_->splits, shared_->halved_tiles}; }

 private:
  friend class DeviceKernel;
  // Lives as long as any kernel of it.
  struct Shared {
    std::shared_ptr<DeviceSession> session;
    DevicePolicy policy;
    std::atomic<Index> splits{0}, halved_tiles{0}, tile_rows;
    void warn(const std::string& text) const;
  };
  std::shared_ptr<Shared> shared_;
};

// C = A W for the dense formats of four-bit floats (mxfp4, nvfp4, fp4); A [1, 1, M, K] and C [1, 1, M, N] in f32, f16 or bf16, any strides. The
// bits are those of the host's product() where that has FMA, on devices that keep subnormal numbers. Refuses what that refuses; unsupported: other formats. C is written
// after the device's last call.
Status device_product(DeviceSession& session, const TensorView& a, const LowBitView& w, const TensorView& c, const Execution& how = {});
bool device_product_supports(LowBit format);

}  // namespace assay::kernels
