// Contexts, attention and dispatch of the C interface. Caches are in
// kernels/c_interface/c_cache.cc.
#include "kernels/attention/attention.h"
#include "kernels/c_interface/c_common.h"
#include "kernels/device/device_backend.h"
#include "kernels/dispatch/single_head.h"
#include "kernels/dispatch/varlen.h"

namespace assay::kernels {
namespace {

Handles<Context, assay_context>& contexts() {
  // Never destroyed, because static objects may still call it at exit.
  static auto* handles = new Handles<Context, assay_context>("context");
  return *handles;
}

void expect_bool(std::int32_t value, const char* name) {
  if (value != 0 && value != 1)
    refuse(std::string(name) + " = " + std::to_string(value) + " is neither 0 nor 1");
}

std::shared_ptr<Context> make_context(const assay_context_options* given) {
  assay_context_options options;
  assay_context_options_init(&options);
  if (given) options = read_struct(given, "options", options);
  if (options.threads < 0) refuse("threads = " + std::to_string(options.threads) + " is below 0");
  if (options.min_query_length < 0)
    refuse("min_query_length = " + std::to_string(options.min_query_length) + " is below 0");
  expect_bool(options.dispatch_enabled, "dispatch_enabled");
  expect_bool(options.compile_cache, "compile_cache");
  expect_bool(options.trust_listed_devices, "trust_listed_devices");
  DispatchSettings settings;
  settings.enabled = options.dispatch_enabled != 0;
  settings.min_query_length = options.min_query_length;
  settings.compile_cache = options.compile_cache != 0;
  settings.trust_listed_devices = options.trust_listed_devices != 0;
  if (options.listed_devices) {
    if (options.listed_device_count < 0)
      refuse("listed_device_count = " + std::to_string(options.listed_device_count) +
             " is below 0");
    settings.listed_devices.clear();
    for (std::int64_t k = 0; k < options.listed_device_count; ++k) {
      if (!options.listed_devices[k]) refuse("listed_devices[" + std::to_string(k) + "] is null");
      settings.listed_devices.emplace_back(options.listed_devices[k]);
    }
  } else if (options.listed_device_count != 0) {
    refuse("listed_devices is null and has " + std::to_string(options.listed_device_count) +
           " entries");
  }
  if (options.report) {
    const auto tell = [report = options.report, user = options.report_user](std::int32_t severity) {
      return [=](std::string_view text) { report(user, severity, std::string(text).c_str()); };
    };
    settings.verbose = tell(ASSAY_REPORT_VERBOSE);
    settings.warn = tell(ASSAY_REPORT_WARNING);
  }
  expect_bool(options.device_fallback, "device_fallback");
  if (options.reserved != 0) refuse("reserved = " + std::to_string(options.reserved) + " is not 0");
  settings.fall_back_on_failure = options.device_fallback != 0;
  std::shared_ptr<const AttentionBackend> backend = host_backend();
  if (const std::string name = options.device ? options.device : "host"; name != "host") {
    std::shared_ptr<Device> device = make_device(name);
    if (!device)
      refuse("device = " + name + " is none of host, opencl, opencl:TEXT",
             StatusCode::device_not_supported);
    DevicePolicy policy;
    policy.warn = settings.warn;
    auto on_device = std::make_shared<DeviceBackend>(
        std::make_shared<DeviceSession>(std::move(device)), std::move(policy));
    if (Status status = on_device->reopen(); !status.ok()) throw Refused{std::move(status)};
    backend = std::move(on_device);
  }
  return std::make_shared<Context>(std::move(backend), std::move(settings), options.threads);
}

Array array_of(const assay_tensor* given, const char* name) {
  if (!given) refuse(std::string(name) + " is null");
  const assay_tensor t = tensor_of(given, name);
  if (t.rank < 0 || t.rank > 4)
    refuse(std::string(name) + ".rank = " + std::to_string(t.rank) + " is outside [0, 4]");
  return {t.data,
          dtype_of(t.dtype, name),
          {t.shape, t.shape + t.rank},
          {t.strides, t.strides + t.rank},
          t.offset};
}

TensorView gradient_of(const assay_tensor* given, const char* name, const Extents& shape) {
  const TensorView t = view_of(given, name);
  if (given) expect_shape(t, name, shape);
  if (given && !t && element_count(shape) > 0) refuse(std::string(name) + ".data is null");
  return t;
}

}  // namespace

assay_context add_context(std::shared_ptr<Context> context) {
  return contexts().add(std::move(context));
}

std::shared_ptr<Context> context_of(assay_context handle) { return contexts().get(handle); }

}  // namespace assay::kernels

using namespace assay;
using namespace assay::kernels;

