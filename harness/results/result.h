// The result of one case. Judging makes it, workers send it, and reports and stores read it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "harness/results/pictures.h"
#include "harness/results/described.h"
#include "oracle/diagnosis.h"
#include "oracle/product.h"
#include "oracle/verdict.h"

namespace assay {

// The answer of one metamorphic relation.
struct Relation {
  enum class How : std::uint8_t { held, violated, not_applicable } how = How::held;
  std::string why;  // empty if it held
  // What the question left out, by reason: so many variants that do not do this case.
  std::map<std::string, std::int64_t> declined = {};
  static constexpr std::string_view convention = "differs by convention: ";

  bool differs_by_convention() const {
    return how == How::not_applicable && why.starts_with(convention);
  }

  static Relation held() { return {}; }
  static Relation violated(std::string why) { return {How::violated, std::move(why), {}}; }
  static Relation not_applicable(std::string why) {
    return {How::not_applicable, std::move(why), {}};
  }
  // The candidate does otherwise, as many do, and is not wrong for it.
  static Relation by_convention(const std::string& what) {
    return not_applicable(std::string(convention) + what);
  }
  // Held if the difference is empty, otherwise violated by this difference.
  static Relation unless(std::string difference) {
    return difference.empty() ? held() : violated(std::move(difference));
  }
  // Two calls differ, and the candidate does not promise that they do not.
  static constexpr std::string_view unpromised = "not promised, and differs: ";
  static Relation differs_unpromised(const std::string& how) {
    return not_applicable(std::string(unpromised) + how);
  }
  bool is_unpromised() const { return how == How::not_applicable && why.starts_with(unpromised); }
  bool operator==(const Relation&) const = default;
};
template <>
inline constexpr auto table_of<Relation::How> = complete<Named<Relation::How>>({
    {Relation::How::held, "held"},
    {Relation::How::violated, "violated"},
    {Relation::How::not_applicable, "not applicable"},
});
// "held", "violated: ..." or "not applicable: ...".
std::string text_of(const Relation& relation);
using Relations = std::map<std::string, Relation>;

struct Seconds {
  double generate = 0, candidate = 0, judge = 0;
  double sum() const { return generate + candidate + judge; }
  bool operator==(const Seconds&) const = default;
};

struct CaseResult {
  std::string line;  // the line of the case; for a record without one, its name and file
  std::string candidate;
  std::string reproduce;  // a command
  std::string dtype;      // the dtype of Q, or of the weights of a product; empty: nothing was run
  Outcome outcome = Outcome::error;
  std::string reason;
  bool bad_input = false;  // the error lies in the request, not in this machine
  // The smallest failing line that was found; empty if none was looked for.
  std::string shrunk;
  Seconds seconds;
  Verdict verdict;      // without outputs: nothing was compared
  Diagnosis diagnosis;  // of a failing verdict
  Index tail_step = 1;  // a tail is shorter than a tile by a multiple of this number
  Relations relations;
  // The error of the quantized weights of a product, which does not depend on the kernel.
  std::optional<QuantizationError> quantization;
  std::optional<Pictures> pictures;  // present if they were asked for and something was judged

  bool was_compared() const { return !verdict.outputs.empty(); }
  std::int64_t elements_compared() const;
};

// The largest error/bound of a result and its output; infinity counts too. Nothing if no output has
// a bound.
std::optional<std::pair<Output, double>> worst_ratio(const CaseResult& result);
// The largest error/bound that is a finite number; -1 if there is none.
double worst_finite_ratio(const CaseResult& result);

// A tail of 2:4 sparse weights is shorter than a tile by a multiple of four.
inline Index tail_step_of(LowBit format) { return format == LowBit::fp4_sparse ? 4 : 1; }

// Whether the candidate was right as far as it was judged.
inline bool passed(Outcome outcome) {
  return outcome == Outcome::pass || outcome == Outcome::suspect || outcome == Outcome::convention;
}

// The document of a result: docs/results.md says what each field is.
Json to_json(const CaseResult& result);
// Throws SchemaError, whose message begins with `where`.
void read_json(const Json& json, const std::string& where, CaseResult& result);

}  // namespace assay
