// A device in use: it is opened when it is first needed, each of its kernels is compiled once, and
// its buffers belong to one job at a time.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/device/device.h"

namespace assay::kernels {

struct JobInput {
  std::string_view name;
  std::span<const std::byte> bytes;  // empty: the kernel gets a null pointer
};
struct JobOutput {
  std::string_view name;
  // memory of the host that is not the caller's; empty: the kernel gets a null pointer
  std::span<std::byte> staging;
};

// One launch. Its arguments are the inputs and then the outputs, in order.
struct Job {
  KernelSource source;
  std::vector<JobInput> inputs;
  std::vector<JobOutput> outputs;
  Grid grid;
};

// Thread-safe: jobs take turns. Every failure becomes a status whose detail names the call, its
// purpose, and the native code with its name. The first failure gives the status; later failures of
// the clean-up are added to its detail. Everything that a job allocated is freed in reverse order
// before run() returns. After a sticky failure, every call except reopen() and close() fails at
// once, without a call of the device.
class DeviceSession {
 public:
  explicit DeviceSession(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~DeviceSession() { close(); }
  DeviceSession(const DeviceSession&) = delete;
  DeviceSession& operator=(const DeviceSession&) = delete;

  std::string_view name() const { return device_->name(); }
  Status limits(DeviceLimits& limits);
  Status compile(const KernelSource& source);
  Status run(const Job& job);

  // Releases all kernels, the last first, and closes the device. Every call is made, and the first
  // failure is returned.
  Status close();
  // Closes the device, whatever that returns, forgets a sticky failure, and opens the device.
  Status reopen();
  bool lost() const;

 private:
  struct Compiled {
    std::string key;
    KernelHandle handle;
  };
  Status ready();
  Status find_kernel(const KernelSource& source, KernelHandle& kernel);
  Status run_locked(const Job& job);
  Status close_locked();
  template <class Body>
  Status locked(const Body& body);
  template <class Body>
  Status call(DeviceCall what, std::string_view object, const Body& body) noexcept;

  const std::shared_ptr<Device> device_;
  mutable std::mutex mutex_;
  bool open_ = false;
  Status lost_;  // the sticky failure
  DeviceLimits limits_;
  std::vector<Compiled> kernels_;  // in the order of compilation
};

}  // namespace assay::kernels
