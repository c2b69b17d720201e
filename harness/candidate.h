// A candidate: anything that computes attention and is put to the test.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/execution.h"
#include "kernels/product.h"
#include "kernels/status.h"
#include "oracle/contract.h"
#include "oracle/product.h"
#include "problem/generate.h"

namespace assay {

class StageObserver;

class Candidate {
 public:
  virtual ~Candidate() = default;
  virtual std::string name() const = 0;
  // Why the candidate does not do this problem; empty if it does.
  virtual std::string unsupported(const Attention& problem, Dtype out) const = 0;
  // How it computes on a SIMD target; nothing if it declares nothing, and then a ladder of contracts is tried.
  virtual std::optional<Contract> contract(const Attention& problem, const kernels::Target& target) const = 0;
  virtual kernels::Status run(const Attention& problem, const AttentionOutput& out, const kernels::Execution& how) = 0;

  // O and LSE by way of a cache, as the case says: appends and calls in turn. Called only where has_cache() says so.
  virtual bool has_cache() const { return false; }
  // As unsupported(), of a case with a cache.
  virtual std::string unsupported_cached(const Case&, const Attention& problem, Dtype out) const { return unsupported(problem, out); }
  // Whether a row has the same bits whatever else is in the call: other rows, in chunks or at once, in pages or without a cache.
  virtual bool bits_are_promised() const { return true; }
  virtual kernels::Status run_cached(const Case& c, const Inputs& inputs, const AttentionOutput& out, const kernels::Execution& how);

  // False: run() leaves LSE alone, which is then absent, and nothing is judged of it.
  virtual bool gives_lse() const { return true; }

  virtual bool has_backward() const { return false; }
  // As unsupported(), of the backward pass alone.
  virtual std::string unsupported_backward(const Attention&, Dtype) const { return {}; }
  // Called only where has_backward() says so, with O and LSE as run() left them.
  virtual kernels::Status run_backward(const Attention& problem, const AttentionBackwardInput& in, const AttentionGradients& out, const kernels::Execution& how);

  // Whether the two below tell their stages.
  virtual bool offers_stages() const { return false; }
  virtual kernels::Status run_watched(const Attention& problem, const AttentionOutput& out, const kernels::Target& target, StageObserver& observer);
  virtual kernels::Status run_backward_watched(const Attention& problem, const AttentionBackwardInput& in, const AttentionGradients& out, const kernels::Target& target, StageObserver& observer);

  // Why the candidate does not do this product; empty if it does.
  virtual std::string unsupported_product(const Product&, Dtype) const { return "no low-bit products"; }
  // Called only where unsupported_product() says nothing, as quantize() where has_quantizer() does.
  virtual kernels::Status run_product(const Product& problem, const TensorView& c, const kernels::Execution& how);
  virtual std::optional<ProductContract> product_contract(const kernels::Target&) const { return std::nullopt; }
  virtual bool has_quantizer() const { return false; }
  virtual kernels::Status quantize(const TensorView& w, LowBit format, Index group, kernels::LowBitBytes& to);
};

// What a candidate did that no candidate may, told by its adapter: a finding.
struct CandidateError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct DeviceUnavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// "host": the production kernel; "host-undeclared": the same without its contract; "unfused": the
// dispatcher's fallback; "device:NAME": the kernels of a device (kernels/device/device.h), which is opened at once; "lib:PATH": a shared library (harness/library_candidate.h); "fault:NAME":
// the production kernel with a planted fault. Throws std::invalid_argument for any other name, DeviceUnavailable if the device cannot be opened.
std::unique_ptr<Candidate> make_candidate(const std::string& name);
// What messages offer: those names, with PATH and NAME as they stand.
std::vector<std::string> candidate_names();

}  // namespace assay
