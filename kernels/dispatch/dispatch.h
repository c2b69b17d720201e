// The dispatcher of scaled dot product attention: it runs the accelerated kernel if every test
// passes, and the unfused kernel otherwise.
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

#include "kernels/dispatch/backend.h"

namespace assay::kernels {

// The reasons for running the unfused kernel, in the order of the tests. The first test that fails
// is counted.
enum class Refusal {
  disabled,  // dispatch was switched off
  asked,     // SdpaOptions ask for the unfused kernel
  // causality with padding or a mask, on a device that is listed because it gets that wrong
  listed_device,
  device,  // the tensors are not on the backend's device
  dropout,
  mask,          // a boolean mask that is not all true, or any additive mask
  query_length,  // fewer rows than the threshold
  dtype,
  heads,
  layout,  // strides, or nested input
  feature  // any other feature that the backend does not support
};
inline constexpr std::size_t refusal_count = 11;
std::string_view name_of(Refusal refusal);

struct DispatchSettings {
  bool enabled = true;
  Index min_query_length = 256;
  bool compile_cache = true;
  // If a kernel fails for a reason of its device (status 2 to 5, or unknown, after the retries of
  // its backend), the host's kernel computes the call, with a warning. Invalid arguments and
  // unsupported problems are returned as they are.
  bool fall_back_on_failure = true;
  // Devices on which causality with padding or a mask is known to fail. "mps" drops causality if
  // there is a mask, and gives NaN for rows that see no key; a batch that is padded on the left has
  // both.
  std::vector<std::string> listed_devices = {"mps"};
  // Dispatches on listed devices all the same, which reproduces their failure.
  bool trust_listed_devices = false;
  // gets every decision with its reason; none: no output
  std::function<void(std::string_view)> verbose;
  // gets every listed device that was avoided and every failure that was replaced; none: standard
  // error
  std::function<void(std::string_view)> warn;
};

enum class Implementation { automatic, sdpa, unfused };  // the first two are the same

struct SdpaOptions {
  Implementation implementation = Implementation::automatic;
  // where the tensors are; the unfused kernel reads them on the host
  std::string_view device =
      "host";  // where the tensors are. The fallback reads them from the host.
  Execution execution = {};
};

struct DispatchCounters {
  Index dispatched = 0, fallback = 0;
  std::array<Index, refusal_count> refused{};  // by Refusal; their sum is `fallback`
  // how many dispatched calls failed on their device and were then computed by the host's kernel
  Index replaced = 0;
  bool operator==(const DispatchCounters&) const = default;
};

// Thread-safe. Results depend on the problem, the backend and the settings alone, and not on
// earlier calls.
class Dispatcher {
 public:
  explicit Dispatcher(std::shared_ptr<const AttentionBackend> backend = host_backend(),
                      DispatchSettings settings = {});

  // Refuses what attention_forward refuses, with the same statuses, before anything is counted.
  // Every call reads the masks, element by element.
  Status sdpa(const Attention& problem, const AttentionOutput& out,
              const SdpaOptions& options = {});

  // Compiles the kernels that problems with these constants need, and runs each once on a few
  // zeros, so that no later call has to compile. Tensors may be absent; only the dtypes of Q and
  // the bias are read. O is assumed to have the dtype of Q, and LSE is assumed to be wanted.
  // Nothing is counted as dispatched.
  Status warm_up(std::span<const Attention> problems, const Execution& how = {});

  void enable() { set_enabled(true); }
  void disable() { set_enabled(false); }
  bool set_enabled(bool enabled);  // returns the former setting
  DispatchSettings settings() const { return *snapshot(); }
  void set_settings(DispatchSettings settings);
  // Opens the backend's device again after a sticky failure.
  Status reopen() { return backend_->reopen(); }

  // Each number is exact, but numbers that are read while calls run do not belong to one moment.
  DispatchCounters counters() const;
  void reset_counters();
  KernelCache& cache() { return cache_; }

 private:
  std::shared_ptr<const DispatchSettings> snapshot() const;
  Status decide_and_run(const Attention& problem, const AttentionOutput& out,
                        const SdpaOptions& options);
  Status warm_up_one(const Attention& wanted, const Execution& how);
  void warn(const DispatchSettings& settings, const std::string& text) const;
  Status run_or_replace(const Attention& problem, const AttentionOutput& out,
                        const DispatchSettings& settings, const Execution& how);
  Status run_kernel(const Attention& problem, const AttentionOutput& out,
                    const DispatchSettings& settings, const Execution& how);

  const std::shared_ptr<const AttentionBackend> backend_;
  mutable std::mutex mutex_;
  std::shared_ptr<const DispatchSettings> settings_;  // always replaced as a whole
  KernelCache cache_;
  std::atomic<Index> dispatched_{0}, replaced_{0};
  std::array<std::atomic<Index>, refusal_count> refused_{};
};

// Changes the settings for a scope and restores them at its end.
class ScopedSettings {
 public:
  ScopedSettings(Dispatcher& dispatcher, DispatchSettings settings)
      : dispatcher_(dispatcher), before_(dispatcher.settings()) {
    dispatcher_.set_settings(std::move(settings));
  }
  ScopedSettings(Dispatcher& dispatcher, bool enabled)
      : dispatcher_(dispatcher), before_(dispatcher.settings()) {
    dispatcher_.set_enabled(enabled);
  }
  ~ScopedSettings() { dispatcher_.set_settings(std::move(before_)); }
  ScopedSettings(const ScopedSettings&) = delete;
  ScopedSettings& operator=(const ScopedSettings&) = delete;

 private:
  Dispatcher& dispatcher_;
  DispatchSettings before_;
};

// Returns the dispatcher of this process, which uses the host's kernel.
Dispatcher& default_dispatcher();

// Calls sdpa of the process's dispatcher, with default options.
Status attention_auto(const Attention& problem, const AttentionOutput& out,
                      const Execution& how = {});

}  // namespace assay::kernels
