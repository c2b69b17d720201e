// A candidate: anything that computes attention or a low-bit product and that is judged.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "harness/results/promise.h"
#include "kernels/simd/execution.h"
#include "kernels/product/product.h"
#include "kernels/status.h"
#include "oracle/contract.h"
#include "oracle/product.h"
#include "problem/features.h"
#include "problem/generate.h"
#include "problem/weight_sets.h"

namespace assay {

class StageObserver;
struct PagedTokens;

// The calls that a candidate can be asked to make. Their views belong to the caller and live until
// the call returns.

// Computes O and LSE. out.lse is absent for a candidate that gives none.
struct ForwardCall {
  const Attention& problem;
  AttentionOutput out;
};
// How the keys of a cached call come into pages, for a candidate that reads pages.
enum class PagesFrom : std::uint8_t {
  encoder,  // the harness encodes them
  writer,   // the candidate's own append writes them, before each call of it
  sharing,  // as `encoder`, but a page that holds the same as one of sequence 0 is that page
};
// Computes O and LSE through a cache: appends and calls alternate as the case says.
struct CachedCall {
  const Case& c;
  const Inputs& inputs;
  AttentionOutput out;
  PagesFrom pages = PagesFrom::encoder;
};
// Computes the gradients from O and LSE, which the candidate's own forward call wrote, or the
// host's (forward_by_host).
struct BackwardCall {
  const Attention& problem;
  AttentionBackwardInput in;
  AttentionGradients out;
};
// Computes C = A W.
struct ProductCall {
  const Product& problem;
  TensorView c;
};
// Encodes f32 weights as the bytes of a low-bit matrix. A group of 0 means no scales. `to` has the
// sizes of the matrix and the tensor scale by the rule.
struct QuantizeCall {
  const TensorView& w;
  LowBit format;
  Index group;
  kernels::LowBitBytes& to;
};
// Writes what the bytes of a low-bit matrix mean to a tensor [1, 1, K, N].
struct DequantizeCall {
  const LowBitView& w;
  TensorView to;
};
// Writes tokens into the pages of a cache: token i of sequence b of k [B, Hkv, n, D] and
// v [B, Hkv, n, Dv] goes to slots[b * n + i], and nowhere where that is -1.
struct AppendCall {
  const TensorView &k, &v;
  const std::vector<Index>& slots;
  PagedTokens& to;
};
using Call = std::variant<ForwardCall, CachedCall, BackwardCall, ProductCall, QuantizeCall,
                          DequantizeCall, AppendCall>;

struct Request {
  Call call;
  kernels::Execution how = 1;
  // The observer sees every stage of a forward or backward call. Only candidates that tell their
  // stages take one.
  StageObserver* observer = nullptr;
};

// The execution that the case asks for. Throws CaseError for a SIMD target that this machine does
// not run.
kernels::Execution execution_of(const Case& c);
// The same execution, with another number of threads.
kernels::Execution on_other_threads(const Case& c);

struct Abilities {
  bool forward = true, cache = false, backward = false, product = false, quantizer = false,
       dequantizer = false, append = false;
  // If false, forward and cached calls do not write LSE, and LSE is not judged.
  bool lse = true;
  // Its backward pass begins with O and LSE of the host's kernel, because it has no forward pass,
  // or one that gives no LSE.
  bool gradients_alone = false;
  bool d_sink = true;   // if false, backward calls do not write dSink, and dSink is not judged
  bool stages = false;  // it tells its stages to an observer
  // If true, the bits of a row do not depend on what else is in the call: other rows, chunks or one
  // call, pages or no cache.
  bool promises_bits = true;
  Promises promises = 0;         // less than that, which a candidate declares
  int variants = 1;              // each is judged
  bool variants_differ = false;  // a variant may decline what others do
  // It runs in a process that stays from one call to the next, as in the program that will use it,
  // and gets tensors of the same shapes at the same addresses.
  bool own_process = false;
  bool at_once = false;  // two threads may call it at once, and run_at_once() does so
  bool pages = false;    // its cached calls read pages behind a table, which others may fill
  bool batches = false;  // it computes several products in one call
};

// What the process of a candidate holds: bytes that its allocator has given away, bytes that are in
// memory and are neither a file nor shared, and open descriptors.
struct UsedMemory {
  std::int64_t heap = 0, resident = 0, descriptors = 0;
};

// What is known of a candidate before it is called.
struct CandidateFacts {
  std::string name;
  Abilities abilities = {};
  // The features of cases that the candidate has. A case that needs another one is unsupported, and
  // suites are drawn without it.
  Features features = {};
  // Its conventions, where kernels differ and all of them are right. Without a value, those of our
  // documents if it promises bits, and otherwise none.
  std::optional<Conventions> conventions = {};
  // What its user should know whatever the verdict: an argument that always kept its default.
  std::vector<std::string> remarks = {};
};

class Guest;

class Candidate {
 public:
  virtual ~Candidate() = default;
  const std::string& name() const { return facts_.name; }
  const Abilities& abilities() const { return facts_.abilities; }
  const Features& features() const { return facts_.features; }
  const Conventions& conventions() const { return *facts_.conventions; }
  const std::vector<std::string>& remarks() const { return facts_.remarks; }
  // From now on the candidate computes by this variant, below abilities().variants, and answers for
  // it. A candidate begins with variant 0.
  void use_variant(int variant) { variant_ = variant; }
  int variant() const { return variant_; }

