#include "harness/judging/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "harness/candidates/candidate.h"
#include "harness/judging/step.h"
#include "harness/results/told_arithmetic.h"
#include "harness/shortage.h"
#include "harness/text.h"
#include "kernels/simd/bf16_dots.h"
#include "oracle/backward_verdict.h"
#include "oracle/stages.h"
#include "oracle/visibility.h"

namespace assay {
namespace {

using kernels::Stage;
using kernels::StageView;

constexpr std::array<std::string_view, stage_count> stage_names = {"query",
                                                                   "key",
                                                                   "value",
                                                                   "scores",
                                                                   "masked",
                                                                   "row_max",
                                                                   "rescale",
                                                                   "weights",
                                                                   "row_sum",
                                                                   "accumulated",
                                                                   "output",
                                                                   "lse",
                                                                   "output_gradient",
                                                                   "delta",
                                                                   "weight_gradients",
                                                                   "score_gradients",
                                                                   "query_gradient",
                                                                   "key_gradient",
                                                                   "value_gradient"};

constexpr const char* no_place = "belongs to no head or key of the problem";

bool is_load(Stage s) {
  return s == Stage::query || s == Stage::key || s == Stage::value || s == Stage::output_gradient;
}

// The stages are told in f32, whatever the kernel keeps, so the rounding to f32 adds to the error.
Expected as_told(Expected e) {
  if (std::isfinite(e.value))
    e.error += 0x1p-24 * std::fabs(e.value) + 0x1p-150;  // -infinity is told exactly
  return e;
}

// Compares the stages that it is told. A row has one state for each (b, head, row, first key).
class Follower : public StageObserver {
 public:
  Follower(const Attention& problem, const Contract& contract, const Conventions& conventions,
           Trace& trace, const AttentionBackwardInput* backward)
      : p_(problem),
        reference_(problem, contract, conventions, backward),
        backward_(backward),
        trace_(trace) {}

  bool heard() const { return heard_; }

  void at(Stage stage, const StageView& v) override {
    heard_ = true;
    trace_.stages[static_cast<std::size_t>(stage)].told += v.rows * v.columns;
    const bool of_backward = stage >= Stage::output_gradient,
               of_forward = stage == Stage::masked || stage == Stage::row_max ||
                            stage == Stage::rescale || stage == Stage::row_sum ||
                            stage == Stage::accumulated || stage == Stage::output ||
                            stage == Stage::lse;
    if ((of_backward && !backward_) || (of_forward && backward_) || v.columns < 1)
      return find({stage,
                   v.b,
                   v.head,
                   v.row0,
                   0,
                   0,
                   0,
                   {},
                   v.columns < 1 ? "was told without a column" : "does not belong to this pass",
                   {}});
    switch (stage) {
      case Stage::query: return loaded(stage, v, p_.q, p_.shape.query_heads);
      case Stage::key: return loaded(stage, v, p_.k, p_.shape.kv_heads);
      case Stage::value: return loaded(stage, v, p_.v, p_.shape.kv_heads);
      case Stage::output_gradient: return loaded(stage, v, backward_->d_o, p_.shape.query_heads);
      case Stage::query_gradient:
      case Stage::key_gradient:
      case Stage::value_gradient:
        // These are sums over values that were compared already. The verdict judges them as
        // outputs.
        return;
      default: break;
    }
    const auto outside = [](Index x, Index end) { return x < 0 || x >= end; };
    if (outside(v.b, p_.shape.batch) || outside(v.head, p_.shape.query_heads) ||
        outside(v.row0, largest_extent) || outside(v.first_key, largest_extent) ||
        outside(v.key0, std::max<Index>(p_.shape.keys, 1)) || v.key0 < v.first_key ||
        outside(v.keys, largest_extent))
      return find({stage, v.b, v.head, v.row0, v.first_key, v.key0, v.keys, {}, no_place, {}});
    // A tile may reach beyond the last row.
    for (Index r = 0; r < std::min(v.rows, p_.shape.rows - v.row0); ++r) {
      const Index i = v.row0 + r;
      const StageRow& row = reference_.row(v.b, v.head, i);
      if (row.judged()) follow(stage, v, r, row);
      else unjudged_.insert({v.b, v.head, i});
    }
  }

