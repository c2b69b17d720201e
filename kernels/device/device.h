// The interface between an accelerated kernel and a device. There are two backends: host (threads
// of this machine) and opencl; the tests have a third, made with GoogleMock. A CUDA backend would
// be one more class behind this interface, with cuda_codes() as its table, and a line in
// make_device().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/device/native_codes.h"

namespace assay::kernels {

enum class DeviceCall {
  open,
  close,
  query,
  allocate,
  free,
  upload,
  download,
  compile,
  release,
  launch,
  synchronize
};
inline constexpr int device_call_count = 11;
std::string_view name_of(DeviceCall call);

enum class BufferHandle : std::uint64_t { none = 0 };
enum class KernelHandle : std::uint64_t { none = 0 };

struct DeviceLimits {
  std::string name;                // the name of the device, with its driver
  std::size_t memory = 0;          // in bytes
  std::size_t largest_buffer = 0;  // in bytes
  std::size_t local_memory = 0;    // in bytes for each work-group
  std::size_t largest_group = 0;   // in work-items
  bool has_subnormals = false;     // whether fp32 results below 2^-126 are kept
};

// A kernel to compile. A device that compiles needs its source; a device that does not (host) needs
// its entry alone.
struct KernelSource {
  std::string_view name;  // of the file, for messages
  std::string_view text;
  std::string_view entry;
  std::vector<std::pair<std::string, std::string>> constants;  // macros
  std::string key() const;  // made of the entry and the constants
};

struct Grid {
  std::size_t global[3] = {1, 1, 1};  // work-items; whole groups in each dimension
  std::size_t group[3] = {1, 1, 1};
};

// Every call returns a native code of codes(); success is 0. A call that fails has no effect: it
// leaves nothing to free or to release. close, free and release are called once for each open,
// allocate and compile that succeeded, and count as done whatever they return. Calls are made one
// at a time. A call may throw; the text of a std::exception goes into the message.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string_view name() const = 0;
  virtual const NativeTable& codes() const = 0;
  // Returns more about the call that failed last (the native function, a build log, what was looked
  // for), or nothing.
  virtual std::string detail() const { return {}; }

  virtual NativeCode open() = 0;
  virtual NativeCode close() = 0;
  virtual NativeCode query(DeviceLimits& limits) = 0;
  virtual NativeCode allocate(std::size_t bytes, BufferHandle& buffer) = 0;
  virtual NativeCode free(BufferHandle buffer) = 0;
  virtual NativeCode upload(BufferHandle to, std::span<const std::byte> from) = 0;
  virtual NativeCode download(std::span<std::byte> to, BufferHandle from) = 0;
  virtual NativeCode compile(const KernelSource& source, KernelHandle& kernel) = 0;
  virtual NativeCode release(KernelHandle kernel) = 0;
  // Every argument is a buffer; BufferHandle::none means a null pointer.
  virtual NativeCode launch(KernelHandle kernel, const Grid& grid,
                            std::span<const BufferHandle> arguments) = 0;
  virtual NativeCode synchronize() = 0;
};

// Makes "host", "opencl", or "opencl:TEXT", which is the first device whose platform or device name
// contains TEXT, in any case of letters. Nothing is opened yet. Returns null for any other name.
std::shared_ptr<Device> make_device(const std::string& name);
std::vector<std::string> device_names();

}  // namespace assay::kernels
