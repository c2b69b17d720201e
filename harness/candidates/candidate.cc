#include "harness/candidates/candidate.h"

#include <fmt/format.h>

#include <stdexcept>

#include "harness/candidates/cached.h"
#include "harness/candidates/contracts.h"
#include "harness/candidates/library_candidate.h"
#include "harness/candidates/python_candidate.h"
#include "harness/faults/planted_faults.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs.h"
#include "kernels/device/device_backend.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/simd/targets.h"
#include "kernels/attention/unfused.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

using kernels::Execution;
using kernels::Status;

std::string unsupported_dtype(const Attention& p, Dtype out) {
  for (Dtype d : {p.q.dtype, out})
    if (d != Dtype::f32 && d != Dtype::f16 && d != Dtype::bf16)
      return fmt::format("dtype {}", format(d).name);
  return {};
}

// The caches of this project have scales of E8M0, and lay out their pages themselves.
std::string unsupported_cache(const CacheSpec& k) {
  if (k.scale != CacheScale::e8m0)
    return fmt::format("a cache with scales of {}", name_of(k.scale));
  if (k.order != PageOrder::apart) return fmt::format("pages={}", name_of(k.order));
  return {};
}

// In attention calls the candidates of this file take the three dtypes of attention; empty for
// products and for those dtypes.
std::string unsupported_dtype(const Call& call) {
  const auto of = [&](const Attention& p) { return unsupported_dtype(p, out_dtype(call)); };
  return std::visit(ByCall{[&](const ForwardCall& c) { return of(c.problem); },
                           [&](const CachedCall& c) {
                             const std::string why = unsupported_cache(c.c.cache);
                             return why.empty() ? of(c.inputs.problem) : why;
                           },
                           [&](const BackwardCall& c) { return of(c.problem); },
                           [](const auto&) { return std::string(); }},
                    call);
}

// The problem of an attention call; null for a product.
const Attention* attention_of(const Call& call) {
  return std::visit(
      ByCall{[](const ForwardCall& c) { return &c.problem; },
             [](const CachedCall& c) { return static_cast<const Attention*>(&c.inputs.problem); },
             [](const BackwardCall& c) { return &c.problem; },
             [](const auto&) { return static_cast<const Attention*>(nullptr); }},
      call);
}

Arithmetic host_arithmetic(const Call& call, const kernels::Target& target) {
  return std::visit(
      ByCall{[&](const CachedCall& c) -> Arithmetic {
               return host_forward_contract(c.inputs.problem, c.c.cache_dtype(), target);
             },
             [&](const ForwardCall& c) -> Arithmetic {
               return host_forward_contract(c.problem, c.problem.k.dtype, target);
             },
             [&](const BackwardCall& c) -> Arithmetic {
               return host_backward_contract(c.problem, c.in.d_o.dtype, target);
             },
             [&](const ProductCall& c) -> Arithmetic {
               return host_product_contract(c.problem, target);
             },
             [&](const auto&) -> Arithmetic { return host_product_contract(target.name()); }},
      call);
}

Status run_host_product(const ProductCall& c, const Execution& how) {
  const Product& p = c.problem;
  std::shared_ptr<const kernels::PackedWeights> w;
  if (Status status = kernels::PackedWeights::pack(p.w, w); !status.ok()) return status;
  return p.a ? kernels::product(p.a, *w, c.c, how) : kernels::product(p.a_low, *w, c.c, how);
}

constexpr PlantedFault kernel_itself{};

// What the host's kernel means by subnormal numbers if no declared arithmetic says it: on a machine
// that multiplies pairs of bf16 they are 0. Nothing: what it means elsewhere.
std::optional<Conventions> conventions_of_host(bool declares) {
  const bool flushes =
      kernels::computes_in_pairs(kernels::Target(), Dtype::bf16, Dtype::bf16, Dtype::bf16);
  if (declares || !flushes) return std::nullopt;
  Conventions meant = Conventions::ours();
  meant.declare(Subnormals::flushed);
  return meant;
}

