// A candidate: anything that computes attention or a low-bit product and is put to the test.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "kernels/simd/execution.h"
#include "kernels/product/product.h"
#include "kernels/status.h"
#include "oracle/contract.h"
#include "oracle/product.h"
#include "problem/generate.h"

namespace assay {

class StageObserver;

// What a candidate can be called for. Views are those of the caller and live until the call
// returns.

// O and LSE. out.lse is absent for a candidate that gives none.
struct ForwardCall {
  const Attention& problem;
  AttentionOutput out;
};
// O and LSE by way of a cache, as the case says: appends and calls in turn.
struct CachedCall {
  const Case& c;
  const Inputs& inputs;
  AttentionOutput out;
};
// The gradients, from O and LSE as the candidate's own forward call left them.
struct BackwardCall {
  const Attention& problem;
  AttentionBackwardInput in;
  AttentionGradients out;
};
// C = A W.
struct ProductCall {
  const Product& problem;
  TensorView c;
};
// The bytes of a low-bit matrix, from f32 weights. group 0: one scale for the whole tensor.
struct QuantizeCall {
  const TensorView& w;
  LowBit format;
  Index group;
  kernels::LowBitBytes& to;
};
using Call = std::variant<ForwardCall, CachedCall, BackwardCall, ProductCall, QuantizeCall>;

struct Request {
  Call call;
  kernels::Execution how = 1;
  // Told of every stage of a forward or backward call; only for candidates that tell their stages.
  StageObserver* observer = nullptr;
};

// How the case asks its candidate to run. Throws CaseError for a SIMD target that this machine does
// not run.
kernels::Execution execution_of(const Case& c);
// The same on another number of threads.
kernels::Execution on_other_threads(const Case& c);

struct Abilities {
  bool forward = true, cache = false, backward = false, product = false, quantizer = false;
  bool lse = true;  // false: forward and cached calls leave LSE alone, and nothing is judged of it
  bool stages = false;  // tells its stages to an observer
  // A row has the same bits whatever else is in the call: other rows, in chunks or at once, in
  // pages or without a cache.
  bool promises_bits = true;
};

// The arithmetic that a candidate declares: of attention, or of products.
using Arithmetic = std::variant<Contract, ProductContract>;

class Candidate {
 public:
  virtual ~Candidate() = default;
  virtual std::string name() const = 0;
  virtual Abilities abilities() const = 0;
  // Why the candidate does not do this call, though its abilities say nothing against it; empty if
  // it does.
  virtual std::string unsupported(const Call& call) const = 0;
  // How it computes the call; nothing if it declares nothing, and then a ladder of contracts is
  // tried.
  virtual std::optional<Arithmetic> arithmetic(const Call& call,
                                               const kernels::Execution& how) const = 0;
  // Only what abilities() and unsupported() do not exclude. Throws CandidateError.
  virtual kernels::Status run(const Request& request) = 0;
};

// Which ability a candidate lacks for this call ("no backward pass"); empty if none.
std::string lacking_ability(const Candidate& candidate, const Call& call);
// Why a candidate does not do this call, by its abilities or by what it says of the call; empty if
// it does.
std::string why_unsupported(const Candidate& candidate, const Call& call);

// The dtype of what a call writes.
Dtype out_dtype(const Call& call);

// The declared arithmetic of attention or of a product; nothing where nothing is declared.
template <class C>
std::optional<C> declared(const Candidate& candidate, const Call& call,
                          const kernels::Execution& how) {
  const std::optional<Arithmetic> arithmetic = candidate.arithmetic(call, how);
  if (!arithmetic) return std::nullopt;
  return std::get<C>(*arithmetic);
}

// One lambda for each kind of call, as std::visit wants them.
template <class... Cases>
struct ByCall : Cases... {
  using Cases::operator()...;
};

// What a candidate did that no candidate may, told by its adapter: a finding.
struct CandidateError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct DeviceUnavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// "host": the production kernel; "host-undeclared": the same without its contract; "unfused": the
// dispatcher's fallback; "sdpa": whatever the dispatcher chooses; "device:NAME": the kernels of a
// device (kernels/device/device.h), which is opened at once; "lib:PATH": a shared library
// (library_candidate.h); "fault:NAME": the production kernel with a planted fault. Throws
// std::invalid_argument for any other name, DeviceUnavailable if the device cannot be opened.
std::unique_ptr<Candidate> make_candidate(const std::string& name);
// What messages offer: those names, with PATH and NAME as they stand.
std::vector<std::string> candidate_names();

}  // namespace assay
