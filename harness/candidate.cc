#include "harness/candidate.h"

#include <fmt/format.h>

#include <stdexcept>

#include "harness/cached.h"
#include "harness/contracts.h"
#include "harness/library_candidate.h"
#include "harness/planted_faults.h"
#include "kernels/attention.h"
#include "kernels/device/device_backend.h"
#include "kernels/dispatch.h"
#include "kernels/targets.h"
#include "kernels/unfused.h"

namespace assay {
namespace {

std::string unsupported_dtype(const Attention& p, Dtype out) {
  for (Dtype d : {p.q.dtype, out})
    if (d != Dtype::f32 && d != Dtype::f16 && d != Dtype::bf16) return fmt::format("dtype {}", format(d).name);
  return {};
}

constexpr PlantedFault kernel_itself{.name = "none"};

class Host : public Candidate {
 public:
  explicit Host(bool declares) : declares_(declares) {}
  std::string name() const override { return declares_ ? "host" : "host-undeclared"; }
  std::string unsupported(const Attention& p, Dtype out) const override { return unsupported_dtype(p, out); }
  std::optional<Contract> contract(const Attention& p) const override {
    if (!declares_) return std::nullopt;
    return host_contract(p, kernels::chosen_target());
  }
  kernels::Status run(const Attention& p, const AttentionOutput& out, int threads) override { return kernels::attention_forward(p, out, threads); }
  bool has_cache() const override { return true; }
  kernels::Status run_cached(const Case& c, const Inputs& in, const AttentionOutput& out, int threads) override {
    return run_through_cache(c, in, out, threads);
  }
  bool has_backward() const override { return true; }
  kernels::Status run_backward(const Attention& p, const AttentionBackwardInput& in, const AttentionGradients& out, int threads) override {
    return kernels::attention_backward(p, in, out, threads);
  }
  // Compiled once more, with a policy that watches, for the best target alone.
  bool offers_stages() const override { return true; }
  kernels::Status run_watched(const Attention& p, const AttentionOutput& out, StageObserver& observer) override {
    return assay::run_watched(no_fault, p, out, observer);
  }
  kernels::Status run_backward_watched(const Attention& p, const AttentionBackwardInput& in, const AttentionGradients& out, StageObserver& observer) override {
    return run_planted_backward(kernel_itself, p, in, out, 1, &observer);
  }
  std::string unsupported_product(const Product&, Dtype) const override { return {}; }
  kernels::Status run_product(const Product& p, const TensorView& c, int threads) override {
    std::shared_ptr<const kernels::PackedWeights> w;
    if (kernels::Status status = kernels::PackedWeights::pack(p.w, w); !status.ok()) return status;
    return p.a ? kernels::product(p.a, *w, c, threads) : kernels::product(p.a_low, *w, c, threads);
  }
  std::optional<ProductContract> product_contract() const override {
    if (!declares_) return std::nullopt;
    return host_product_contract(kernels::chosen_target());
  }
  bool has_quantizer() const override { return true; }
  kernels::Status quantize(const TensorView& w, LowBit format, Index group, kernels::LowBitBytes& to) override {
    return kernels::quantize_weights(w, format, {group == 0 ? -1 : group}, to);
  }

 private:
  bool declares_;
};

class Unfused : public Candidate {
 public:
  std::string name() const override { return "unfused"; }
  std::string unsupported(const Attention& p, Dtype out) const override { return unsupported_dtype(p, out); }
  std::optional<Contract> contract(const Attention&) const override { return unfused_contract(kernels::chosen_target()); }
  kernels::Status run(const Attention& p, const AttentionOutput& out, int threads) override { return kernels::attention_unfused(p, out, threads); }
};

// Whatever the dispatcher chooses: the tiled kernel or the fallback.
class Sdpa : public Candidate {
 public:
  std::string name() const override { return "sdpa"; }
  std::string unsupported(const Attention& p, Dtype out) const override { return unsupported_dtype(p, out); }
  // Of the kernel that the last run chose.
  std::optional<Contract> contract(const Attention& p) const override {
    const std::string target = kernels::chosen_target();
    return dispatcher_.counters().dispatched > 0 ? host_contract(p, target) : unfused_contract(target);
  }
  kernels::Status run(const Attention& p, const AttentionOutput& out, int threads) override {
    dispatcher_.reset_counters();
    kernels::SdpaOptions options;
    options.threads = threads;
    return dispatcher_.sdpa(p, out, options);
  }