extern "C" {

assay_status assay_context_create(const assay_context_options* options, assay_context* context) {
  return guarded([&] {
    if (!context) refuse("context is null");
    *context = add_context(make_context(options));
    return Status{};
  });
}

assay_status assay_context_destroy(assay_context context) {
  return guarded([&] { return contexts().destroy(context); });
}

assay_status assay_context_reopen(assay_context context) {
  return guarded([&] { return context_of(context)->dispatcher.reopen(); });
}

assay_status assay_single_head_attention(assay_context context, const assay_tensor* q,
                                         const assay_tensor* k, const assay_tensor* v,
                                         const assay_tensor* o, const float* scale,
                                         int32_t causal) {
  return guarded([&] {
    const auto c = context_of(context);
    expect_bool(causal, "causal");
    SingleHeadOptions options;
    if (scale) options.scale = *scale;
    options.causal = causal != 0;
    options.threads = c->threads;
    return single_head_attention(c->dispatcher, array_of(q, "q"), array_of(k, "k"),
                                 array_of(v, "v"), array_of(o, "o"), options);
  });
}

assay_status assay_attention_forward(assay_context context, const assay_attention* problem,
                                     const assay_tensor* o, const assay_tensor* lse) {
  return guarded([&] {
    const auto c = context_of(context);
    const Attention p = problem_of(problem);
    return attention_forward(p, output_of(p, o, lse), c->threads);
  });
}

assay_status assay_attention_varlen(assay_context context, const assay_attention* problem,
                                    const int64_t* cu_rows, const int64_t* cu_keys,
                                    int64_t sequences, int32_t bottom_right, const assay_tensor* o,
                                    const assay_tensor* lse) {
  return guarded([&] {
    const auto c = context_of(context);
    constexpr std::int64_t most = (std::int64_t{1} << 56) - 1;
    if (sequences < 0 || sequences > most)
      refuse("sequences = " + std::to_string(sequences) + " is outside [0, " +
             std::to_string(most) + "]");
    if (!cu_rows) refuse("cu_rows is null");
    if (!cu_keys) refuse("cu_keys is null");
    expect_bool(bottom_right, "bottom_right");
    const Attention p = problem_of(problem, true, sequences);
    const auto entries = usize(sequences) + 1;
    return attention_varlen(p, {cu_rows, entries}, {cu_keys, entries},
                            bottom_right ? Anchor::bottom_right : Anchor::top_left,
                            output_of(p, o, lse), c->threads);
  });
}

assay_status assay_sdpa(assay_context context, const assay_attention* problem,
                        const assay_tensor* o, const assay_tensor* lse, int32_t implementation,
                        const char* device) {
  return guarded([&] {
    const auto c = context_of(context);
    if (implementation < ASSAY_AUTOMATIC || implementation > ASSAY_UNFUSED)
      refuse("implementation = " + std::to_string(implementation) + " is outside [0, 2]");
    const Attention p = problem_of(problem);
    return c->dispatcher.sdpa(
        p, output_of(p, o, lse),
        {static_cast<Implementation>(implementation), device ? device : "host", c->threads});
  });
}

assay_status assay_dispatch_read(assay_context context, assay_dispatch_counters* counters) {
  return guarded([&] {
    const auto c = context_of(context);
    assay_dispatch_counters now = read_struct(counters, "counters", assay_dispatch_counters{});
    const DispatchCounters dispatch = c->dispatcher.counters();
    const KernelCache::Counters cache = c->dispatcher.cache().counters();
    static_assert(refusal_count == ASSAY_REFUSAL_COUNT);
    now.dispatched = dispatch.dispatched;
    now.fallback = dispatch.fallback;
    std::copy(dispatch.refused.begin(), dispatch.refused.end(), now.refused);
    now.cache_hits = cache.hits;
    now.cache_misses = cache.misses;
    now.replaced = dispatch.replaced;
    std::memcpy(counters, &now, counters->struct_size);
    return Status{};
  });
}

assay_status assay_dispatch_reset(assay_context context) {
  return guarded([&] {
    const auto c = context_of(context);
    c->dispatcher.reset_counters();
    c->dispatcher.cache().reset_counters();
    return Status{};
  });
}

assay_status assay_dispatch_enable(assay_context context, int32_t enabled, int32_t* before) {
  return guarded([&] {
    const auto c = context_of(context);
    expect_bool(enabled, "enabled");
    const bool was = c->dispatcher.set_enabled(enabled != 0);
    if (before) *before = was;
    return Status{};
  });
}

assay_status assay_attention_backward(assay_context context, const assay_attention* problem,
                                      const assay_tensor* o, const assay_tensor* lse,
                                      const assay_tensor* d_o, const assay_gradients* gradients) {
  return guarded([&] {
    const auto c = context_of(context);
    const Attention p = problem_of(problem);
    const AttentionShape& s = p.shape;
    if (!lse) refuse("lse is null");
    if (!d_o) refuse("d_o is null");
    const AttentionOutput forward = output_of(p, o, lse);
    const assay_gradients g = read_struct(gradients, "gradients", assay_gradients{});
    const AttentionBackwardInput in{forward.o, forward.lse, gradient_of(d_o, "d_o", s.o_extents()),
                                    gradient_of(g.d_lse, "d_lse", s.lse_extents())};
    for (auto [name, t] : {std::pair{"dq", g.dq}, {"dk", g.dk}, {"dv", g.dv}})
      if (!t) refuse(std::string(name) + " is null");
    AttentionGradients out;
    out.dq = gradient_of(g.dq, "dq", p.q.shape);
    out.dk = gradient_of(g.dk, "dk", p.k.shape);
    out.dv = gradient_of(g.dv, "dv", p.v.shape);
    out.d_bias = gradient_of(g.d_bias, "d_bias", s.pair_extents());
    out.d_sink = gradient_of(g.d_sink, "d_sink", {1, s.query_heads, 1, 1});
    return attention_backward(p, in, out, c->threads);
  });
}

}  // extern "C"