  // Reports the findings row by row and tile by tile, whatever the order in which the kernel
  // computed the rows.
  void finish() {
    trace_.rows_not_judged += static_cast<std::int64_t>(unjudged_.size());
    if (trace_.first || findings_.empty()) return;
    trace_.first = findings_.begin()->second;
    const StageFinding& f = *trace_.first;
    if (const auto state = states_.find({f.b, f.head, f.row, f.first_key});
        !is_load(f.stage) && state != states_.end())
      for (const RunningState& s : state->second.tiles)
        if (s.key0 <= f.key0) trace_.state.push_back(s);
    for (const auto& [place, other] : findings_)
      if (other.stage != f.stage &&
          std::ranges::find(trace_.then, other.stage) == trace_.then.end())
        trace_.then.push_back(other.stage);
  }

 private:
  struct Running {
    double max = -std::numeric_limits<double>::infinity();
    std::vector<RunningState> tiles;
  };

  // The order is: loads first, then rows, then tiles, and within a tile the kernel's own order.
  using Place = std::tuple<bool, Index, Index, Index, Index, std::size_t>;

  void find(StageFinding f) {
    StageSummary& s = trace_.stages[static_cast<std::size_t>(f.stage)];
    ++s.wrong;
    // Only the first finding of each stage in a tile of a row is kept. The last stages of a row
    // come after all its tiles.
    const Index key0 = f.stage == Stage::output || f.stage == Stage::lse ? p_.shape.keys : f.key0;
    if (findings_.size() < 4096) {
      const Place place{!is_load(f.stage), f.b, f.head, f.row, key0, order_++};
      if (seen_.insert({f.stage, f.b, f.head, f.row, key0}).second)
        findings_.emplace(place, std::move(f));
    }
  }

  void loaded(Stage stage, const StageView& v, const TensorView& from, Index heads) {
    if (v.b < 0 || v.b >= p_.shape.batch || v.head < 0 || v.head >= heads)
      return find({stage, v.b, v.head, v.row0, 0, 0, 0, {}, no_place, {}});
    for (Index r = 0; v.row0 >= 0 && r < std::min(v.rows, from.shape[2] - v.row0); ++r) {
      const Index i = v.row0 + r;
      const auto stored = [&](Index c) { return load(from, from.at(v.b, v.head, i, c)); };
      compare_lanes(
          stage, v, r, i, std::min(v.columns, from.shape[3]), 0,
          [&](Index c) { return Expected{stored(c), 0}; },
          [&](Index c) {
            return !std::isnan(stored(c)) ||
                   !std::isnan(v.data[r * v.row_stride + c * v.column_stride]);
          });
    }
  }

  // Compares lanes [0, count) of a row of the view. `lane0` is the number of the first lane.
  template <class Expect, class Asked>
  void compare_lanes(Stage stage, const StageView& v, Index r, Index row, Index count, Index lane0,
                     const Expect& expected, const Asked& asked) {
    StageSummary& s = trace_.stages[static_cast<std::size_t>(stage)];
    const auto enclosure = [&](Index c) {
      return is_load(stage) ? expected(c) : as_told(expected(c));
    };
    const auto value = [&](Index c) {
      const Expected e = enclosure(c);
      return StageValue{lane0 + c, v.data[r * v.row_stride + c * v.column_stride],
                        e.known ? e.value : std::numeric_limits<double>::quiet_NaN(), e.error};
    };
    for (Index c = 0; c < count; ++c) {
      if (!asked(c)) continue;
      ++s.compared;
      const Expected e = enclosure(c);
      const StageValue x = value(c);
      if (e.holds(x.got)) {
        if (e.known && e.error > 0)
          s.worst = std::max(s.worst, std::fabs(x.got - e.value) / e.error);
        continue;
      }
      StageFinding f{stage,
                     v.b,
                     v.head,
                     row,
                     v.first_key,
                     v.key0,
                     v.keys > 0 ? v.keys : v.columns,
                     x,
                     std::isnan(x.got) ? "is not a number" : "is outside its enclosure",
                     {}};
      for (Index near = std::max<Index>(0, c - 3); near < std::min(count, c + 4); ++near)
        if (near != c && asked(near)) f.around.push_back(value(near));
      return find(std::move(f));
    }
  }

