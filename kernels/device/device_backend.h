// Kernels on a device: attention behind the dispatcher, and the FP4 product.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

#include "kernels/dispatch/backend.h"
#include "kernels/device/session.h"
#include "problem/low_bit.h"

namespace assay::kernels {

// What is tried when the device refuses memory. Each try gives a warning that names the reason. The
// bits of the output stay the same.
struct DevicePolicy {
  bool split = true;       // if a buffer was refused: half of the batch, or of the heads, at a time
  bool halve_tile = true;  // if a launch was refused: half of the rows for each work-group
  std::function<void(std::string_view)> warn;  // none: standard error
};

struct DeviceCounters {
  Index splits = 0, halved_tiles = 0;
  bool operator==(const DeviceCounters&) const = default;
};

// Takes tensors in the host's memory, with any strides, and copies them to the device and back. It
// supports all of docs/semantics.md except dropout and softcaps outside [2^-100, 2^100]. The
// caller's outputs are written only after the last call of the device has succeeded. On the host,
// it needs memory for copies of inputs that are not contiguous, and for copies of the outputs.
class DeviceBackend : public AttentionBackend {
 public:
  explicit DeviceBackend(std::shared_ptr<DeviceSession> session, DevicePolicy policy = {});

  std::string_view name() const override { return shared_->session->name(); }
  std::string_view device() const override { return "host"; }  // tensors are in the host's memory
  bool takes_masks() const override { return true; }
  bool supports_dtype(Dtype inputs, Dtype output) const override;
  bool supports_heads(Index query_heads, Index kv_heads) const override {
    return query_heads % kv_heads == 0;
  }
  bool supports_layout(const Attention&, const AttentionOutput&) const override { return true; }
  std::string_view unsupported_feature(const Attention& problem) const override;
  Status choose_tiles(KernelKey& key) const override;
  Status compile(const KernelKey& key,
                 std::shared_ptr<const CompiledAttention>& kernel) const override;
  Status reopen() const override;

  DeviceSession& session() const { return *shared_->session; }
  DeviceCounters counters() const { return {shared_->splits, shared_->halved_tiles}; }

 private:
  friend class DeviceKernel;
  // Lives as long as any kernel that this backend has compiled.
  struct Shared {
    std::shared_ptr<DeviceSession> session;
    DevicePolicy policy;
    std::atomic<Index> splits{0}, halved_tiles{0}, tile_rows;
    void warn(const std::string& text) const;
  };
  std::shared_ptr<Shared> shared_;
};

// Computes C = A W on the device for the dense formats of four-bit floats (mxfp4, nvfp4, fp4). A
// [1, 1, M, K] and C [1, 1, M, N] are f32, f16 or bf16, with any strides. If the device keeps
// subnormal numbers and the host has FMA, the bits are those of the host's product() without AMX.
// The function refuses what product() refuses; other formats are unsupported. C is written after
// the device's last call.
Status device_product(DeviceSession& session, const TensorView& a, const LowBitView& w,
                      const TensorView& c, const Execution& how = {});
bool device_product_supports(LowBit format);

}  // namespace assay::kernels
