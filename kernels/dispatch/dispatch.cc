#include "kernels/dispatch/dispatch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "kernels/attention/attention.h"
#include "kernels/simd/scratch.h"
#include "kernels/attention/unfused.h"
#include "kernels/validate.h"

namespace assay::kernels {
namespace {

// Reads the mask itself; dimensions that broadcast are read once.
bool all_true(const BoolView& keep, const AttentionShape& s) {
  const auto steps = [&](std::size_t k, Index n) {
    return keep.stride[k] == 0 ? std::min<Index>(n, 1) : n;
  };
  const Index batches = steps(0, s.batch), heads = steps(1, s.query_heads), rows = steps(2, s.rows),
              keys = steps(3, s.keys);
  for (Index b = 0; b < batches; ++b)
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < rows; ++i) {
        if (keep.stride[3] == 1 && keys > 0) {
          if (std::memchr(&keep.data[b * keep.stride[0] + h * keep.stride[1] + i * keep.stride[2]],
                          0, usize(keys)))
            return false;
        } else {
          for (Index j = 0; j < keys; ++j)
            if (!keep.at(b, h, i, j)) return false;
        }
      }
  return true;
}

bool is_listed(const DispatchSettings& settings, std::string_view device) {
  return std::find(settings.listed_devices.begin(), settings.listed_devices.end(), device) !=
         settings.listed_devices.end();
}

bool is_padded_or_masked(const Attention& p) {
  return p.keep || p.bias || !p.key_lengths.empty() || !p.key_starts.empty() ||
         !p.query_segment.empty();
}

std::optional<Refusal> first_refusal(const Attention& p, const AttentionOutput& out,
                                     const SdpaOptions& options, const DispatchSettings& settings,
                                     const AttentionBackend& backend) {
  const AttentionShape& s = p.shape;
  if (!settings.enabled) return Refusal::disabled;
  if (options.implementation == Implementation::unfused) return Refusal::asked;
  if (p.causal && !settings.trust_listed_devices && is_padded_or_masked(p) &&
      is_listed(settings, options.device))
    return Refusal::listed_device;
  if (options.device != backend.device()) return Refusal::device;
  if (p.dropout > 0) return Refusal::dropout;
  if (!backend.takes_masks() && (p.bias || (p.keep && !all_true(p.keep, s)))) return Refusal::mask;
  if (s.rows < settings.min_query_length) return Refusal::query_length;
  if (!backend.supports_dtype(p.q.dtype, out.o.dtype)) return Refusal::dtype;
  if (!backend.supports_heads(s.query_heads, s.kv_heads)) return Refusal::heads;
  if (!backend.supports_layout(p, out)) return Refusal::layout;
  if (!backend.unsupported_feature(p).empty()) return Refusal::feature;
  return std::nullopt;
}

std::string explain(Refusal refusal, const Attention& p, const AttentionOutput& out,
                    const SdpaOptions& options, const DispatchSettings& settings,
                    const AttentionBackend& backend) {
  const AttentionShape& s = p.shape;
  switch (refusal) {
    case Refusal::disabled: return "dispatch is disabled";
    case Refusal::asked: return "the unfused kernel was asked for";
    case Refusal::listed_device:
      return fmt::format("causality with padding or a mask is known to fail on device {}",
                         options.device);
    case Refusal::device:
      return fmt::format("the tensors are on {}, the kernel is of {}", options.device,
                         backend.device());
    case Refusal::dropout: return fmt::format("dropout = {}", p.dropout);
    case Refusal::mask: return p.bias ? "there is an additive mask" : "the mask is not all true";
    case Refusal::query_length:
      return fmt::format("{} rows, below {}", s.rows, settings.min_query_length);
    case Refusal::dtype:
      return fmt::format("{} in, {} out", format(p.q.dtype).name, format(out.o.dtype).name);
    case Refusal::heads:
      return fmt::format("{} query heads, {} key/value heads", s.query_heads, s.kv_heads);
    case Refusal::layout: return "the strides, or nested input";
    case Refusal::feature: return std::string(backend.unsupported_feature(p));
  }
  return {};
}

}  // namespace

