#include "kernels/device/session.h"

#include <fmt/format.h>

#include <array>
#include <new>

#include "kernels/simd/scratch.h"
#include "kernels/staging.h"

namespace assay::kernels {
namespace {

// Adds a later failure to the message of the first one. The status stays that of the first failure.
void append(Status& first, const Status& later) noexcept {
  if (later.ok()) return;
  if (first.ok()) {
    first.code = later.code;
    try {
      first = later;
    } catch (...) {  // the code is set already
    }
    return;
  }
  try {
    first.detail += "; then " + later.detail;
  } catch (...) {
  }
}

}  // namespace

std::string_view name_of(DeviceCall call) {
  constexpr std::array<std::string_view, device_call_count> names = {
      "open",     "close",   "query",   "allocate", "free",       "upload",
      "download", "compile", "release", "launch",   "synchronize"};
  return names[static_cast<std::size_t>(call)];
}

std::string KernelSource::key() const {
  std::string key(entry);
  for (const auto& [macro, definition] : constants) key += fmt::format(" {}={}", macro, definition);
  return key;
}

// Turns the code or the exception of `body` into a status. The code is never lost; the text is lost
// only if there is no memory for it.
template <class Body>
Status DeviceSession::call(DeviceCall what, std::string_view object, const Body& body) noexcept {
  Status status;
  const auto explain = [&](StatusCode code, std::string_view reason,
                           std::string_view more = {}) noexcept {
    status.code = code;
    try {
      status.origin =
          object.empty() ? std::string(name_of(what)) : fmt::format("{} {}", name_of(what), object);
      status.detail = fmt::format("{}: {} failed with {}{}{}", device_->name(), status.origin,
                                  reason, more.empty() ? "" : ": ", more);
    } catch (...) {
    }
  };
  NativeCode code = 0;
  try {
    code = body();
  } catch (const std::bad_alloc&) {
    explain(StatusCode::memory_allocation_failed, "std::bad_alloc");
  } catch (const std::exception& e) {
    // If a compiler throws, it has failed to compile; if any other call throws, it has failed to
    // run.
    explain(what == DeviceCall::compile ? StatusCode::kernel_compilation_failed
                                        : StatusCode::execution_failed,
            e.what());
  } catch (...) {
    explain(StatusCode::unknown, "an exception that is no std::exception");
  }
  if (code == 0) return status;
  const NativeTable& table = device_->codes();
  status.code = status_of(table, code);
  const NativeEntry* entry = find_native(table, code);
  if (entry && entry->sticky) lost_.code = StatusCode::device_not_supported;
  try {
    explain(status.code, describe(table, code), device_->detail());
    if (!lost_.ok() && lost_.detail.empty())
      lost_.detail = status.detail + "; the device must be opened again";
  } catch (...) {
  }
  return status;
}

Status DeviceSession::ready() {
  if (!lost_.ok()) return lost_;
  if (open_) return {};
  if (Status status = call(DeviceCall::open, "", [&] { return device_->open(); }); !status.ok())
    return status;
  DeviceLimits limits;
  if (Status status = call(DeviceCall::query, "", [&] { return device_->query(limits); });
      !status.ok()) {
    append(status, call(DeviceCall::close, "", [&] { return device_->close(); }));
    return status;
  }
  limits_ = std::move(limits);
  open_ = true;
  return {};
}

Status DeviceSession::find_kernel(const KernelSource& source, KernelHandle& kernel) {
  std::string key = source.key();
  for (const Compiled& c : kernels_)
    if (c.key == key) {
      kernel = c.handle;
      return {};
    }
  kernels_.reserve(kernels_.size() + 1);  // nothing may fail after the kernel is compiled
  Status status =
      call(DeviceCall::compile, source.entry, [&] { return device_->compile(source, kernel); });
  if (status.ok()) kernels_.push_back({std::move(key), kernel});
  return status;
}

template <class Body>
Status DeviceSession::locked(const Body& body) {
  const std::lock_guard lock(mutex_);
  try {
    return body();
  } catch (const std::bad_alloc&) {  // from lists and names; nothing of the device is lost
    return out_of_memory("the books of a device");
  }
}

Status DeviceSession::limits(DeviceLimits& limits) {
  return locked([&] {
    Status status = ready();
    if (status.ok()) limits = limits_;
    return status;
  });
}

Status DeviceSession::compile(const KernelSource& source) {
  return locked([&] {
    KernelHandle kernel{};
    Status status = ready();
    return status.ok() ? find_kernel(source, kernel) : status;
  });
}

Status DeviceSession::run(const Job& job) {
  return locked([&] { return run_locked(job); });
}

Status DeviceSession::run_locked(const Job& job) {
  std::vector<BufferHandle> arguments;
  std::vector<BufferHandle> allocated;
  arguments.reserve(job.inputs.size() + job.outputs.size());
  allocated.reserve(arguments.capacity());
  KernelHandle kernel{};
  Status status = ready();
  if (status.ok()) status = find_kernel(job.source, kernel);

  // These checks are made before anything is allocated on the device, because there may be no
  // memory for the text of a failure.
  const auto check = [&](std::string_view name, std::size_t bytes) {
    if (status.ok() && bytes > limits_.largest_buffer)
      status = exceeds_buffer(device_->name(), name, bytes, limits_.largest_buffer);
  };
  for (const JobInput& in : job.inputs) check(in.name, in.bytes.size());
  for (const JobOutput& out : job.outputs) check(out.name, out.staging.size());
  const auto allocate = [&](std::string_view name, std::size_t bytes) {
    BufferHandle buffer{};
    if (status.ok() && bytes > 0) {
      status = call(DeviceCall::allocate, name, [&] { return device_->allocate(bytes, buffer); });
      if (status.ok()) allocated.push_back(buffer);
    }
    arguments.push_back(buffer);
  };
  for (const JobInput& in : job.inputs) allocate(in.name, in.bytes.size());
  for (const JobOutput& out : job.outputs) allocate(out.name, out.staging.size());
  for (std::size_t k = 0; k < job.inputs.size() && status.ok(); ++k)
    if (const JobInput& in = job.inputs[k]; !in.bytes.empty())
      status = call(DeviceCall::upload, in.name,
                    [&] { return device_->upload(arguments[k], in.bytes); });
  if (status.ok())
    status = call(DeviceCall::launch, job.source.entry,
                  [&] { return device_->launch(kernel, job.grid, arguments); });
  if (status.ok())
    status = call(DeviceCall::synchronize, "", [&] { return device_->synchronize(); });
  for (std::size_t k = 0; k < job.outputs.size() && status.ok(); ++k)
    if (const JobOutput& out = job.outputs[k]; !out.staging.empty())
      status = call(DeviceCall::download, out.name, [&] {
        return device_->download(out.staging, arguments[job.inputs.size() + k]);
      });
  for (; !allocated.empty(); allocated.pop_back())
    append(status, call(DeviceCall::free, "", [&] { return device_->free(allocated.back()); }));
  return status;
}

Status DeviceSession::close() {
  const std::lock_guard lock(mutex_);
  return close_locked();
}

Status DeviceSession::close_locked() {
  Status status;
  for (; !kernels_.empty(); kernels_.pop_back())
    append(status,
           call(DeviceCall::release, "", [&] { return device_->release(kernels_.back().handle); }));
  if (open_) append(status, call(DeviceCall::close, "", [&] { return device_->close(); }));
  open_ = false;
  return status;
}

Status DeviceSession::reopen() {
  return locked([&] {
    close_locked();
    lost_ = {};
    return ready();
  });
}

bool DeviceSession::lost() const {
  const std::lock_guard lock(mutex_);
  return !lost_.ok();
}

}  // namespace assay::kernels
