#include "oracle/backward_verdict.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <tuple>

#include "oracle/backward.h"
#include "oracle/decide.h"
#include "oracle/gradient_power.h"
#include "problem/parallel.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

bool precedes(const Element& a, const Element& b) { return std::tie(a.output, a.b, a.h, a.row, a.column) < std::tie(b.output, b.b, b.h, b.row, b.column); }

Element place(Output output, Index b, Index h, Index row, Index column) {
  Element e;
  e.output = output;
  e.b = b;
  e.h = h;
  e.row = row;
  e.column = column;
  return e;
}

class GradientJudge {
 public:
  GradientJudge(const Contract& contract, const JudgeOptions& options, Verdict& v) : contract_(contract), options_(options), v_(v) {}

  // One element of `g`; `e` says where it is.
  void judge(const TensorView& out, Index position, const Gradient& g, Index row, Index column, Element e) {
    const auto at = static_cast<std::size_t>(row), index = static_cast<std::size_t>(row * g.columns + column);
    const double y = load(out, position), value = g.value[index], bound = g.bound[index];
    Compared& compared = v_.outputs[e.output];
    ++compared.elements;
    v_.nan_found += std::isnan(y);
    v_.infinity_found += std::isinf(y);
    const std::string name(name_of(e.output));
    const bool rounds = unit_roundoff(out.dtype) > contract_.roundoff;
    e.got = y;
    e.exact = g.taint[index] == Taint::nan ? std::numeric_limits<double>::quiet_NaN() : value;
    e.bound = bound + (rounds ? half_ulp(out.dtype, std::fabs(value) + bound) : 0);
    const double error = std::fabs(y - value);
    e.ratio = error == 0 ? 0 : error <= inf ? error / e.bound : inf;
    e.ulp = error / (2 * half_ulp(out.dtype, value));
    if (options_.untouched && options_.untouched(out, position) && !(g.taint[index] == Taint::nan && std::isnan(y))) return fail(e, name + " was not written");
    if (!g.touched[at]) return y == 0 ? inside_exactly() : fail(e, name + " is not 0 where no gradient passes");
    if (g.taint[index] == Taint::nan) {
      ++v_.nan_expected;
      return std::isnan(y) ? void(++v_.inside) : fail(e, name + " is a number where NaN belongs");
    }
    if (g.taint[index] == Taint::anything) return excuse("an infinity, or a sum that may leave the range, takes part");
    if (g.may_overflow[index] && !std::isfinite(y)) return excuse("sums may leave the range");
    if (std::isnan(y)) return fail(e, name + " is NaN");
    if (!std::isfinite(bound)) {
      ++v_.hull_only;
      return;
    }
    if (std::isfinite(y) && e.bound > 0 && (e.ratio > compared.worst.ratio || compared.worst.bound == 0)) compared.worst = e;
    switch (decide(preimage(y, out.dtype, contract_.roundoff), value, 0, g.ratio[at] * bound, bound, std::min(g.slack[at], 1.0))) {
      case Decision::inside:
        ++v_.inside;
        if (options_.judged && e.bound > 0) options_.judged(e);
        return;
      case Decision::undecided: return excuse("within the oracle's own error of the bound");
      case Decision::outside: return fail(e, name + (std::isinf(y) ? " is infinite" : " is outside its bound"));
    }
  }

 private:
  void inside_exactly() {
    ++v_.inside;
    ++v_.exact;
  }
  void excuse(const char* reason) { ++v_.excused[reason]; }
  void fail(Element e, std::string why) {
    ++v_.outside;
    ++v_.failures[why];
    e.why = std::move(why);
    if (options_.judged) options_.judged(e);
    if (v_.outside == 1 || precedes(e, v_.first_failure)) v_.first_failure = e;
  }

  const Contract& contract_;
  const JudgeOptions& options_;
  Verdict& v_;
};

void merge(Verdict& into, const Verdict& w) {
  if (w.outside > 0 && (into.outside == 0 || precedes(w.first_failure, into.first_failure))) into.first_failure = w.first_failure;
  for (auto member : {&Verdict::inside, &Verdict::outside, &Verdict::hull_only, &Verdict::exact, &Verdict::nan_expected, &Verdict::nan_found,
                      &Verdict::infinity_found, &Verdict::rows_judged})
    into.*member += w.*member;
  for (auto member : {&GradientPower::pairs, &GradientPower::by_dq, &GradientPower::by_dk, &GradientPower::by_dv, &GradientPower::by_any})
    into.gradient_power.*member += w.gradient_power.*member;
  for (const auto& [reason, n] : w.excused) into.excused[reason] += n;
  for (const auto& [reason, n] : w.failures) into.failures[reason] += n;
  for (const auto& [output, compared] : w.outputs) {
    Compared& mine = into.outputs[output];
    mine.elements += compared.elements;
    if (compared.worst.ratio > mine.worst.ratio || mine.worst.bound == 0) mine.worst = compared.worst;
  }
}

}  // namespace