std::string_view name_of(Refusal refusal) {
  constexpr std::array<std::string_view, refusal_count> names = {
      "disabled",     "asked", "listed_device", "device", "dropout", "mask",
      "query_length", "dtype", "heads",         "layout", "feature"};
  return names[static_cast<std::size_t>(refusal)];
}

Dispatcher::Dispatcher(std::shared_ptr<const AttentionBackend> backend, DispatchSettings settings)
    : backend_(std::move(backend)),
      settings_(std::make_shared<const DispatchSettings>(std::move(settings))) {}

std::shared_ptr<const DispatchSettings> Dispatcher::snapshot() const {
  const std::lock_guard lock(mutex_);
  return settings_;
}

void Dispatcher::set_settings(DispatchSettings settings) {
  auto replacement = std::make_shared<const DispatchSettings>(std::move(settings));
  const std::lock_guard lock(mutex_);
  settings_.swap(replacement);
}

bool Dispatcher::set_enabled(bool enabled) {
  const std::lock_guard lock(mutex_);
  const bool before = settings_->enabled;
  auto replacement = std::make_shared<DispatchSettings>(*settings_);
  replacement->enabled = enabled;
  settings_ = std::move(replacement);
  return before;
}

Status Dispatcher::sdpa(const Attention& problem, const AttentionOutput& out,
                        const SdpaOptions& options) {
  if (Status status = validate_attention(problem, out); !status.ok()) return status;
  try {
    return decide_and_run(problem, out, options);
  } catch (const std::bad_alloc&) {
    return out_of_memory("a decision of the dispatcher");
  }
}

Status Dispatcher::decide_and_run(const Attention& problem, const AttentionOutput& out,
                                  const SdpaOptions& options) {
  const std::shared_ptr<const DispatchSettings> settings = snapshot();
  const std::optional<Refusal> refusal = first_refusal(problem, out, options, *settings, *backend_);
  if (refusal) {
    const bool warns = *refusal == Refusal::listed_device;
    if (warns || settings->verbose) {
      const std::string text =
          fmt::format("sdpa: unfused, {}: {}", name_of(*refusal),
                      explain(*refusal, problem, out, options, *settings, *backend_));
      if (settings->verbose) settings->verbose(text);
      if (warns) warn(*settings, text);
    }
    ++refused_[static_cast<std::size_t>(*refusal)];
    return attention_unfused(problem, out, options.execution);
  }
  if (settings->verbose) settings->verbose(fmt::format("sdpa: dispatched to {}", backend_->name()));
  ++dispatched_;
  if (!problem.keep || backend_->takes_masks())
    return run_or_replace(problem, out, *settings, options.execution);
  // A mask that is all true masks nothing, so the kernel does not receive it.
  Attention unmasked = problem;
  unmasked.keep = {};
  return run_or_replace(unmasked, out, *settings, options.execution);
}

void Dispatcher::warn(const DispatchSettings& settings, const std::string& text) const {
  if (settings.warn) settings.warn(text);
  else std::fprintf(stderr, "assay: %s\n", text.c_str());
}

Status Dispatcher::run_or_replace(const Attention& problem, const AttentionOutput& out,
                                  const DispatchSettings& settings, const Execution& how) {
  Status status = run_kernel(problem, out, settings, how);
  const bool of_device = status.code != StatusCode::success &&
                         status.code != StatusCode::invalid_arguments &&
                         status.code != StatusCode::unsupported;
  if (!of_device || !settings.fall_back_on_failure || backend_ == host_backend()) return status;
  warn(settings, fmt::format("sdpa: {}: {}; the host's kernel instead", message_of(status.code),
                             status.detail));
  ++replaced_;
  const Status second = attention_forward(problem, out, how);
  if (second.ok()) return {};
  status.detail +=
      fmt::format("; then the host's kernel: {}: {}", message_of(second.code), second.detail);
  return status;
}

Status Dispatcher::run_kernel(const Attention& problem, const AttentionOutput& out,
                              const DispatchSettings& settings, const Execution& how) {
  KernelKey key;
  if (Status status = key_of(problem, out, *backend_, key); !status.ok()) return status;
  std::shared_ptr<const CompiledAttention> kernel;
  const Status status =
      settings.compile_cache ? cache_.get(key, *backend_, kernel) : backend_->compile(key, kernel);
  return status.ok() ? kernel->run(problem, out, how) : status;
}

