// Measures everything around the kernel, in calls so small that it shows.
#include <assay/assay.h>
#include <fmt/format.h>

#include <cmath>
#include <functional>

#include "bench/data.h"
#include "bench/modes.h"
#include "kernels/attention/attention_plan.h"
#include "kernels/device/device_backend.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/validate.h"

namespace assay::bench {
namespace {

constexpr double claimed_seconds = 1e-6;  // "Parameter validation: ~microsecond overhead"

// The same problem through the C interface.
class CCall {
 public:
  explicit CCall(const Data& data) {
    const AttentionShape& s = data.problem.shape;
    const auto tensor = [&](assay_tensor& t, const Tensor& from, Index heads, Index length,
                            Index width) {
      assay_tensor_init(&t, from.bytes(), ASSAY_FLOAT, 32, s.batch, heads, length, width);
    };
    tensor(q_, data.q, s.query_heads, s.rows, s.dim);
    tensor(k_, data.k, s.kv_heads, s.keys, s.dim);
    tensor(v_, data.v, s.kv_heads, s.keys, s.value_dim);
    tensor(o_, data.o, s.query_heads, s.rows, s.value_dim);
    tensor(lse_, data.lse, s.query_heads, s.rows, 1);
    assay_attention_init(&problem_);
    problem_.q = &q_, problem_.k = &k_, problem_.v = &v_;
    assay_context_options options;
    assay_context_options_init(&options);
    options.threads = 1;
    options.min_query_length = 0;
    expect(assay_context_create(&options, &context_));
  }
  ~CCall() { assay_context_destroy(context_); }
  CCall(const CCall&) = delete;
  CCall& operator=(const CCall&) = delete;

  void forward() { expect(assay_attention_forward(context_, &problem_, &o_, &lse_)); }
  void sdpa() { expect(assay_sdpa(context_, &problem_, &o_, &lse_, ASSAY_AUTOMATIC, nullptr)); }

 private:
  static void expect(assay_status status) {
    if (status != ASSAY_SUCCESS) throw std::runtime_error(assay_last_error());
  }
  assay_tensor q_, k_, v_, o_, lse_;
  assay_attention problem_;
  assay_context context_ = nullptr;
};

}  // namespace

void overhead_mode(Rounds& rounds, const Settings&) {
  fmt::print(rounds.tables(),
             "\nOne tiny call on one thread, in fp32: medians. kernel: the kernel alone, on "
             "arguments that were validated before.\n"
             "over the kernel: the time that a call adds to the time of the kernel, and this time "
             "as a multiple of the microsecond\n"
             "that the source document claims for validation.\n");
  for (const AttentionShape& shape :
       {AttentionShape{1, 1, 1, 1, 1, 8, 8}, AttentionShape{1, 1, 1, 16, 16, 64, 64}}) {
    const Data data(shape, Dtype::f32, false, false);
    kernels::DispatchSettings settings;
    settings.min_query_length = 0;
    kernels::Dispatcher dispatcher(kernels::host_backend(), settings);
    // The host behind the device interface: six buffers, copies to and from them, and a launch.
    kernels::Dispatcher on_device(
        std::make_shared<kernels::DeviceBackend>(
            std::make_shared<kernels::DeviceSession>(kernels::make_device("host"))),
        settings);
    CCall c(data);
    const std::pair<const char*, Run> calls[] = {
        {"kernel",
         [&] {
           expect_success("forward_stored",
                          kernels::forward_stored(data.problem,
                                                  {kernels::stored_key_values(data.problem, 0, 0)},
                                                  data.out(), 1, nullptr));
         }},
        {"validation",
         [&] {
           expect_success("validate_attention",
                          kernels::validate_attention(data.problem, data.out()));
         }},
        {"attention_forward",
         [&] {
           expect_success("attention_forward",
                          kernels::attention_forward(data.problem, data.out(), 1));
         }},
        {"sdpa",
         [&] {
           expect_success("sdpa", dispatcher.sdpa(data.problem, data.out(),
                                                  {kernels::Implementation::automatic, "host", 1}));
         }},
        {"sdpa, host as a device",
         [&] {
           expect_success("sdpa", on_device.sdpa(data.problem, data.out(),
                                                 {kernels::Implementation::automatic, "host", 1}));
         }},
        {"assay_attention_forward", [&] { c.forward(); }},
        {"assay_sdpa", [&] { c.sdpa(); }},
    };
    std::vector<Entry> entries;
    for (const auto& [name, call] : calls)
      entries.push_back({fmt::format("overhead/{}/L:{}/D:{}", name, shape.rows, shape.dim),
                         [run = call] { return run; }, 0, 0, Entry::Limit::none, nullptr});
    const std::vector<Measured> measured = rounds.run(entries);
    if (std::isnan(measured[0].seconds)) continue;  // the other lines are differences to this one
    fmt::print(
        rounds.tables(),
        "\nB = H = 1, L = {}, D = {}        ns   over the kernel   in claimed microseconds\n",
        shape.rows, shape.dim);
    for (std::size_t k = 0; k < entries.size(); ++k) {
      const char* const name = calls[k].first;
      const double seconds = measured[k].seconds,
                   over = k == 1 ? seconds : seconds - measured[0].seconds;
      if (k == 0) fmt::print(rounds.tables(), "{:<24} {:>9.1f}\n", name, seconds * 1e9);
      else
        fmt::print(rounds.tables(), "{:<24} {:>9.1f} {:>17.1f} {:>25.3f}\n", name, seconds * 1e9,
                   over * 1e9, over / claimed_seconds);
    }
    if (dispatcher.counters().fallback > 0 || on_device.counters().fallback > 0 ||
        on_device.counters().replaced > 0)
      throw std::runtime_error("sdpa ran the fallback, so its time is not the time of dispatching");
  }
}

}  // namespace assay::bench