 private:
  kernels::Dispatcher dispatcher_;
};

// The kernels of a device, by way of the dispatcher, which must not answer in its place.
class OnDevice : public Candidate {
 public:
  explicit OnDevice(const std::string& device) : device_(device) {
    std::shared_ptr<kernels::Device> opened = kernels::make_device(device);
    if (!opened) throw std::invalid_argument(fmt::format("unknown device '{}'; there are {}", device, fmt::join(kernels::device_names(), ", ")));
    session_ = std::make_shared<kernels::DeviceSession>(std::move(opened));
    if (kernels::Status status = session_->limits(limits_); !status.ok()) throw DeviceUnavailable(fmt::format("device {}: {}", device, status.detail));
    kernels::DispatchSettings settings;
    settings.min_query_length = 0;
    settings.fall_back_on_failure = false;
    dispatcher_ = std::make_unique<kernels::Dispatcher>(std::make_shared<kernels::DeviceBackend>(session_), std::move(settings));
  }
  std::string name() const override { return "device:" + device_; }
  std::string unsupported(const Attention& p, Dtype out) const override {
    if (p.dropout > 0) return "dropout on a device";
    return limits_.has_subnormals ? unsupported_dtype(p, out) : "the device flushes subnormal numbers to zero";
  }
  std::optional<Contract> contract(const Attention& p) const override {
    return device_ == "host" ? host_contract(p, kernels::chosen_target()) : device_contract(limits_.name);
  }
  kernels::Status run(const Attention& p, const AttentionOutput& out, int threads) override {
    dispatcher_->reset_counters();
    kernels::SdpaOptions options;
    options.threads = threads;
    kernels::Status status = dispatcher_->sdpa(p, out, options);
    if (status.ok() && dispatcher_->counters().dispatched != 1) return {kernels::StatusCode::execution_failed, "the dispatcher did not use the device"};
    return status;
  }
  std::string unsupported_product(const Product& p, Dtype) const override {
    if (!p.a) return "a low-bit A on a device";
    if (!kernels::device_product_supports(p.w.format)) return fmt::format("{} weights on a device", traits(p.w.format).name);
    return limits_.has_subnormals ? "" : "the device flushes subnormal numbers to zero";
  }
  kernels::Status run_product(const Product& p, const TensorView& c, int threads) override { return kernels::device_product(*session_, p.a, p.w, c, threads); }
  std::optional<ProductContract> product_contract() const override {
    return device_ == "host" ? host_product_contract(kernels::chosen_target()) : device_product_contract(limits_.name);
  }

