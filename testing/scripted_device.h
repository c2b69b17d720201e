// Inside testing/: a device of GoogleMock. Its calls go to the host's device, and are recorded and
// checked. Any of them can be made to fail.
#pragma once

#include <gmock/gmock.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/device/host_device.h"

namespace assay {

class MockDevice : public kernels::Device {
 public:
  MOCK_METHOD(std::string_view, name, (), (const, override));
  MOCK_METHOD(const kernels::NativeTable&, codes, (), (const, override));
  MOCK_METHOD(kernels::NativeCode, open, (), (override));
  MOCK_METHOD(kernels::NativeCode, close, (), (override));
  MOCK_METHOD(kernels::NativeCode, query, (kernels::DeviceLimits&), (override));
  MOCK_METHOD(kernels::NativeCode, allocate, (std::size_t, kernels::BufferHandle&), (override));
  MOCK_METHOD(kernels::NativeCode, free, (kernels::BufferHandle), (override));
  MOCK_METHOD(kernels::NativeCode, upload, (kernels::BufferHandle, std::span<const std::byte>),
              (override));
  MOCK_METHOD(kernels::NativeCode, download, (std::span<std::byte>, kernels::BufferHandle),
              (override));
  MOCK_METHOD(kernels::NativeCode, compile, (const kernels::KernelSource&, kernels::KernelHandle&),
              (override));
  MOCK_METHOD(kernels::NativeCode, release, (kernels::KernelHandle), (override));
  MOCK_METHOD(kernels::NativeCode, launch,
              (kernels::KernelHandle, const kernels::Grid&, std::span<const kernels::BufferHandle>),
              (override));
  MOCK_METHOD(kernels::NativeCode, synchronize, (), (override));
};

// What the mock uses: the script of failures, the list of calls, and the record of what is held.
class Script {
 public:
  using Failure = std::function<kernels::NativeCode()>;  // returns a code or throws

  explicit Script(const kernels::NativeTable& table) : table_(table) {}

  // Makes call number `index` from now on (0: the next) fail in this way, once.
  void fail(std::size_t index, Failure how) { failures_[calls_.size() + index] = std::move(how); }
  // Makes every call of this kind fail from now on, until clear().
  void fail_every(kernels::DeviceCall call, Failure how) { always_[call] = std::move(how); }
  // These give the device so many bytes, and work-groups of at most so many items. A call that asks
  // for more gets `code`.
  void limit_memory(std::size_t bytes, kernels::NativeCode code) {
    memory_ = bytes, memory_code_ = code;
  }
  void limit_group(std::size_t items, kernels::NativeCode code) {
    group_ = items, group_code_ = code;
  }
  void clear() {
    failures_.clear();
    always_.clear();
  }
  std::size_t call_count() const { return calls_.size(); }
  const std::vector<kernels::DeviceCall>& calls() const { return calls_; }
  // The number of objects that are held now: buffers, kernels and the device itself.
  std::size_t held() const { return held_.size(); }
  bool holds_buffers() const {
    for (const Held& h : held_)
      if (h.call == kernels::DeviceCall::free) return true;
    return false;
  }
  // Describes what was released twice or out of order, or was used without being held. It is empty
  // if nothing was.
  const std::string& breach() const { return breach_; }

  void attach(MockDevice& device);

 private:
  using Call = kernels::DeviceCall;
  struct Held {
    Call call;  // the call that releases it
    std::uint64_t handle;
  };

  // Returns the code of a failure that is planned for this call. Without one it returns nullopt,
  // and the call goes on to the host's device.
  std::optional<kernels::NativeCode> scripted(Call call) {
    const std::size_t index = calls_.size();
    calls_.push_back(call);
    if (call != Call::open && held_.empty())
      breach_ += std::string(kernels::name_of(call)) + " of a device that is not open; ";
    if (const auto planned = failures_.find(index); planned != failures_.end()) {
      const Failure how = std::move(planned->second);
      failures_.erase(planned);
      return how();
    }
    if (const auto planned = always_.find(call); planned != always_.end()) return planned->second();
    return std::nullopt;
  }
  void hold(Call call, std::uint64_t handle) { held_.push_back({call, handle}); }
  // Removes an object that is released. It must be the last acquired of all objects that are held.
  void let_go(Call call, std::uint64_t handle) {
    if (held_.empty() || held_.back().call != call || held_.back().handle != handle)
      breach_ += std::string(kernels::name_of(call)) + " of what is not held, or out of order; ";
    else held_.pop_back();
  }
  template <class Handle>
  static std::uint64_t number(Handle handle) {
    return static_cast<std::uint64_t>(handle);
  }