Verdict judge_backward(const Attention& problem, const AttentionBackwardInput& input, const AttentionGradients& out, const Contract& contract,
                       const JudgeOptions& options) {
  const AttentionShape& s = problem.shape;
  Verdict v;
  v.contract = contract.name;
  v.tile = contract.backward_tile > 0 ? contract.backward_tile : contract.tile;
  v.row_tile = contract.backward_row_tile > 0 ? contract.backward_row_tile : contract.row_tile;
  v.rows_total = s.batch * s.query_heads * s.rows;
  const BackwardReference reference(problem, input, out, contract);
  const std::vector<Index> rows = rows_to_judge(s.rows, options.sample_rows, options.seed);
  const bool all_rows = static_cast<Index>(rows.size()) == s.rows;
  SharedGradients shared = reference.no_shared_gradients();
  std::mutex mutex;
  // The certificate keeps two floats a pair, and costs about as much as a product.
  const bool certify = options.power && all_rows && s.group() * s.rows * s.keys <= Index{1} << 26;
  // Sums over heads or batches: one group after the other.
  const int threads = shared.d_bias.rows + shared.d_sink.rows > 0 ? 1 : options.threads;
  parallel_for(s.batch * s.kv_heads, threads, [&](Index task) {
    const Index b = task / s.kv_heads, g = task % s.kv_heads;
    const GroupGradients exact = reference.evaluate(b, g, rows, shared, certify);
    Verdict mine;
    if (certify) certify_gradients(problem, input.d_o, b, g, exact, out, contract.roundoff, mine.gradient_power);
    GradientJudge judge(contract, options, mine);
    for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h)
      for (std::size_t r = 0; r < rows.size(); ++r) {
        ++mine.rows_judged;
        for (Index d = 0; d < s.dim; ++d)
          judge.judge(out.dq, out.dq.at(b, h, rows[r], d), exact.dq[static_cast<std::size_t>(h % s.group())], static_cast<Index>(r), d,
                      place(Output::dq, b, h, rows[r], d));
      }
    if (all_rows)
      for (Index j = 0; j < s.keys; ++j) {
        for (Index d = 0; d < s.dim; ++d) judge.judge(out.dk, out.dk.at(b, g, j, d), exact.dk, j, d, place(Output::dk, b, g, j, d));
        for (Index d = 0; d < s.value_dim; ++d) judge.judge(out.dv, out.dv.at(b, g, j, d), exact.dv, j, d, place(Output::dv, b, g, j, d));
      }
    const std::lock_guard lock(mutex);
    merge(v, mine);
  });
  if (all_rows) {
    reference.finish(shared);
    GradientJudge judge(contract, options, v);
    if (shared.d_bias.rows > 0) {
      // The element of a broadcast axis is there even where nothing is summed into it.
      auto extent = [&](std::size_t axis, Index n) { return out.d_bias.stride[axis] == 0 ? 1 : n; };
      for (Index b = 0; b < extent(0, s.batch); ++b)
        for (Index h = 0; h < extent(1, s.query_heads); ++h)
          for (Index i = 0; i < extent(2, s.rows); ++i)
            for (Index j = 0; j < extent(3, s.keys); ++j)
              judge.judge(out.d_bias, out.d_bias.at(b, h, i, j), shared.d_bias, reference.bias_element(b, h, i, j), 0, place(Output::d_bias, b, h, i, j));
    }
    for (Index h = 0; h < shared.d_sink.rows; ++h) judge.judge(out.d_sink, out.d_sink.at(0, h, 0, 0), shared.d_sink, h, 0, place(Output::d_sink, 0, h, 0, 0));
  }

  std::int64_t compared = 0, excused = 0;
  for (const auto& [output, part] : v.outputs) compared += part.elements;
  for (const auto& [reason, n] : v.excused) excused += n;
  if (v.outside > 0) {
    v.outcome = Outcome::fail;
    v.reason = describe(v.first_failure);
  } else if (v.inside == 0) {
    v.outcome = Outcome::inconclusive;
    v.reason = compared == 0 ? "the problem has no gradient" : "no gradient could be judged by its bound";
  } else {
    v.outcome = Outcome::pass;
    v.reason = excused + v.hull_only == 0
                   ? "every gradient is inside its bound"
                   : fmt::format("every gradient that a bound decides is inside it ({} excused, {} without a bound)", excused, v.hull_only);
    if (!all_rows) v.reason += fmt::format("; dQ of {} rows a head only: dK, dV and sums need every row", rows.size());
  }
  return v;
}

void add_gradients(Verdict& forward, const Verdict& gradients) {
  const Outcome before = forward.outcome;
  const Index rows = forward.rows_judged;
  merge(forward, gradients);
  forward.rows_judged = rows;
  // A gradient that nobody could judge leaves the case undecided, however good O is.
  if (gradients.outcome != Outcome::pass || before == Outcome::pass) {
    forward.outcome = gradients.outcome;
    forward.reason = gradients.reason;
  }
  if (gradients.contract != forward.contract) forward.contract += "; gradients: " + gradients.contract;
}

Verdict judge_backward_by_ladder(const Attention& problem, const AttentionBackwardInput& input, const AttentionGradients& out, const JudgeOptions& options) {
  return climb(contract_ladder(problem.q.dtype, 64), options, [&](const Contract& c, const JudgeOptions& o) { return judge_backward(problem, input, out, c, o); });
}

}  // namespace assay