 private:
  const std::string device_;
  std::shared_ptr<kernels::DeviceSession> session_;
  kernels::DeviceLimits limits_;
  std::unique_ptr<kernels::Dispatcher> dispatcher_;
};

class Faulty : public Candidate {
 public:
  explicit Faulty(const PlantedFault& fault) : fault_(fault) {}
  std::string name() const override { return "fault:" + std::string(fault_.name); }
  std::string unsupported(const Attention& p, Dtype out) const override { return unsupported_dtype(p, out); }
  std::optional<Contract> contract(const Attention& p) const override { return host_contract(p, std::string(planted_fault_target())); }
  kernels::Status run(const Attention& p, const AttentionOutput& out, int threads) override {
    return fault_.about == Subject::backward ? kernels::attention_forward(p, out, threads) : run_planted_fault(fault_, p, out, threads);
  }
  bool has_cache() const override { return true; }
  kernels::Status run_cached(const Case& c, const Inputs& in, const AttentionOutput& out, int threads) override {
    return fault_.about == Subject::backward ? run_through_cache(c, in, out, threads) : run_planted_cache(fault_, c, in, out, threads);
  }
  bool has_backward() const override { return true; }
  // What a wrong forward pass leaves is not differentiated wrongly on top.
  kernels::Status run_backward(const Attention& p, const AttentionBackwardInput& in, const AttentionGradients& out, int threads) override {
    return fault_.about == Subject::backward ? run_planted_backward(fault_, p, in, out, threads) : kernels::attention_backward(p, in, out, threads);
  }
  bool offers_stages() const override { return true; }
  kernels::Status run_watched(const Attention& p, const AttentionOutput& out, StageObserver& observer) override {
    return assay::run_watched(fault_.about == Subject::backward ? no_fault : fault_.fault, p, out, observer);
  }
  kernels::Status run_backward_watched(const Attention& p, const AttentionBackwardInput& in, const AttentionGradients& out, StageObserver& observer) override {
    return run_planted_backward(fault_.about == Subject::backward ? fault_ : kernel_itself, p, in, out, 1, &observer);
  }
  std::string unsupported_product(const Product&, Dtype) const override { return {}; }
  kernels::Status run_product(const Product& p, const TensorView& c, int threads) override { return run_planted_product(fault_, p, c, threads); }
  std::optional<ProductContract> product_contract() const override { return host_product_contract(std::string(planted_fault_target())); }

 private:
  const PlantedFault& fault_;
};

}  // namespace

kernels::Status Candidate::run_cached(const Case&, const Inputs&, const AttentionOutput&, int) {
  return {kernels::StatusCode::unsupported, name() + " has no cache"};
}

kernels::Status Candidate::run_backward(const Attention&, const AttentionBackwardInput&, const AttentionGradients&, int) {
  return {kernels::StatusCode::unsupported, name() + " has no backward pass"};
}

kernels::Status Candidate::run_watched(const Attention&, const AttentionOutput&, StageObserver&) {
  return {kernels::StatusCode::unsupported, name() + " does not tell its stages"};
}

kernels::Status Candidate::run_backward_watched(const Attention&, const AttentionBackwardInput&, const AttentionGradients&, StageObserver&) {
  return {kernels::StatusCode::unsupported, name() + " does not tell its stages"};
}

kernels::Status Candidate::run_product(const Product&, const TensorView&, int) {
  return {kernels::StatusCode::unsupported, name() + " has no low-bit products"};
}

kernels::Status Candidate::quantize(const TensorView&, LowBit, Index, kernels::LowBitBytes&) {
  return {kernels::StatusCode::unsupported, name() + " does not quantize"};
}

std::unique_ptr<Candidate> make_candidate(const std::string& name) {
  if (name == "host" || name == "host-undeclared") return std::make_unique<Host>(name == "host");
  if (name == "unfused") return std::make_unique<Unfused>();
  if (name == "sdpa") return std::make_unique<Sdpa>();
  if (name.starts_with("device:")) return std::make_unique<OnDevice>(name.substr(7));
  if (name.starts_with("lib:")) return make_library_candidate(name.substr(4));
  if (name.starts_with("fault:"))
    for (const PlantedFault& f : planted_faults)
      if (name.substr(6) == f.name) return std::make_unique<Faulty>(f);
  throw std::invalid_argument(fmt::format("unknown candidate '{}'; there are {}; `assay faults --list` has the {} names of faults", name,
                                          fmt::join(candidate_names(), ", "), planted_faults.size()));
}

std::vector<std::string> candidate_names() {
  std::vector<std::string> names = {"host", "host-undeclared", "unfused", "sdpa"};
  for (const std::string& device : kernels::device_names()) names.push_back("device:" + device);
  names.push_back("lib:PATH");
  names.push_back("fault:NAME");
  return names;
}

}  // namespace assay