  const kernels::NativeTable& table_;
  kernels::HostDevice host_;
  std::vector<Call> calls_;
  std::map<std::size_t, Failure> failures_;
  std::map<Call, Failure> always_;
  std::vector<Held> held_;
  std::string breach_;
  std::size_t memory_ = usize(-1), group_ = memory_, used_ = 0;
  kernels::NativeCode memory_code_ = 0, group_code_ = 0;
  std::map<kernels::BufferHandle, std::size_t> sizes_;
};

inline void Script::attach(MockDevice& device) {
  using testing::Invoke;
  using namespace kernels;
  ON_CALL(device, name).WillByDefault([] { return std::string_view("mock"); });
  ON_CALL(device, codes).WillByDefault([this]() -> const NativeTable& { return table_; });
  ON_CALL(device, open).WillByDefault([this] {
    if (const auto code = scripted(Call::open)) return *code;
    hold(Call::close, 0);
    return host_.open();
  });
  // A call that releases an object has released it, whatever code it returns and even if it throws.
  ON_CALL(device, close).WillByDefault([this] {
    const NativeCode real = host_.close();
    struct LetGo {
      Script& script;
      ~LetGo() { script.let_go(Call::close, 0); }
    } let_go_at_end{*this};
    const auto code = scripted(Call::close);
    return code ? *code : real;
  });
  ON_CALL(device, query).WillByDefault([this](DeviceLimits& limits) {
    if (const auto code = scripted(Call::query)) return *code;
    return host_.query(limits);
  });
  ON_CALL(device, allocate).WillByDefault([this](std::size_t bytes, BufferHandle& buffer) {
    if (const auto code = scripted(Call::allocate)) return *code;
    if (bytes > memory_ - used_) return memory_code_;
    const NativeCode code = host_.allocate(bytes, buffer);
    if (code != 0) return code;
    hold(Call::free, number(buffer));
    used_ += sizes_[buffer] = bytes;
    return code;
  });
  ON_CALL(device, free).WillByDefault([this](BufferHandle buffer) {
    const NativeCode real = host_.free(buffer);
    used_ -= sizes_[buffer];
    struct LetGo {
      Script& script;
      BufferHandle buffer;
      ~LetGo() { script.let_go(Call::free, number(buffer)); }
    } let_go_at_end{*this, buffer};
    const auto code = scripted(Call::free);
    return code ? *code : real;
  });
  ON_CALL(device, upload).WillByDefault([this](BufferHandle to, std::span<const std::byte> from) {
    if (const auto code = scripted(Call::upload)) return *code;
    return host_.upload(to, from);
  });
  // A download that fails has already written half of the bytes.
  ON_CALL(device, download).WillByDefault([this](std::span<std::byte> to, BufferHandle from) {
    std::vector<std::byte> bytes(to.size());
    const NativeCode real = host_.download(bytes, from);
    std::memcpy(to.data(), bytes.data(), bytes.size() / 2);
    if (const auto code = scripted(Call::download)) return *code;
    std::memcpy(to.data(), bytes.data(), bytes.size());
    return real;
  });
  ON_CALL(device, compile).WillByDefault([this](const KernelSource& source, KernelHandle& kernel) {
    if (const auto code = scripted(Call::compile)) return *code;
    const NativeCode code = host_.compile(source, kernel);
    if (code == 0) hold(Call::release, number(kernel));
    return code;
  });
  ON_CALL(device, release).WillByDefault([this](KernelHandle kernel) {
    const NativeCode real = host_.release(kernel);
    struct LetGo {
      Script& script;
      KernelHandle kernel;
      ~LetGo() { script.let_go(Call::release, number(kernel)); }
    } let_go_at_end{*this, kernel};
    const auto code = scripted(Call::release);
    return code ? *code : real;
  });
  ON_CALL(device, launch)
      .WillByDefault(
          [this](KernelHandle kernel, const Grid& grid, std::span<const BufferHandle> arguments) {
            if (const auto code = scripted(Call::launch)) return *code;
            if (grid.group[0] > group_) return group_code_;
            return host_.launch(kernel, grid, arguments);
          });
  ON_CALL(device, synchronize).WillByDefault([this] {
    if (const auto code = scripted(Call::synchronize)) return *code;
    return host_.synchronize();
  });
}

}  // namespace assay
