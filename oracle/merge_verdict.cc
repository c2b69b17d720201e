#include <cmath>
#include <limits>

#include "oracle/decide.h"
#include "oracle/merge.h"
#include "oracle/safety_factors.h"
#include "oracle/tally.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// Balls start with the first number of bits. It is doubled up to the last number until every
// element is decided.
constexpr long first_ball_bits = 128, last_ball_bits = 512;

class MergeJudge {
 public:
  MergeJudge(const MergeProblem& problem, const AttentionOutput& out, const Contract& contract,
             Tally& tally)
      : problem_(problem), out_(out), contract_(contract), tally_(tally) {}

  void judge(Index b, Index h, Index i) {
    b_ = b, h_ = h, i_ = i;
    ++tally_.verdict.rows_judged;
    enclose();
    if (out_.lse) judge_lse();
    for (Index c = 0; c < out_.o.shape[3]; ++c) judge_element(c);
  }

 private:
  // Whether the row has some part with weight, and the LSE of every part is valid.
  bool bounded() const { return !row_.empty && !row_.nan; }
  double got_lse() const { return load(out_.lse, out_.lse.at(b_, h_, i_, 0)); }
  double got_o(Index c) const { return load(out_.o, out_.o.at(b_, h_, i_, c)); }

  // Computes the row, and repeats it in balls of more and more bits as long as an element is
  // undecided.
  void enclose() {
    long bits = contract_.roundoff < safety::least_roundoff_of_fp64 ? first_ball_bits : 0;
    row_ = merge_row(problem_, contract_, b_, h_, i_, bits);
    while (bounded() && bits < last_ball_bits && any_undecided()) {
      bits = bits == 0 ? first_ball_bits : 2 * bits;
      row_ = merge_row(problem_, contract_, b_, h_, i_, bits);
    }
    tally_.verdict.rows_in_balls += bits > 0;
  }

  bool any_undecided() const {
    if (out_.lse && std::isfinite(got_lse()) && decide_lse() == Decision::undecided) return true;
    for (Index c = 0; c < out_.o.shape[3]; ++c)
      if (row_.extended[usize(c)] == 0 && !std::isnan(got_o(c)) &&
          decide_o(c) == Decision::undecided)
        return true;
    return false;
  }

  Decision decide_o(Index c) const {
    return decide(preimage(got_o(c), out_.o.dtype, contract_.roundoff), row_.o[usize(c)],
                  row_.o_low[usize(c)], row_.o_radius[usize(c)], row_.o_bound[usize(c)],
                  safety::merge_slack);
  }
  Decision decide_lse() const {
    return decide(preimage(got_lse(), out_.lse.dtype, contract_.roundoff), row_.lse, row_.lse_low,
                  row_.lse_radius, row_.lse_bound, safety::merge_slack);
  }

  void judge_lse() {
    const Dtype dtype = out_.lse.dtype;
    Element e = element_at(Output::lse, b_, h_, i_, -1);
    if (!bounded()) {
      measure(e, got_lse(), row_.nan ? nan : -inf, 0, 0, dtype);
      tally_.compare(e);
      return judge_special(e, row_.nan ? "LSE is a number where NaN belongs"
                                       : "LSE of a row without weight is not -inf");
    }
    measure(e, got_lse(), row_.lse, row_.lse_low,
            stored_bound(row_.lse_bound, row_.lse, dtype, contract_.roundoff), dtype);
    tally_.compare(e);
    if (!std::isfinite(e.got))
      return tally_.fail(e, std::isnan(e.got) ? "LSE is NaN" : "LSE is infinite");
    rate(e);
    if (decide_lse() == Decision::outside) return tally_.fail(e, "LSE is outside its bound");
    tally_.inside(e);
  }

  void judge_element(Index c) {
    const Dtype dtype = out_.o.dtype;
    const double y = got_o(c);
    Element e = element_at(Output::o, b_, h_, i_, c);
    if (!bounded()) {
      measure(e, y, row_.nan ? nan : 0, 0, 0, dtype);
      tally_.compare(e);
      return judge_special(
          e, row_.nan ? "O is a number where NaN belongs" : "a row without weight is not 0");
    }
    const double o = row_.o[usize(c)], extended = row_.extended[usize(c)];
    const bool special = extended != 0;
    measure(e, y, special ? extended : o, special ? 0 : row_.o_low[usize(c)],
            stored_bound(row_.o_bound[usize(c)], o, dtype, contract_.roundoff), dtype);
    tally_.compare(e);
    if (special && row_.underflow[usize(c)] && std::isnan(y))
      return tally_.excuse("an infinity in O under a weight that may underflow");
    if (special)
      return judge_special(e, std::isnan(extended) ? "O is a number where NaN belongs"
                                                   : "O is not the infinity that belongs there");
    rate(e);
    if (row_.may_overflow[usize(c)] && !std::isfinite(y))
      return tally_.excuse("sums may leave the range");
    if (std::isnan(y)) return tally_.fail(e, "O is NaN");
    if (decide_o(c) == Decision::outside)
      return tally_.fail(e, std::isinf(y) ? "O is infinite" : "O is outside its bound");
    tally_.inside(e);
  }

  // Judges an element whose exact value is NaN, an infinity, or a zero without weight. There is
  // nothing to bound.
  void judge_special(const Element& e, const char* why) {
    if (std::isnan(e.exact)) ++tally_.verdict.nan_expected;
    if (std::isinf(e.exact)) ++tally_.verdict.infinity_expected;
    const bool same = std::isnan(e.exact) ? std::isnan(e.got) : e.got == e.exact;
    if (same) tally_.inside(e);
    else tally_.fail(e, why);
  }

  void rate(const Element& e) {
    if (std::isfinite(e.ratio)) tally_.rate(e);
  }

  const MergeProblem& problem_;
  const AttentionOutput& out_;
  const Contract& contract_;
  Tally& tally_;
  Index b_ = 0, h_ = 0, i_ = 0;
  MergedRow row_;
};

}  // namespace

Verdict judge_merge(const MergeProblem& problem, const AttentionOutput& out,
                    const Contract& contract) {
  const JudgeOptions options;
  Tally tally(options);
  MergeJudge judge(problem, out, contract, tally);
  const Extents& shape = out.o.shape;
  for (Index b = 0; b < shape[0]; ++b)
    for (Index h = 0; h < shape[1]; ++h)
      for (Index i = 0; i < shape[2]; ++i) judge.judge(b, h, i);
  Verdict v = tally.finish();
  v.contract = contract.name;
  v.arithmetic = contract;
  v.rows_total = v.rows_judged;
  conclude(v, v.inside, {});
  return v;
}

}  // namespace assay