  // Why the candidate does not do this call although abilities() allows it; empty if it does the
  // call.
  virtual std::string unsupported(const Call& call) const = 0;
  // How the candidate computes the call. Without a declaration the judge tries a ladder of
  // contracts.
  virtual std::optional<Arithmetic> arithmetic(const Call& call,
                                               const kernels::Execution& how) const = 0;
  // Runs the call, which abilities() and unsupported() must allow. Throws CandidateError.
  virtual kernels::Status run(const Request& request) = 0;
  // The same candidate as a guest; null if it computes in this process.
  virtual Guest* guest() { return nullptr; }

 protected:
  explicit Candidate(CandidateFacts facts);

 private:
  CandidateFacts facts_;
  int variant_ = 0;
};

// Products of one shape and format, in one call. Those with an A in f32, f16 or bf16 read it from
// `a` [B, 1, M, K]; C is [B, 1, M, N].
struct ProductBatch {
  std::span<const Product> products;
  TensorView a, c;
};

// What can be asked of a candidate of somebody else, which has a process of its own.
class Guest {
 public:
  virtual ~Guest() = default;
  // Why no variant of it does a case, which has no inputs yet; empty if one does. Suites are drawn
  // for the answers. Throws CandidateError.
  virtual std::string declines(const Case& c) const = 0;
  // The rule by which its quantizer rounds E8M0 scales, for the call that unsupported() was asked
  // about last.
  virtual GroupScale scale_rule() const = 0;
  // The same candidate in a process that has computed nothing yet.
  virtual std::unique_ptr<Candidate> fresh() const = 0;
  // Runs two calls of the same kind, each alone and then both at once from two threads, at most so
  // many times. Stops when an output differs from that of the call alone; the outputs are as they
  // are then. Only if abilities() say so. Throws CandidateError and CandidateDeclined.
  virtual kernels::Status run_at_once(const Request& one, const Request& other, int rounds) = 0;
  // Why it does not compute this batch; empty if it does.
  virtual std::string declines(const ProductBatch& batch) const = 0;
  // Computes it, only if abilities() say so. Throws CandidateError.
  virtual kernels::Status run(const ProductBatch& batch, const kernels::Execution& how) = 0;
  // The calls that no kernel can answer and that can be made of a call, by name.
  virtual std::vector<std::string> wrong_calls(const Call& call) const = 0;
  // Makes such a call. Returns what is wrong with it and sets `answer`, or returns an empty text if
  // this call cannot be made wrong so. Throws CandidateError.
  virtual std::string run_wrong(const Request& request, const std::string& name,
                                kernels::Status& answer) = 0;
  // What to know of its process where a case fails; empty if that is nothing.
  virtual std::string remark() const = 0;
  // What its process holds at present. Throws CandidateError.
  virtual UsedMemory used_memory() = 0;
};

// The ability that the candidate lacks for this call, or for this case ("no backward pass"); empty
// if it lacks none.
std::string lacking_ability(const Candidate& candidate, const Call& call);
std::string lacking_ability(const Candidate& candidate, const Case& c);
// What suites are drawn for. A candidate that is asked must live as long. If it breaks while it is
// asked, nothing more counts as declined, so that the cases show how it breaks.
Features drawn_features(Candidate& candidate);
// Why the candidate does not do this call, by abilities() or by unsupported(); empty if it does the
// call.
std::string why_unsupported(const Candidate& candidate, const Call& call);

// The host's kernel, for the O and LSE from which the candidate's gradients of this case are
// computed. Its diagonals lie where those of the candidate do. Null if the candidate computes O and
// LSE itself.
std::unique_ptr<Candidate> forward_by_host(const Candidate& candidate, const Case& c);

// The dtype of what a call writes.
Dtype out_dtype(const Call& call);

// The declared arithmetic, of attention or of a product as C says; nothing if none is declared.
template <class C>
std::optional<C> declared(const Candidate& candidate, const Call& call,
                          const kernels::Execution& how) {
  const std::optional<Arithmetic> arithmetic = candidate.arithmetic(call, how);
  if (!arithmetic) return std::nullopt;
  return std::get<C>(*arithmetic);
}

// Combines one lambda for each kind of call into the visitor that std::visit takes.
template <class... Cases>
struct ByCall : Cases... {
  using Cases::operator()...;
};

// A finding that an adapter reports: the candidate did what no candidate may do.
struct CandidateError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The candidate found while it ran that it does not do this call. The case is unsupported.
struct CandidateDeclined : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct DeviceUnavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// "host": the production kernel; "host-undeclared": the same without its contract; "unfused": the
// dispatcher's fallback; "sdpa": whatever the dispatcher chooses; "device:NAME": the kernels of a
// device (kernels/device/device.h), which is opened at once; "lib:PATH": a shared library
// (library_candidate.h); "python:FILE::FUNCTION": a Python function (python_candidate.h);
// "fault:NAME": the production kernel with a planted fault. Throws
// std::invalid_argument for any other name, DeviceUnavailable if the device cannot be opened.
std::unique_ptr<Candidate> make_candidate(const std::string& name);
// The names that messages offer: those above, with PATH and NAME unreplaced.
std::vector<std::string> candidate_names();

}  // namespace assay