class Host : public Candidate {
 public:
  // The stages are compiled a second time, with a policy that watches, for the best targets and the
  // baseline only.
  explicit Host(bool declares, std::optional<Conventions> conventions = {})
      : Candidate({.name = declares ? "host" : "host-undeclared",
                   .abilities = {.cache = true,
                                 .backward = true,
                                 .product = true,
                                 .quantizer = true,
                                 .stages = true},
                   .conventions = std::move(conventions)}),
        declares_(declares) {}
  std::string unsupported(const Call& call) const override { return unsupported_dtype(call); }
  std::optional<Arithmetic> arithmetic(const Call& call, const Execution& how) const override {
    if (!declares_) return std::nullopt;
    return host_arithmetic(call, how.target);
  }
  Status run(const Request& r) override {
    return std::visit(
        ByCall{[&](const ForwardCall& c) {
                 if (r.observer)
                   return run_watched(no_fault, c.problem, c.out, r.how.target, *r.observer);
                 return kernels::attention_forward(c.problem, c.out, r.how);
               },
               [&](const CachedCall& c) { return run_through_cache(c.c, c.inputs, c.out, r.how); },
               [&](const BackwardCall& c) {
                 if (r.observer)
                   return run_planted_backward(kernel_itself, c.problem, c.in, c.out, r.how,
                                               r.observer);
                 return kernels::attention_backward(c.problem, c.in, c.out, r.how);
               },
               [&](const ProductCall& c) { return run_host_product(c, r.how); },
               [&](const QuantizeCall& c) {
                 const Index group = c.group == 0 ? -1 : c.group;
                 return kernels::quantize_weights(c.w, c.format, {group}, c.to);
               },
               [](const auto&) -> Status {
                 return {kernels::StatusCode::unsupported, "the host's kernels do not do this"};
               }},
        r.call);
  }

 private:
  bool declares_;
};

// The host's kernel, for a candidate that has gradients alone. Its conventions are the host's,
// except for the diagonal.
class ForwardOfHost : public Host {
 public:
  explicit ForwardOfHost(const Conventions& others) : Host(true, with_diagonal_of(others)) {}
  Status run(const Request& r) override {
    const auto& c = std::get<ForwardCall>(r.call);
    const Attention problem = anchored<Attention>(c.problem, conventions());
    return Host::run({ForwardCall{problem, c.out}, r.how, r.observer});
  }

 private:
  static Conventions with_diagonal_of(const Conventions& others) {
    Conventions meant = Conventions::ours();
    meant.declare(Convention::anchor, others.index(Convention::anchor));
    return meant;
  }
};

class Unfused : public Candidate {
 public:
  Unfused() : Candidate({.name = "unfused"}) {}
  std::string unsupported(const Call& call) const override { return unsupported_dtype(call); }
  std::optional<Arithmetic> arithmetic(const Call&, const Execution& how) const override {
    return unfused_contract(how.target.name());
  }
  Status run(const Request& r) override {
    const auto& c = std::get<ForwardCall>(r.call);
    return kernels::attention_unfused(c.problem, c.out, r.how);
  }
};

// Runs whatever the dispatcher chooses: the tiled kernel or the fallback.
class Sdpa : public Candidate {
 public:
  Sdpa() : Candidate({.name = "sdpa"}) {}
  std::string unsupported(const Call& call) const override { return unsupported_dtype(call); }
  // The arithmetic of the kernel that the last run chose.
  std::optional<Arithmetic> arithmetic(const Call& call, const Execution& how) const override {
    if (dispatcher_.counters().dispatched > 0) return host_arithmetic(call, how.target);
    return unfused_contract(how.target.name());
  }
  Status run(const Request& r) override {
    const auto& c = std::get<ForwardCall>(r.call);
    dispatcher_.reset_counters();
    kernels::SdpaOptions options;
    options.execution = r.how;
    return dispatcher_.sdpa(c.problem, c.out, options);
  }

 private:
  kernels::Dispatcher dispatcher_;
};

// Runs the kernels of a device through the dispatcher, whose fallback must not answer instead.
class OnDevice : public Candidate {
 public:
  explicit OnDevice(const std::string& device)
      : Candidate({.name = "device:" + device, .abilities = {.product = true}}), device_(device) {
    std::shared_ptr<kernels::Device> opened = kernels::make_device(device);
    if (!opened)
      throw std::invalid_argument(fmt::format("unknown device '{}'; there are {}", device,
                                              fmt::join(kernels::device_names(), ", ")));
    session_ = std::make_shared<kernels::DeviceSession>(std::move(opened));
    if (Status status = session_->limits(limits_); !status.ok())
      throw DeviceUnavailable(fmt::format("device {}: {}", device, status.detail));
    kernels::DispatchSettings settings;
    settings.min_query_length = 0;
    settings.fall_back_on_failure = false;
    auto backend = std::make_shared<kernels::DeviceBackend>(session_);
    dispatcher_ = std::make_unique<kernels::Dispatcher>(std::move(backend), std::move(settings));
  }
  std::string unsupported(const Call& call) const override {
    if (const Attention* p = attention_of(call)) {
      if (p->dropout > 0) return "dropout on a device";
      return flushes() ? flushes() : unsupported_dtype(call);
    }
    const Product& p = std::get<ProductCall>(call).problem;
    if (!p.a) return "a low-bit A on a device";
    if (!kernels::device_product_supports(p.w.format))
      return fmt::format("{} weights on a device", traits(p.w.format).name);
    return flushes() ? flushes() : "";
  }
  std::optional<Arithmetic> arithmetic(const Call& call, const Execution& how) const override {
    if (device_ == "host") return host_arithmetic(call, how.target);
    if (attention_of(call)) return device_contract(limits_.name);
    return device_product_contract(limits_.name);
  }
  Status run(const Request& r) override {
    if (const auto* c = std::get_if<ProductCall>(&r.call))
      return kernels::device_product(*session_, c->problem.a, c->problem.w, c->c, r.how);
    return run_attention(std::get<ForwardCall>(r.call), r.how);
  }

