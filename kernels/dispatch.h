// Scaled dot product attention: the accelerated kernel where every test passes, the unfused one otherwise.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace assay::kernels {

// Why the fallback ran, in the order of the tests: the first that fails is the one that is counted.
enum class Refusal {
  disabled,       // disable()
  asked,          // SdpaOptions ask for the unfused kernel
  listed_device,  // causality together with padding or a mask, on a device that is listed for getting that wrong
  device,         // the tensors are not on the backend's device
  dropout,
  mask,          // a boolean mask that is not all true, or any additive one
  query_length,  // fewer rows than the threshold
  dtype,
  heads,
  layout,  // strides, and nested input
  feature  // anything else the backend does not do
};
inline constexpr std::size_t refusal_count = 11;
std::string_view name_of(Refusal refusal);

struct DispatchSettings {
  bool enabled = true;
  Index min_query_length = 256;
  bool compile_cache = true;
  // A kernel that fails for a reason of its device (2 to 5, or unknown, after what its backend tried again) is replaced by the host's, with a
  // warning. Invalid arguments and unsupported problems are not.
  bool fall_back_on_failure = true;
  // Devices on which causality with padding or a mask is known to fail. "mps" drops causality once there is a mask and
  // makes NaN of rows that see no key: a batch padded on the left has both.
  std::vector<std::string> listed_devices = {"mps"};
  // Dispatch on listed devices all the same: reproduces their failure.
  bool trust_listed_devices = false;
  std::function<void(std::string_view)> verbose;  // told of every decision with its reason; none: silence
  std::function<void(std::string_view)> warn;     // told of every listed device avoided and every failure replaced; none: standard error
};

enum class Implementation { automatic, sdpa, unfused };  // the first two are the same

struct SdpaOptions {
  Implementation implementation = Implementation::automatic;
  std::string_view device = "host";  // where the tensors are. The fallback reads them from the host.
  Execution execution = {};
};

struct DispatchCounters {
  Index dispatched = 0, fallback = 0;
  std::array<Index, refusal_count> refused{};  // by Refusal; sums up to `fallback`
  Index replaced = 0;                          // of the dispatched: failed on their device, then computed by the host's kernel
  bool operator==(const DispatchCounters&) const = default;
};

// Thread-safe. Results depend on the problem, the backend and the settings alone, not on what ran before.
class Dispatcher {
 public:
  explicit Dispatcher(std::shared_ptr<const AttentionBackend> backend = host_backend(), DispatchSettings settings = {});

  // Refuses what attention_forward refuses, with its statuses, before anything is counted. Masks are looked at in every
  // call, element by element.
  Status sdpa(const Attention& problem, const AttentionOutput& out, const SdpaOptions& options = {});

  // Compiles what problems of these constants need and runs it once on a few zeros, so that no first call pays for it.
  // Tensors may be absent: of Q and the bias the dtype is read. O is taken to have the dtype of Q, LSE to be asked for.
  // Nothing is counted as dispatched.
  Status warm_up(std::span<const Attention> problems, const Execution& how = {});

  void enable() { set_enabled(true); }
  void disable() { set_enabled(false); }
  bool set_enabled(bool enabled);  // returns what it was
  DispatchSettings settings() const { return *snapshot(); }
  void set_settings(DispatchSettings settings);
  // The backend's device after a sticky failure.
  Status reopen() { return backend_->reopen(); }

  // Each number is exact; a reading while calls run is not a single moment.
  DispatchCounters counters() const;
  void reset_counters();
  KernelCache& cache() { return cache_; }

 private:
  std::shared_ptr<const DispatchSettings> snapshot() const;
  Status decide_and_run(const Attention& problem, const AttentionOutput& out, const SdpaOptions& options);
  Status warm_up_one(const Attention& wanted, const Execution& how);
  void warn(const DispatchSettings& settings, const std::string& text) const;
  Status run_or_replace(const Attention& problem, const AttentionOutput& out, const DispatchSettings& settings, const Execution& how);
  Status run_kernel(const Attention& problem, const AttentionOutput& out, const DispatchSettings& settings, const Execution& how);

  const std::shared_ptr<const AttentionBackend> backend_;
  mutable std::mutex mutex_;
  std::shared_ptr<const DispatchSettings> settings_;  // replaced as a whole
  KernelCache cache_;
  std::atomic<Index> dispatched_{0}, replaced_{0};
  std::array<std::atomic<Index>, refusal_count> refused_{};
};

// Changes the settings for a scope and restores them at its end.
class ScopedSettings {
 public:
  ScopedSettings(Dispatcher& dispatcher, DispatchSettings settings) : dispatcher_(dispatcher), before_(dispatcher.settings()) {
    dispatcher_.set_settings(std::move(settings));
  }
  ScopedSettings(Dispatcher& dispatcher, bool enabled) : dispatcher_(dispatcher), before_(dispatcher.settings()) { dispatcher_.set_enabled(enabled); }
  ~ScopedSettings() { dispatcher_.set_settings(std::move(before_)); }
  ScopedSettings(const ScopedSettings&) = delete;
  ScopedSettings& operator=(const ScopedSettings&) = delete;

 private:
  Dispatcher& dispatcher_;
  DispatchSettings before_;
};

// The dispatcher of this process, on the host's kernel.
Dispatcher& default_dispatcher();

// sdpa of the process's dispatcher, with default options.
Status attention_auto(const Attention& problem, const AttentionOutput& out, const Execution& how = {});

}  // namespace assay::kernels
