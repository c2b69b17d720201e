#include "harness/candidate.h"

#include <fmt/format.h>

#include <stdexcept>

#include "harness/cached.h"
#include "harness/contracts.h"
#include "harness/planted_faults.h"
#include "kernels/attention.h"
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
  bool has_products() const override { return true; }
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

class Faulty : public Candidate {
 public:
  explicit Faulty(const PlantedFault& fault) : fault_(fault) {}
  std::string name() const override { return "fault:" + std::string(fault_.name); }
  std::string unsupported(const Attention& p, Dtype out) const override { return unsupported_dtype(p, out); }
  std::optional<Contract> contract(const Attention& p) const override { return host_contract(p, std::string(planted_fault_target())); }
  kernels::Status run(const Attention& p, const AttentionOutput& out, int threads) override {
    return fault_.suite == "backward" ? kernels::attention_forward(p, out, threads) : run_planted_fault(fault_, p, out, threads);
  }
  bool has_cache() const override { return true; }
  kernels::Status run_cached(const Case& c, const Inputs& in, const AttentionOutput& out, int threads) override {
    return fault_.suite == "backward" ? run_through_cache(c, in, out, threads) : run_planted_cache(fault_, c, in, out, threads);
  }
  bool has_backward() const override { return true; }
  // What a wrong forward pass leaves is not differentiated wrongly on top.
  kernels::Status run_backward(const Attention& p, const AttentionBackwardInput& in, const AttentionGradients& out, int threads) override {
    return fault_.suite == "backward" ? run_planted_backward(fault_, p, in, out, threads) : kernels::attention_backward(p, in, out, threads);
  }
  bool has_products() const override { return true; }
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
  if (name.starts_with("fault:"))
    for (const PlantedFault& f : planted_faults())
      if (name.substr(6) == f.name) return std::make_unique<Faulty>(f);
  throw std::invalid_argument(fmt::format("unknown candidate '{}'; there are {}", name, fmt::join(candidate_names(), ", ")));
}

std::vector<std::string> candidate_names() {
  std::vector<std::string> names = {"host", "host-undeclared", "unfused", "sdpa"};
  for (const PlantedFault& f : planted_faults()) names.push_back("fault:" + std::string(f.name));
  return names;
}

}  // namespace assay