 private:
  const char* flushes() const {
    return limits_.has_subnormals ? nullptr : "the device flushes subnormal numbers to zero";
  }
  Status run_attention(const ForwardCall& c, const Execution& how) {
    dispatcher_->reset_counters();
    kernels::SdpaOptions options;
    options.execution = how;
    Status status = dispatcher_->sdpa(c.problem, c.out, options);
    if (status.ok() && dispatcher_->counters().dispatched != 1)
      return {kernels::StatusCode::execution_failed, "the dispatcher did not use the device"};
    return status;
  }

  const std::string device_;
  std::shared_ptr<kernels::DeviceSession> session_;
  kernels::DeviceLimits limits_;
  std::unique_ptr<kernels::Dispatcher> dispatcher_;
};

// The production kernels with one fault. What the fault is not about is computed right.
class Faulty : public Candidate {
 public:
  Faulty(const PlantedFault& fault, bool declares)
      : Candidate(
            {.name = (declares ? "fault:" : "fault-undeclared:") + std::string(fault.name),
             .abilities = {.cache = true, .backward = true, .product = true, .stages = true}}),
        fault_(fault),
        of_backward_(fault.about == FaultSubject::backward),
        declares_(declares) {}
  std::string unsupported(const Call& call) const override { return unsupported_dtype(call); }
  std::optional<Arithmetic> arithmetic(const Call& call, const Execution& how) const override {
    if (!declares_) return std::nullopt;
    return host_arithmetic(call, planted_fault_target(how.target));
  }
  // Stages that decide wrongly are compiled for products of floats alone, so pairs of bf16 would
  // not be the arithmetic that is declared.
  Status run(const Request& asked) override {
    Request r = asked;
    r.how.target = planted_fault_target(asked.how.target);
    return std::visit(ByCall{[&](const ForwardCall& c) { return run_forward(c, r); },
                             [&](const CachedCall& c) {
                               if (of_backward_)
                                 return run_through_cache(c.c, c.inputs, c.out, r.how);
                               return run_planted_cache(fault_, c.c, c.inputs, c.out, r.how);
                             },
                             [&](const BackwardCall& c) { return run_backward(c, r); },
                             [&](const ProductCall& c) {
                               return run_planted_product(fault_, c.problem, c.c, r.how);
                             },
                             [](const auto&) -> Status {
                               return {kernels::StatusCode::unsupported, "no quantizer"};
                             }},
                      r.call);
  }

 private:
  Status run_forward(const ForwardCall& c, const Request& r) const {
    if (r.observer)
      return run_watched(of_backward_ ? no_fault : fault_.fault, c.problem, c.out, r.how.target,
                         *r.observer);
    if (of_backward_) return kernels::attention_forward(c.problem, c.out, r.how);
    return run_planted_fault(fault_, c.problem, c.out, r.how);
  }
  // With a fault of another subject the backward pass is the right one, so that the gradients do
  // not add an error of their own.
  Status run_backward(const BackwardCall& c, const Request& r) const {
    const PlantedFault& fault = of_backward_ ? fault_ : kernel_itself;
    if (r.observer) return run_planted_backward(fault, c.problem, c.in, c.out, r.how, r.observer);
    if (!of_backward_) return kernels::attention_backward(c.problem, c.in, c.out, r.how);
    return run_planted_backward(fault_, c.problem, c.in, c.out, r.how);
  }

  const PlantedFault& fault_;
  const bool of_backward_, declares_;
};

}  // namespace

Candidate::Candidate(CandidateFacts facts) : facts_(std::move(facts)) {
  if (!facts_.conventions)
    facts_.conventions = facts_.abilities.promises_bits ? Conventions::ours() : Conventions();
}

Dtype out_dtype(const Call& call) {
  return std::visit(ByCall{[](const ForwardCall& c) { return c.out.o.dtype; },
                           [](const CachedCall& c) { return c.out.o.dtype; },
                           [](const BackwardCall& c) { return c.out.dq.dtype; },
                           [](const ProductCall& c) { return c.c.dtype; },
                           [](const QuantizeCall&) { return Dtype::f32; },
                           [](const DequantizeCall& c) { return c.to.dtype; },
                           [](const AppendCall& c) { return c.k.dtype; }},
                    call);
}

