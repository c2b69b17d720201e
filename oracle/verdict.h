// The verdict on the outputs of one case: every element against its proved bound.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "oracle/power.h"

namespace assay {

// pass: every judged element is inside its bound, and something was. suspect: passes, but signed
// errors lean. inconclusive: nothing was judged by its bound. The rest is for whoever runs
// candidates.
enum class Outcome : std::uint8_t { pass, fail, suspect, inconclusive, unsupported, error };
template <>
inline constexpr auto table_of<Outcome> = complete<Named<Outcome>>({
    {Outcome::pass, "pass"},
    {Outcome::fail, "fail"},
    {Outcome::suspect, "suspect"},
    {Outcome::inconclusive, "inconclusive"},
    {Outcome::unsupported, "unsupported"},
    {Outcome::error, "error"},
});

enum class Output : std::uint8_t { o, lse, dq, dk, dv, d_bias, d_sink, c };
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
});

// One element and how it stands to its bound. row is a key in dK and dV; column is -1 for LSE, a
// key in dBias. C has b = h = 0.
struct Element {
  Output output = Output::o;
  Index b = 0, h = 0, row = 0, column = -1;
  double got = 0, exact = 0;
  double bound = 0;  // of |got - exact|, the output rounding included
  double ratio = 0;  // error / bound; infinite where the error is not a number
  double ulp = 0;    // error in ulp of the output dtype
  std::string why;   // of a failure
};

// "outside its bound: O[b=0, h=1, row=2, column=3] = ..., exact ..., bound ..."
std::string describe(const Element& e);

// What was compared of one output.
struct Compared {
  std::int64_t elements = 0, inside = 0;
  Element
      worst;  // the largest ratio, kept on a pass too; its bound is 0 where no element has a ratio
};

// For each visible pair (row, key): whether leaving it out of the sum would move some element of a
// gradient by more than twice its bound.
struct GradientPower {
  std::int64_t pairs = 0, by_dq = 0, by_dk = 0, by_dv = 0, by_any = 0;

  void add(const GradientPower& other);
};

struct Verdict {
  Outcome outcome = Outcome::inconclusive;
  std::string reason;                  // one sentence
  std::string contract;                // that the bound was derived from
  Index tile = 64, row_tile = 64;      // of that contract
  std::map<Output, Compared> outputs;  // those of which some element was compared
  std::int64_t inside = 0, outside = 0, hull_only = 0;
  std::int64_t exact = 0;                        // judged with zero tolerance, among inside
  std::map<std::string, std::int64_t> excused;   // elements by reason
  std::map<std::string, std::int64_t> failures;  // elements by what is wrong with them
  std::int64_t nan_expected = 0, nan_found = 0, infinity_expected = 0, infinity_found = 0;
  Element first_failure;  // by output, b, h, row and column; LSE of a row comes before its O
  double mean_ratio = 0;  // mean of signed error / bound over O: the bias
  double slope_t = 0;     // t statistic of the slope of error on value, across rows
  Index rows_judged = 0, rows_total = 0;
  std::vector<Index> sampled;  // the first rows of each head that a sample took, at most 8; empty:
                               // all rows were judged
  Index sample_rows = 0;       // rows of each head in that sample
  std::uint64_t sample_seed = 0;   // that it was drawn with
  std::int64_t rows_in_balls = 0;  // decided or cross-checked in ball arithmetic
  Power power;
  GradientPower gradient_power;

  // Elements that were compared: of one output, of all.
  std::int64_t compared(Output output) const;
  std::int64_t compared() const;
  // The element of the largest ratio; null where no element of the output has one.
  const Element* worst(Output output) const;
  double worst_ratio(Output output) const;  // 0 where no element has one
};

struct JudgeOptions {
  bool without_lse =
      false;  // O alone is judged where LSE is absent; otherwise its absence is a failure
  int threads = 1;
  Index sample_rows = 0;  // judge so many seeded rows of each head; 0: all
  std::uint64_t seed = 1;
  int ball_rows = 1;  // rows that are cross-checked in ball arithmetic, seeded
  bool power = true;
  bool statistics =
      false;  // let a leaning error make the case suspect (inputs of independent zero mean only)
  std::function<bool(const TensorView&, Index position)>
      untouched;  // whether an element still holds its poison
  std::function<void(const Element&)>
      judged;  // told of each element that a bound decided or that failed, by any of the threads
};

// `out.o` and `out.lse` as the candidate left them; a null lse is a failure, for LSE is always
// judged.
Verdict judge(const ProjectedAttention& problem, const AttentionOutput& out,
              const Contract& contract, const JudgeOptions& options = {});

// For a candidate that declares nothing: the verdict under the strictest contract of the ladder
// that is not refuted, or under the most lenient one if all are.
Verdict judge_by_ladder(const ProjectedAttention& problem, const AttentionOutput& out, Index tile,
                        const JudgeOptions& options = {});

}  // namespace assay
