// OpenCL as a device.
#pragma once

#include <optional>

#include "kernels/device/device.h"
#include "kernels/device/opencl_api.h"

namespace assay::kernels {

// Any OpenCL 1.2 device, through the loader and the drivers that it knows. Without `wanted`, it is
// the first GPU, or else the first device.
class OpenclDevice : public Device {
 public:
  // `api` is used in the place of the loader's functions.
  explicit OpenclDevice(std::string wanted = {}, std::optional<OpenclApi> api = {})
      : wanted_(std::move(wanted)), given_(api) {}
  ~OpenclDevice() override;

  std::string_view name() const override { return "opencl"; }
  const NativeTable& codes() const override { return opencl_codes(); }
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
  struct Compiled;
  NativeCode done(const char* function, NativeCode code, std::string_view more = {});
  NativeCode text_of(cl_platform_id platform, cl_device_id device, std::string& text);
  NativeCode look_through(cl_platform_id platform, std::vector<std::string>& seen, bool& found_gpu);
  NativeCode choose();

  const std::string wanted_;
  const std::optional<OpenclApi> given_;
  OpenclApi api_;
  std::string detail_;
  cl_device_id device_ = nullptr;
  std::string device_text_;
  cl_context context_ = nullptr;
  cl_command_queue queue_ = nullptr;
};

}  // namespace assay::kernels
