// Inside harness/judging/: operations whose results a rule gives bit for bit: writers of pages,
// quantizers, dequantizers. What judging them found, and what else is asked of them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/judging/guarded_call.h"
#include "harness/results/result.h"

namespace assay {

struct JudgedBits {
  bool asked = false;
  std::int64_t elements = 0;
  std::string wrong;                 // empty: every bit is that of the rule
  std::optional<Explanation> cause;  // what explains all that is wrong, if it is known
};

// Whether two numbers are stored alike: NaN has no sign and no bits, 0 has a sign.
inline bool stored_alike(double x, double y) {
  return x == y ? std::signbit(x) == std::signbit(y) : std::isnan(x) && std::isnan(y);
}

// A part of what a call writes, and how messages call it.
struct WrittenBytes {
  std::string name;
  std::span<std::byte> bytes;
};

// One call whose result is known. It must not move, because its call refers to it.
class KnownCall {
 public:
  KnownCall() = default;
  KnownCall(const KnownCall&) = delete;
  virtual ~KnownCall() = default;

  virtual Call call() = 0;
  virtual WatchedInputs watched() const = 0;
  // Fills what the call will write with this byte.
  virtual void prepare(std::byte filling) = 0;
  virtual std::vector<WrittenBytes> written() = 0;
  // Where the call wrote something else than the rule says; empty if it did not.
  virtual std::string wrong() = 0;
};

// Fills what the call will write, and makes the call. Returns what is wrong.
std::string make_call(KnownCall& call, Candidate& candidate, const kernels::Execution& how,
                      std::byte filling);

// An operation of a candidate that is judged bit for bit.
struct BitsOperation {
  const char* name;
  Output output;      // the elements are counted as those of this output
  const char* right;  // why a case passes that is judged for nothing else
  // Judges what the candidate does of a case.
  std::function<JudgedBits(const Case&, Candidate&)> judge;
  // One call of those; null if the candidate does not do it.
  std::function<std::unique_ptr<KnownCall>(const Case&, Candidate&)> one_call;
};

// Makes a Known(c, around) for a case; null if the candidate does not do its call.
template <class Known>
auto known_call(Surroundings around) {
  return [around](const Case& c, Candidate& candidate) {
    std::unique_ptr<KnownCall> call = std::make_unique<Known>(c, around);
    if (!why_unsupported(candidate, call->call()).empty()) call.reset();
    return call;
  };
}

// Asks the relations of state.h, about what the candidate keeps from one call to the next. The rule
// says what is right in every call. `begins` is called before each relation.
Relations ask_state(const BitsOperation& of, const Case& c, Candidate& candidate,
                    const std::function<void(const std::string& relation)>& begins);

// Makes every wrong call that can be made of a call of the case.
Relations ask_for_refusals(const BitsOperation& of, const Case& c, Candidate& candidate);

}  // namespace assay