  void follow(Stage stage, const StageView& v, Index r, const StageRow& row) {
    const Index i = v.row0 + r, end = std::min(v.key0 + v.keys, p_.shape.keys),
                keys = std::min(v.columns, p_.shape.keys - v.key0);
    const Index tiles = v.keys > 0 ? (v.key0 - v.first_key) / v.keys + 1 : 1;
    const auto every = [](Index) { return true; };
    const auto visible = [&](Index c) { return row.visible(v.key0 + c); };
    switch (stage) {
      case Stage::scores:
        return compare_lanes(
            stage, v, r, i, keys, v.key0,
            [&](Index c) {
              return backward_ ? row.plain_score(v.key0 + c) : row.score(v.key0 + c);
            },
            visible);
      case Stage::masked:
        // A kernel may fill with a large negative finite number instead, as long as its weight is
        // 0.
        return compare_lanes(
            stage, v, r, i, keys, v.key0, [&](Index c) { return row.masked(v.key0 + c); },
            [&](Index c) {
              return visible(c) || !(v.data[r * v.row_stride + c * v.column_stride] <= -1e30f);
            });
      case Stage::row_max: return follow_max(v, r, row, end);
      case Stage::rescale: {
        if (!lanes_agree(stage, v, r)) return;
        // Before the first visible key nothing is corrected, so any correction is right.
        const Expected e = row.correction(v.first_key, v.key0, end);
        const float got = v.data[r * v.row_stride];
        if (!(got >= 0 && got <= 1 + (e.known ? e.error : 0)))
          return violated(stage, v, r, got, e, "a correction outside [0, 1]");
        return compare_lanes(stage, v, r, i, 1, 0, [&](Index) { return e; }, every);
      }
      case Stage::weights:
        if (backward_)
          return compare_lanes(
              stage, v, r, i, keys, v.key0, [&](Index c) { return row.probability(v.key0 + c); },
              every);
        return compare_lanes(
            stage, v, r, i, keys, v.key0,
            [&](Index c) { return row.weight(v.key0 + c, v.first_key, end); }, every);
      case Stage::row_sum: {
        if (!lanes_agree(stage, v, r)) return;
        const Expected e = row.row_sum(v.first_key, end, tiles);
        const float got = v.data[r * v.row_stride];
        if (Running& state = states_[{v.b, v.head, i, v.first_key}]; !state.tiles.empty())
          state.tiles.back().sum = {
              0, got, e.known ? e.value : std::numeric_limits<double>::quiet_NaN(), e.error};
        if (e.known && !(got >= 1 - e.error))
          return violated(stage, v, r, got, e, "a row sum below 1, after a visible key");
        return compare_lanes(stage, v, r, i, 1, 0, [&](Index) { return e; }, every);
      }
      case Stage::accumulated:
        return compare_lanes(
            stage, v, r, i, std::min(v.columns, p_.shape.value_dim), 0,
            [&](Index c) { return row.accumulated(v.first_key, end, tiles, c); }, every);
      case Stage::output:
        return compare_lanes(
            stage, v, r, i, std::min(v.columns, p_.shape.value_dim), 0,
            [&](Index c) { return row.output(c); }, every);
      case Stage::lse:
        return compare_lanes(stage, v, r, i, 1, 0, [&](Index) { return row.lse(); }, every);
      case Stage::delta:
        return compare_lanes(stage, v, r, i, 1, 0, [&](Index) { return row.delta(); }, every);
      case Stage::weight_gradients:
        return compare_lanes(
            stage, v, r, i, keys, v.key0, [&](Index c) { return row.weight_gradient(v.key0 + c); },
            visible);
      case Stage::score_gradients:
        return compare_lanes(
            stage, v, r, i, keys, v.key0, [&](Index c) { return row.score_gradient(v.key0 + c); },
            every);
      default: return;
    }
  }

  void follow_max(const StageView& v, Index r, const StageRow& row, Index end) {
    const Index i = v.row0 + r;
    const Expected e = row.row_max(v.first_key, end);
    const float got = v.data[r * v.row_stride];
    Running& state = states_[{v.b, v.head, i, v.first_key}];
    const double before = state.max;
    if (v.key0 == v.first_key) state = {};
    if (state.tiles.empty() || v.key0 > state.tiles.back().key0)
      state.tiles.push_back(
          {v.key0,
           {0, got, e.known ? e.value : std::numeric_limits<double>::quiet_NaN(), e.error},
           {}});
    state.max = got;
    if (!lanes_agree(Stage::row_max, v, r)) return;
    if (v.key0 != v.first_key && got < before)
      return violated(Stage::row_max, v, r, got, e,
                      fmt::format("the running maximum fell, from {:.9g}", before));
    compare_lanes(
        Stage::row_max, v, r, i, 1, 0, [&](Index) { return e; }, [](Index) { return true; });
  }

