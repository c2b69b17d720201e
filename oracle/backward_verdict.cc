#include "oracle/backward_verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "oracle/backward.h"
#include "oracle/conventional.h"
#include "oracle/decide.h"
#include "oracle/gradient_power.h"
#include "oracle/row_sample.h"
#include "oracle/spread_gradients.h"
#include "oracle/tally.h"
#include "oracle/weigh.h"
#include "problem/parallel.h"

namespace assay {
namespace {

class GradientJudge {
 public:
  GradientJudge(const Attention& problem, const AttentionGradients& out, const Contract& contract,
                const JudgeOptions& options, Tally& tally)
      : shape_(problem.shape), out_(out), contract_(contract), options_(options), tally_(tally) {}

  // Judges dQ of the chosen rows of a group of heads.
  void judge_queries(Index b, Index g, const std::vector<Index>& rows,
                     const GroupGradients& exact) {
    for (Index h = g * shape_.group(); h < (g + 1) * shape_.group(); ++h) {
      const Gradient& dq = exact.dq[usize(h % shape_.group())];
      for (std::size_t r = 0; r < rows.size(); ++r) {
        ++tally_.verdict.rows_judged;
        for (Index d = 0; d < shape_.dim; ++d)
          judge(out_.dq, out_.dq.at(b, h, rows[r], d), dq, static_cast<Index>(r), d,
                element_at(Output::dq, b, h, rows[r], d));
      }
    }
  }

  // Judges dK and dV of a group of heads.
  void judge_keys(Index b, Index g, const GroupGradients& exact) {
    for (Index j = 0; j < shape_.keys; ++j) {
      for (Index d = 0; d < shape_.dim; ++d)
        judge(out_.dk, out_.dk.at(b, g, j, d), exact.dk, j, d, element_at(Output::dk, b, g, j, d));
      for (Index d = 0; d < shape_.value_dim; ++d)
        judge(out_.dv, out_.dv.at(b, g, j, d), exact.dv, j, d, element_at(Output::dv, b, g, j, d));
    }
  }

  void judge_bias(const BackwardReference& reference, const Gradient& exact) {
    // A broadcast axis has its one element even if nothing is summed into it.
    auto extent = [&](std::size_t axis, Index n) { return out_.d_bias.stride[axis] == 0 ? 1 : n; };
    const Extents extents = {extent(0, shape_.batch), extent(1, shape_.query_heads),
                             extent(2, shape_.rows), extent(3, shape_.keys)};
    for_each_index(extents, [&](Index b, Index h, Index i, Index j) {
      judge(out_.d_bias, out_.d_bias.at(b, h, i, j), exact, reference.bias_element(b, h, i, j), 0,
            element_at(Output::d_bias, b, h, i, j));
    });
  }

  void judge_sink(const Gradient& exact) {
    for (Index h = 0; h < exact.rows; ++h)
      judge(out_.d_sink, out_.d_sink.at(0, h, 0, 0), exact, h, 0,
            element_at(Output::d_sink, 0, h, 0, 0));
  }

 private:
  // Judges one element of `g`; `e` says where it is.
  void judge(const TensorView& out, Index position, const Gradient& g, Index row, Index column,
             Element e) {
    const auto at = usize(row);
    const auto index = usize(row * g.columns + column);
    const double y = load(out, position), value = g.value[index], bound = g.bound[index];
    const bool is_nan = g.taint[index] == Taint::nan;
    const std::string name(name_of(e.output));
    measure(e, y, value, 0, stored_bound(bound, value, out.dtype, contract_.roundoff), out.dtype);
    if (is_nan) e.exact = std::numeric_limits<double>::quiet_NaN();
    tally_.compare(e);
    if (options_.untouched && options_.untouched(out, position) && !(is_nan && std::isnan(y)))
      return tally_.fail(e, name + " was not written");
    if (std::isnan(y) && !is_nan && !g.spread.empty() && g.spread[index])
      return tally_.excuse(spreads_by_convention);
    if (!g.touched[at])
      return y == 0 ? tally_.inside(e, true)
                    : tally_.fail(e, name + " is not 0 where no gradient passes");
    if (is_nan) {
      ++tally_.verdict.nan_expected;
      return std::isnan(y) ? tally_.inside(e)
                           : tally_.fail(e, name + " is a number where NaN belongs");
    }
    if (g.taint[index] == Taint::anything)
      return tally_.excuse("an infinity, or a sum that may leave the range, takes part");
    if (g.may_overflow[index] && !std::isfinite(y))
      return tally_.excuse("sums may leave the range");
    if (std::isnan(y)) return tally_.fail(e, name + " is NaN");
    if (!std::isfinite(bound)) return tally_.hold_to_hull();
    if (std::isfinite(y)) tally_.rate(e);
    const bool flushed = y == 0 && options_.conventions.of<Subnormals>() == Subnormals::flushed;
    switch (
        decide(flushed ? flushed_preimage(out.dtype) : preimage(y, out.dtype, contract_.roundoff),
               value, 0, g.ratio[at] * bound, bound, std::min(g.slack[at], 1.0))) {
      case Decision::inside:
        tally_.inside(e);
        if (e.bound > 0) tally_.tell(e);
        return;
      case Decision::undecided: return tally_.excuse("within the oracle's own error of the bound");
      case Decision::outside:
        return tally_.fail(e, name + (std::isinf(y) ? " is infinite" : " is outside its bound"));
    }
  }

