// The host as a device.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "kernels/device/device.h"

namespace assay::kernels {

// This machine as a device: its memory calls are copies, its kernels are the production kernels,
// and its codes are those of errno. It is for programs that want to call every device in the same
// way, and it is the reference for what a device does. A program that needs only the host calls the
// kernels directly.
class HostDevice : public Device {
 public:
  std::string_view name() const override { return "host"; }
  const NativeTable& codes() const override { return posix_codes(); }
  std::string detail() const override { return detail_; }

  NativeCode open() override;
  NativeCode close() override;
  NativeCode query(DeviceLimits& limits) override;
  NativeCode allocate(std::size_t bytes, BufferHandle& buffer) override;
  NativeCode free(BufferHandle buffer) override;
  NativeCode upload(BufferHandle to, std::span<const std::byte> from) override;
  NativeCode download(std::span<std::byte> to, BufferHandle from) override;
  NativeCode compile(const KernelSource& source, KernelHandle& kernel) override;
  NativeCode release(KernelHandle kernel) override;
  NativeCode launch(KernelHandle kernel, const Grid& grid,
                    std::span<const BufferHandle> arguments) override;
  NativeCode synchronize() override;

 private:
  using Memory = std::vector<std::byte>;
  NativeCode refuse(NativeCode code, std::string why);
  Memory* find(BufferHandle buffer);

  bool open_ = false;
  std::uint64_t next_ = 1;
  std::map<BufferHandle, Memory> buffers_;
  std::map<KernelHandle, std::size_t> kernels_;  // index of the entry
  std::string detail_;
};

}  // namespace assay::kernels
