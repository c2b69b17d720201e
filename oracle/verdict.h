// The verdict on the outputs of one case, in which every element is compared with its proved bound.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "oracle/contract.h"
#include "oracle/evidence.h"
#include "oracle/power.h"
#include "problem/conventions.h"

namespace assay {

// pass: every judged element is inside its bound, and there was at least one. suspect: as pass, but
// the signed errors lean to one side. inconclusive: no element was judged by its bound. convention:
// as pass, but under conventions that are not ours and that nobody declared. The other outcomes are
// for the code that runs candidates.
enum class Outcome : std::uint8_t {
  pass,
  fail,
  suspect,
  inconclusive,
  unsupported,
  error,
  convention
};
template <>
inline constexpr auto table_of<Outcome> = complete<Named<Outcome>>({
    {Outcome::pass, "pass"},
    {Outcome::fail, "fail"},
    {Outcome::suspect, "suspect"},
    {Outcome::inconclusive, "inconclusive"},
    {Outcome::unsupported, "unsupported"},
    {Outcome::error, "error"},
    {Outcome::convention, "convention"},
});

enum class Output : std::uint8_t { o, lse, dq, dk, dv, d_bias, d_sink, c, w, tokens };
template <>
inline constexpr auto table_of<Output> = complete<Named<Output>>({
    {Output::o, "O"},
    {Output::lse, "LSE"},
    {Output::dq, "dQ"},
    {Output::dk, "dK"},
    {Output::dv, "dV"},
    {Output::d_bias, "dBias"},
    {Output::d_sink, "dSink"},
    {Output::c, "C"},
    {Output::w, "W"},            // as a quantizer stores it, or a dequantizer reads it
    {Output::tokens, "tokens"},  // as they are stored in a cache
});

// One element and how its error compares with its bound. For dK and dV, `row` is a key. For LSE,
// `column` is -1; for dBias it is a key. C and W have b = h = 0, and a row of W is a k.
struct Element {
  Output output = Output::o;
  Index b = 0, h = 0, row = 0, column = -1;
  double got = 0, exact = 0;
  double bound = 0;  // of |got - exact|, the output rounding included
  double ratio = 0;  // error / bound; infinite where the error is not a number
  double ulp = 0;    // error in ulp of the output dtype
  std::string why;   // why it fails; empty if it does not
};

// "outside its bound: O[b=0, h=1, row=2, column=3] = ..., exact ..., bound ..."
std::string describe(const Element& e);

// The elements of one output that were compared.
struct Compared {
  std::int64_t elements = 0, inside = 0;
  // The element with the largest ratio, which is also kept for a pass. Its bound is 0 where no
  // element has a ratio.
  Element worst;
};

// The number of visible pairs (row, key), and the numbers of those that move some element of a
// gradient by more than twice its bound if they are left out of the sum.
struct GradientPower {
  std::int64_t pairs = 0, by_dq = 0, by_dk = 0, by_dv = 0, by_any = 0;

  void add(const GradientPower& other);
};

struct Verdict {
  Outcome outcome = Outcome::inconclusive;
  std::string reason;        // one sentence
  bool by_evidence = false;  // it fails, although no bound is violated
  std::string contract;      // name of the contract from which the bound was derived
  // That contract, and the one of gradients if it is another. Nothing if no bound was derived.
  std::optional<Arithmetic> arithmetic;
  std::optional<Contract> gradient_arithmetic;
  bool declared = true;                // by the candidate; otherwise it is a rung of the ladder
  Index tile = 64, row_tile = 64;      // of that contract
  std::map<Output, Compared> outputs;  // outputs of which some element was compared
  std::int64_t inside = 0, outside = 0, hull_only = 0;
  std::int64_t exact = 0;                        // judged with zero tolerance, among inside
  std::map<std::string, std::int64_t> excused;   // elements by reason
  std::map<std::string, std::int64_t> failures;  // elements by what is wrong with them
  std::int64_t nan_expected = 0, nan_found = 0, infinity_expected = 0, infinity_found = 0;
  // The first in the order of output, b, h, row and column; the LSE of a row comes before its O.
  Element first_failure;
  double mean_ratio = 0;  // mean of signed error / bound over O, which is the bias
  double slope_t = 0;     // t statistic of the slope of error on value, across rows
  Index rows_judged = 0, rows_total = 0;
  // The first rows, at most 8, that a sample took of each head; empty: all rows were judged.
  std::vector<Index> sampled;
  Index sample_rows = 0;           // number of rows of each head in that sample
  std::uint64_t sample_seed = 0;   // seed of that sample
  std::int64_t rows_in_balls = 0;  // number of rows that were decided or cross-checked in balls
  // The conventions that nobody declared and that are not ours, under which this is the verdict.
  Conventions differs;
  Power power;
  GradientPower gradient_power;
  Evidence evidence;                 // without an arithmetic: nothing was asked
  std::vector<SuspectRow> suspects;  // of O; only while a case is judged

  // The number of elements that were compared, for one output and for all.
  std::int64_t compared(Output output) const;
  std::int64_t compared() const;
  // The element of the largest ratio; null where no element of the output has one.
  const Element* worst(Output output) const;
  double worst_ratio(Output output) const;  // 0 where no element has one
};

// "differs by convention: masked-rows:nan (O of a row that sees no key); ..."
std::string told_conventions(const Conventions& differs);

struct JudgeOptions {
  // What the kernel is said to mean where nobody agreed. Where nothing is declared, ours is
  // expected, and outputs that are right under other values are told as a convention.
  Conventions conventions = Conventions::ours();
  // Whether O alone is judged if LSE is absent. Without this option a missing LSE is a failure.
  bool without_lse = false;
  int threads = 1;
  Index sample_rows = 0;  // number of rows of each head that are judged, drawn by the seed; 0: all
  std::uint64_t seed = 1;
  int ball_rows = 1;  // number of rows that are cross-checked in balls, chosen by the seed
  bool power = true;
  EvidenceRule evidence = EvidenceRule::off;
  // Whether errors that lean to one side make the case suspect. This is only right for inputs that
  // are independent and of zero mean.
  bool statistics = false;
  // Says whether an element still holds the poison that was written before the kernel ran.
  std::function<bool(const TensorView&, Index position)> untouched;
  // It is called for each element that a bound decided or that failed, from any of the threads.
  std::function<void(const Element&)> judged;
};

// Judges `out.o` and `out.lse` as the candidate left them. A missing LSE is a failure unless
// options.without_lse is set.
Verdict judge(const ProjectedAttention& problem, const AttentionOutput& out,
              const Contract& contract, const JudgeOptions& options = {});

// Judges a candidate that declares no contract: the verdict is the one under the strictest contract
// of the ladder that is not refuted, or under the most lenient one if all are refuted.
Verdict judge_by_ladder(const ProjectedAttention& problem, const AttentionOutput& out, Index tile,
                        const JudgeOptions& options = {});

}  // namespace assay