  const AttentionShape& shape_;
  const AttentionGradients& out_;
  const Contract& contract_;
  const JudgeOptions& options_;
  Tally& tally_;
};

// The certificate keeps two floats for each pair, and costs about as much as a matrix product.
constexpr Index most_certified_pairs = Index{1} << 26;

// Judges each group, and at the end the gradients that are summed over all groups.
void judge_groups(const Attention& problem, const AttentionBackwardInput& input,
                  const AttentionGradients& out, const Contract& contract,
                  const JudgeOptions& options, const std::vector<Index>& rows, Tally& total) {
  const AttentionShape& s = problem.shape;
  const BackwardReference reference(problem, input, out, contract);
  const bool all_rows = std::ssize(rows) == s.rows;
  const bool certify =
      options.power && all_rows && s.group() * s.rows * s.keys <= most_certified_pairs;
  SharedGradients shared = reference.no_shared_gradients();
  std::mutex mutex;
  // Sums over heads or batches take one group after the other, on one thread.
  const int threads = shared.d_bias.rows + shared.d_sink.rows > 0 ? 1 : options.threads;
  parallel_for(s.batch * s.kv_heads, threads, [&](Index task) {
    const Index b = task / s.kv_heads, g = task % s.kv_heads;
    GroupGradients exact = reference.evaluate(b, g, rows, shared, certify);
    if (options.conventions.of<MaskedNan>() == MaskedNan::spreads)
      mark_spread(problem, input, reference, b, g, rows, exact, shared);
    Tally mine(options);
    if (certify)
      certify_gradients(problem, input.d_o, b, g, exact, out, contract.roundoff,
                        mine.verdict.gradient_power);
    GradientJudge judge(problem, out, contract, options, mine);
    judge.judge_queries(b, g, rows, exact);
    if (all_rows) judge.judge_keys(b, g, exact);
    const std::lock_guard lock(mutex);
    total.merge(mine);
  });
  if (!all_rows) return;
  reference.finish(shared);
  GradientJudge judge(problem, out, contract, options, total);
  if (shared.d_bias.rows > 0) judge.judge_bias(reference, shared.d_bias);
  judge.judge_sink(shared.d_sink);
}

// The verdict by bounds alone, under the conventions of the options.
Verdict judge_bounds(const Attention& given, const AttentionBackwardInput& input,
                     const AttentionGradients& out, const Contract& contract,
                     const JudgeOptions& options) {
  const Attention problem = anchored(given, options.conventions);
  const AttentionShape& s = problem.shape;
  const std::vector<Index> rows = rows_to_judge(s.rows, options.sample_rows, options.seed);
  Tally tally(options);
  judge_groups(problem, input, out, contract, options, rows, tally);
  Verdict v = tally.finish();
  v.contract = contract.name;
  v.arithmetic = contract;
  v.tile = contract.backward_tile > 0 ? contract.backward_tile : contract.tile;
  v.row_tile = contract.backward_row_tile > 0 ? contract.backward_row_tile : contract.row_tile;
  v.rows_total = s.batch * s.query_heads * s.rows;
  conclude(v, v.inside,
           {.element = "gradient",
            .judged = "gradient",
            .nothing = "the problem has no gradient",
            .hull_only = "without a bound"});
  if (v.outcome == Outcome::pass && std::ssize(rows) < s.rows)
    v.reason +=
        fmt::format("; dQ of {} rows a head only: dK, dV and sums need every row", rows.size());
  return v;
}

// The bounds of gradients allow for what the stored O and LSE are off. So they say little where the
// forward pass meant something else, and gradients are right by a convention only if O and LSE are.
bool stored_forward_is_right(const ProjectedAttention& problem, const AttentionBackwardInput& input,
                             const JudgeOptions& options) {
  JudgeOptions quick = options;
  quick.judged = nullptr;
  quick.power = false;
  quick.evidence = EvidenceRule::off;
  quick.without_lse = !input.lse;
  const Verdict v = judge_by_ladder(problem, {input.o, input.lse}, 64, quick);
  return v.outcome != Outcome::fail && v.outcome != Outcome::error &&
         v.outcome != Outcome::convention;
}

// by_convention() for gradients.
Verdict gradients_by_convention(const Attention& problem, const AttentionBackwardInput& input,
                                const JudgeOptions& options,
                                const std::function<Verdict(const JudgeOptions&)>& judge_under) {
  return by_convention(problem, judge_under(options), options, [&](const JudgeOptions& tried) {
    Verdict v = judge_under(tried);
    if (v.outcome != Outcome::fail && !stored_forward_is_right(problem, input, tried))
      v.outcome = Outcome::fail;
    return v;
  });
}

// Asks the evidence about a verdict, under the conventions that it has found.
void ask_evidence(Verdict& v, const Attention& problem, const AttentionBackwardInput& input,
                  const AttentionGradients& out, const Contract& strict,
                  std::span<const Contract> contracts, const JudgeOptions& options) {
  if (!is_weighed(v, options)) return;
  const Conventions under = v.differs.over(options.conventions);
  std::vector<Contract> asked;
  for (const Contract& c : contracts) asked.push_back(flushing(under, c));
  take_evidence(v,
                weigh_backward(anchored(problem, under), input, out, flushing(under, strict), asked,
                               v, options),
                options.evidence);
}

}  // namespace

Verdict judge_backward(const Attention& problem, const AttentionBackwardInput& input,
                       const AttentionGradients& out, const Contract& contract,
                       const JudgeOptions& options) {
  Verdict v = gradients_by_convention(problem, input, options, [&](const JudgeOptions& under) {
    return judge_by({&contract, 1}, problem, under,
                    [&](const Attention& p, const Contract& c, const JudgeOptions& o) {
                      return judge_bounds(p, input, out, c, o);
                    });
  });
  ask_evidence(v, problem, input, out, contract, {&contract, 1}, options);
  return v;
}

void add_gradients(Verdict& forward, const Verdict& gradients) {
  const Outcome before = forward.outcome;
  add(forward.evidence, gradients.evidence);
  forward.by_evidence = gradients.by_evidence;
  const Index rows = forward.rows_judged;
  add(forward, gradients);
  forward.rows_judged = rows;
  // If the gradients could not be judged, the case remains undecided, however good O is.
  if (gradients.outcome != Outcome::pass || before == Outcome::pass) {
    forward.outcome = gradients.outcome;
    forward.reason = gradients.reason;
  }
  forward.differs = gradients.differs.over(forward.differs);
  if (forward.outcome == Outcome::convention) forward.reason = told_conventions(forward.differs);
  if (gradients.contract == forward.contract) return;
  forward.contract += "; gradients: " + gradients.contract;
  if (gradients.arithmetic) forward.gradient_arithmetic = std::get<Contract>(*gradients.arithmetic);
}

Verdict judge_backward_by_ladder(const Attention& problem, const AttentionBackwardInput& input,
                                 const AttentionGradients& out, const JudgeOptions& options) {
  const std::vector<Contract> ladder = backward_ladder(problem.q.dtype, 64, problem.shape.group());
  Verdict v = gradients_by_convention(problem, input, options, [&](const JudgeOptions& under) {
    return judge_by(ladder, problem, under,
                    [&](const Attention& p, const Contract& c, const JudgeOptions& o) {
                      return judge_bounds(p, input, out, c, o);
                    });
  });
  const auto first = std::ranges::find(ladder, v.contract, &Contract::name);
  ask_evidence(v, problem, input, out, ladder.front(), {first, ladder.end()}, options);
  return v;
}

}  // namespace assay