  // A value that is reduced over a row must be the same in every lane that holds it.
  bool lanes_agree(Stage stage, const StageView& v, Index r) {
    for (Index c = 1; c < v.columns; ++c) {
      const float x = v.data[r * v.row_stride], y = v.data[r * v.row_stride + c * v.column_stride];
      if (std::memcmp(&x, &y, sizeof x) == 0) continue;
      StageFinding f{stage,      v.b,          v.head,
                     v.row0 + r, v.first_key,  v.key0,
                     v.keys,     {c, y, x, 0}, "differs from lane 0 of the same row",
                     {}};
      find(std::move(f));
      return false;
    }
    return true;
  }

  void violated(Stage stage, const StageView& v, Index r, float got, const Expected& e,
                std::string what) {
    ++trace_.stages[static_cast<std::size_t>(stage)].compared;
    find({stage,
          v.b,
          v.head,
          v.row0 + r,
          v.first_key,
          v.key0,
          v.keys,
          {0, got, e.known ? e.value : std::numeric_limits<double>::quiet_NaN(), e.error},
          std::move(what),
          {}});
  }

  const Attention& p_;
  StageReference reference_;
  const AttentionBackwardInput* backward_;
  Trace& trace_;
  std::map<Place, StageFinding> findings_;
  std::set<std::tuple<Stage, Index, Index, Index, Index>> seen_;
  std::size_t order_ = 0;
  bool heard_ = false;
  std::map<std::tuple<Index, Index, Index, Index>, Running> states_;
  std::set<std::tuple<Index, Index, Index>> unjudged_;
};

constexpr Index most_pairs = Index{1} << 22;

}  // namespace

std::string_view name_of(Stage stage) { return stage_names[static_cast<std::size_t>(stage)]; }

Trace trace_case(const Case& c, Candidate& candidate) {
  if (c.operation == Operation::product)
    throw CaseError(0, "product: stages are those of attention and its backward pass");
  if (c.cache)
    throw CaseError(0, "cache: stages are followed without a cache; leave the field out");
  const AttentionShape& s = c.shape;
  if (static_cast<double>(s.batch) * static_cast<double>(s.query_heads) *
          static_cast<double>(s.rows) * static_cast<double>(s.keys) >
      static_cast<double>(most_pairs))
    throw CaseError(0, fmt::format("b * h * l = {} x {} x {} x {} is more than the {} pairs that a "
                                   "trace takes: make it smaller",
                                   s.batch, s.query_heads, s.rows, s.keys, most_pairs));
  if (s.batch * s.query_heads * s.rows == 0)
    throw CaseError(0, fmt::format("b * h * l = {} x {} x {}: a case without rows has no stages",
                                   s.batch, s.query_heads, s.rows));
  if (!candidate.abilities().stages)
    throw std::invalid_argument(fmt::format("{} does not tell its stages", candidate.name()));
  const Inputs inputs(c);
  // The host tells its stages where it multiplies floats.
  const kernels::Execution how{1, kernels::without_bf16_dots(execution_of(c).target)};
  const std::unique_ptr<Candidate> host =
      c.operation == Operation::backward ? forward_by_host(candidate, c) : nullptr;
  Candidate& first = host ? *host : candidate;
  const ForwardStep forward{c, inputs, first.abilities().lse};
  const Outputs outputs = forward.outputs();
  const auto refuse = [&](const std::string& why) {
    if (!why.empty())
      throw std::invalid_argument(
          fmt::format("{} does not do this case: {}", candidate.name(), why));
  };
  refuse(why_unsupported(first, forward.call(outputs)));
  std::vector<Contract> ladder = contract_ladder(c.dtype, 64);
  // Stages hold weights that are not divided.
  std::erase_if(ladder, [](const Contract& rung) { return rung.divides_first; });
  const auto contract_of = [&](const Candidate& computes, const Call& call) {
    return declared<Contract>(computes, call, how).value_or(ladder.back());
  };
  JudgeOptions judging;
  judging.conventions = c.conventions.over(candidate.conventions()).over(Conventions::ours());
  judging.without_lse = !first.abilities().lse;
  judging.power = false;
  const Contract contract = contract_of(first, forward.call(outputs));
  for (const auto& [output, tensor] : outputs.named()) poison(*tensor, Poison::nan);
  Trace trace;
  const Attention meant = anchored<Attention>(inputs.problem, judging.conventions);
  const auto follow = [&](Candidate& computes, const Call& call, const Contract& by,
                          const AttentionBackwardInput* backward) {
    Follower follower(meant, by, judging.conventions, trace, backward);
    const kernels::Status status = computes.run({call, how, &follower});
    if (status.code == kernels::StatusCode::memory_allocation_failed)
      throw ShortageError(status.detail);
    if (!status.ok())
      throw CandidateError(
          fmt::format("status {}: {}", static_cast<int>(status.code), status.detail));
    if (!follower.heard())
      throw CandidateError(
          fmt::format("{} says that it tells its stages, and told none", computes.name()));
    follower.finish();
  };
  follow(first, forward.call(outputs), contract, nullptr);
  trace.verdict = judge(inputs.problem, outputs.view(), contract, judging);
  if (c.operation == Operation::backward && !trace.first &&
      trace.verdict.outcome != Outcome::fail) {
    const BackwardStep backward{c, inputs, outputs, judging.conventions,
                                candidate.abilities().d_sink};
    const GradientOutputs gradients = backward.outputs();
    const AttentionBackwardInput in = backward.input();
    refuse(why_unsupported(candidate, backward.call(gradients)));
    const Contract by = host ? contract_of(candidate, backward.call(gradients)) : contract;
    follow(candidate, backward.call(gradients), by, &in);
    add_gradients(trace.verdict, judge_backward(inputs.problem, in, gradients.view(), by, judging));
  }
  return trace;
}

std::string describe(const Trace& t, const Case& c) {
  std::string text = fmt::format(
      "{}\n  contract: {}\n  {:<18}{:>12}{:>12}{:>10}  worst error/bound\n", print_case(c),
      visible(told_contract(t.verdict)), "stage", "told", "compared", "wrong");
  for (std::size_t k = 0; k < t.stages.size(); ++k) {
    const StageSummary& s = t.stages[k];
    if (s.told > 0)
      text += fmt::format("  {:<18}{:>12}{:>12}{:>10}  {:.3g}\n", stage_names[k], s.told,
                          s.compared, s.wrong, s.worst);
  }
  if (t.rows_not_judged > 0)
    text += fmt::format("  {} not followed: NaN, infinities or scores out of range take part\n",
                        counted(usize(t.rows_not_judged), "row"));
  const auto number = [](double x) { return fmt::format("{:.9g}", x); };
  const auto enclosure = [&](const StageValue& v) {
    return std::isnan(v.exact) ? std::string("anything that is a number")
                               : fmt::format("{} +- {:.3g}", number(v.exact), v.bound);
  };
  if (!t.first && t.compared() == 0)
    return text + "  no stage could be compared, so nothing holds\n";
  if (!t.first) {
    text += t.verdict.outcome == Outcome::fail
                ? fmt::format("  every stage that was told holds, and yet: {}\n",
                              visible(t.verdict.reason))
                : fmt::format("  every stage holds; outputs: {}: {}\n", name_of(t.verdict.outcome),
                              visible(t.verdict.reason));
    return text;
  }
  const StageFinding& f = *t.first;
  const bool of_keys = f.stage == Stage::scores || f.stage == Stage::masked ||
                       f.stage == Stage::weights || f.stage == Stage::weight_gradients ||
                       f.stage == Stage::score_gradients;
  const char* row_name = f.stage == Stage::key || f.stage == Stage::value ? "key" : "row";
  text += fmt::format("  first wrong: {} at b={} {}={} {}={}", name_of(f.stage), f.b,
                      row_name[0] == 'k' ? "kv head" : "h", f.head, row_name, f.row);
  if (!is_load(f.stage) && f.keys > 0 && f.stage != Stage::output && f.stage != Stage::lse &&
      f.stage != Stage::delta)
    text += fmt::format(", tile {} (keys {} to {})", f.key0 / f.keys, f.key0,
                        std::min(f.key0 + f.keys, c.shape.keys) - 1);
  text += fmt::format(", {} {}: {} {}; {} belongs there\n", of_keys ? "key" : "lane", f.value.lane,
                      number(f.value.got), f.what, enclosure(f.value));
  for (const StageValue& v : f.around)
    text += fmt::format("    {} {}: {}, exact {}\n", of_keys ? "key" : "lane", v.lane,
                        number(v.got), enclosure(v));
  for (const RunningState& s : t.state)
    text += fmt::format("    after the tile from key {}: m = {} ({}), l = {}\n", s.key0,
                        number(s.max.got), enclosure(s.max),
                        s.key0 == f.key0 && s.sum.bound == 0 && s.sum.got == 0
                            ? "not told yet"
                            : fmt::format("{} ({})", number(s.sum.got), enclosure(s.sum)));
  if (!t.then.empty()) {
    text += "  wrong after it:";
    for (const Stage stage : t.then) text += fmt::format(" {}", name_of(stage));
    text += "\n";
  }
  text += fmt::format("  outputs: {}: {}\n", name_of(t.verdict.outcome), t.verdict.reason);
  return text;
}

}  // namespace assay