namespace {

constexpr const char *no_forward = "no forward pass", *no_cache = "no cache",
                     *no_backward = "no backward pass", *no_product = "no low-bit products",
                     *no_quantizer = "no quantizer", *no_dequantizer = "no dequantizer",
                     *no_append = "no append";

}  // namespace

std::string lacking_ability(const Candidate& candidate, const Call& call) {
  const Abilities& can = candidate.abilities();
  return std::visit(
      ByCall{[&](const ForwardCall&) { return can.forward ? "" : no_forward; },
             [&](const CachedCall&) { return can.cache ? "" : no_cache; },
             [&](const BackwardCall&) { return can.backward ? "" : no_backward; },
             [&](const ProductCall&) { return can.product ? "" : no_product; },
             [&](const QuantizeCall&) { return can.quantizer ? "" : no_quantizer; },
             [&](const DequantizeCall&) { return can.dequantizer ? "" : no_dequantizer; },
             [&](const AppendCall&) { return can.append ? "" : no_append; }},
      call);
}

std::string lacking_ability(const Candidate& candidate, const Case& c) {
  const Abilities& can = candidate.abilities();
  // A candidate that only quantizes or dequantizes is judged on what it does of a product.
  if (c.operation == Operation::product)
    return can.product || can.quantizer || can.dequantizer ? "" : no_product;
  if (c.cache) return can.cache || can.append ? "" : no_cache;
  const bool backward = c.operation == Operation::backward;
  if (!can.forward && !(backward && can.gradients_alone)) return no_forward;
  return backward && !can.backward ? no_backward : "";
}

Features drawn_features(Candidate& candidate) {
  const Guest* guest = candidate.guest();
  if (!guest) return candidate.features();
  return Features([guest, broken = std::make_shared<bool>(false)](const Case& c) {
    try {
      return *broken ? std::string() : guest->declines(c);
    } catch (const CandidateError&) {
      *broken = true;
      return std::string();
    }
  });
}

std::string why_unsupported(const Candidate& candidate, const Call& call) {
  const std::string lacking = lacking_ability(candidate, call);
  return lacking.empty() ? candidate.unsupported(call) : lacking;
}

std::unique_ptr<Candidate> forward_by_host(const Candidate& candidate, const Case& c) {
  if (!candidate.abilities().gradients_alone) return nullptr;
  return std::make_unique<ForwardOfHost>(c.conventions.over(candidate.conventions()));
}

kernels::Execution execution_of(const Case& c) {
  const std::optional<kernels::Target> target = kernels::Target::named(c.target);
  if (!target)
    throw CaseError(0, fmt::format("target={} is not one that this machine runs: {}", c.target,
                                   fmt::join(kernels::runnable_targets(), ", ")));
  return {static_cast<int>(c.threads), *target};
}

kernels::Execution on_other_threads(const Case& c) {
  kernels::Execution how = execution_of(c);
  how.threads = c.threads == 1 ? 2 : 1;
  return how;
}

std::unique_ptr<Candidate> make_candidate(const std::string& name) {
  if (name == "host" || name == "host-undeclared") {
    const bool declares = name == "host";
    return std::make_unique<Host>(declares, conventions_of_host(declares));
  }
  if (name == "unfused") return std::make_unique<Unfused>();
  if (name == "sdpa") return std::make_unique<Sdpa>();
  if (name.starts_with("device:")) return std::make_unique<OnDevice>(name.substr(7));
  if (name.starts_with("lib:")) return make_library_candidate(name.substr(4));
  if (name.starts_with("python:")) return make_python_candidate(name.substr(7));
  for (const bool declares : {true, false}) {
    const std::string_view prefix = declares ? "fault:" : "fault-undeclared:";
    if (!name.starts_with(prefix)) continue;
    for (const PlantedFault& f : planted_faults)
      if (name.substr(prefix.size()) == f.name) return std::make_unique<Faulty>(f, declares);
  }
  throw std::invalid_argument(
      fmt::format("unknown candidate '{}'; there are {}; `assay faults --list` has the {} names of "
                  "faults",
                  name, fmt::join(candidate_names(), ", "), planted_faults.size()));
}

std::vector<std::string> candidate_names() {
  std::vector<std::string> names = {"host", "host-undeclared", "unfused", "sdpa"};
  for (const std::string& device : kernels::device_names()) names.push_back("device:" + device);
  names.push_back("lib:PATH");
  names.push_back("python:FILE::FUNCTION");
  names.push_back("fault:NAME");
  names.push_back("fault-undeclared:NAME");
  return names;
}

}  // namespace assay