Status Dispatcher::warm_up(std::span<const Attention> problems, const Execution& how) {
  for (const Attention& wanted : problems) {
    try {
      if (Status status = warm_up_one(wanted, how); !status.ok()) return status;
    } catch (const std::bad_alloc&) {
      return out_of_memory("tensors of a warm-up");
    }
  }
  return {};
}

Status Dispatcher::warm_up_one(const Attention& wanted, const Execution& how) {
  // The problem has the same constants, and one batch element of at most 128 rows and keys,
  // contiguous and zero.
  Attention p = wanted;
  AttentionShape& s = p.shape;
  for_each_list([&](const auto& field) {
    if (field.along != Along::query_heads) (p.*field.list).clear();
  });
  p.q = {nullptr, p.q.dtype};
  p.k = p.v = p.q;
  p.bias = {nullptr, p.bias.dtype};
  p.keep = {};
  s.batch = 0;  // refuses bad constants before any size is computed from them
  if (Status status = validate_attention(p, {}); !status.ok()) return status;
  s = {1,
       s.query_heads,
       s.kv_heads,
       std::clamp<Index>(s.rows, 1, 128),
       std::clamp<Index>(s.keys, 1, 128),
       s.dim,
       s.value_dim};
  const auto zeros = [](Dtype dtype, Index heads, Index length, Index columns) {
    return Tensor(
        dtype, {1, heads, length, columns},
        {{heads * length * columns, length * columns, columns, 1}, 0, heads * length * columns});
  };
  const Tensor q = zeros(p.q.dtype, s.query_heads, s.rows, s.dim),
               k = zeros(p.q.dtype, s.kv_heads, s.keys, s.dim);
  const Tensor v = zeros(p.q.dtype, s.kv_heads, s.keys, s.value_dim),
               o = zeros(p.q.dtype, s.query_heads, s.rows, s.value_dim);
  const Tensor lse = zeros(Dtype::f32, s.query_heads, s.rows, 1);
  const std::uint8_t yes = 1;
  const float none = 0;
  p.q = q.view();
  p.k = k.view();
  p.v = v.view();
  if (wanted.keep && backend_->takes_masks()) p.keep = {&yes, {0, 0, 0, 0}};
  if (wanted.bias)
    p.bias = {const_cast<float*>(&none),
              p.bias.dtype,
              {1, 1, 1, 1},
              {0, 0, 0, 0},
              0};  // 0 in every dtype
  for_each_list([&](const auto& field) {
    const ListExtent extent = extent_of(field.along, s);
    if (field.along != Along::query_heads && !(wanted.*field.list).empty())
      (p.*field.list).assign(usize(extent.outer * extent.inner), 0);
  });
  if (!wanted.key_lengths.empty()) p.key_lengths = {s.keys};
  const std::shared_ptr<const DispatchSettings> settings = snapshot();
  Attention as_long = p;
  as_long.shape.rows = wanted.shape.rows;
  const AttentionOutput out{o.view(), lse.view()};
  const SdpaOptions here{Implementation::automatic, backend_->device(), how};
  return first_refusal(as_long, out, here, *settings, *backend_)
             ? attention_unfused(p, out, how)
             : run_kernel(p, out, *settings, how);
}

DispatchCounters Dispatcher::counters() const {
  DispatchCounters c;
  c.dispatched = dispatched_;
  c.replaced = replaced_;
  for (std::size_t k = 0; k < refusal_count; ++k) c.fallback += c.refused[k] = refused_[k];
  return c;
}

void Dispatcher::reset_counters() {
  dispatched_ = 0;
  replaced_ = 0;
  for (auto& n : refused_) n = 0;
}

Dispatcher& default_dispatcher() {
  static Dispatcher dispatcher;
  return dispatcher;
}

Status attention_auto(const Attention& problem, const AttentionOutput& out, const Execution& how) {
  return default_dispatcher().sdpa(problem, out, {Implementation::automatic, "host", how});
}

}  // namespace assay::kernels
