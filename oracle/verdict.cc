#include "oracle/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "oracle/decide.h"
#include "problem/parallel.h"
#include "problem/random.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// Sums over the rows of a task, merged at the end.
struct Tally {
  Verdict v;
  double ratio_sum = 0;
  std::int64_t ratios = 0, inside_o = 0;
  std::vector<double> slopes;
  bool oracle_inconsistent = false;
};

bool precedes(const Element& a, const Element& b) { return std::tie(a.b, a.h, a.row, a.column) < std::tie(b.b, b.h, b.row, b.column); }

class RowJudge {
 public:
  RowJudge(const Reference& reference, const KeyValues& kv, const AttentionOutput& out, const JudgeOptions& options, Tally& tally)
      : reference_(reference), kv_(kv), out_(out), options_(options), tally_(tally), contract_(reference.contract()) {}

  void judge(Block& block, Index r, bool cross_check, bool certify) {
    const Index dv = reference_.problem().shape.value_dim;
    const auto at = static_cast<std::size_t>(r);
    Verdict& v = tally_.v;
    ++v.rows_judged;
    bool in_balls = false;
    auto refine = [&](long bits) {
      if (!reference_.refine(kv_, block, r, bits)) tally_.oracle_inconsistent = true;
      if (!in_balls) ++v.rows_in_balls;
      in_balls = true;
    };
    if (block.needs_ball[at]) refine(128);
    if (cross_check && !in_balls) refine(128);
    for (long bits = in_balls ? 256 : 128; bits <= 512 && any_undecided(block, r); bits *= 2) refine(bits);

    if (out_.lse) judge_lse(block, r);
    full_bound_.resize(static_cast<std::size_t>(block.rows * dv));
    double sxy = 0, sxx = 0;
    for (Index c = 0; c < dv; ++c) judge_element(block, r, c, sxy, sxx);
    if (sxx > 0) tally_.slopes.push_back(sxy / sxx);
    if (certify && block.lse_kind[at] == Kind::finite && block.domain[at] == Domain::bounded)
      certify_row(kv_, block, r, full_bound_.data(), block.lse_bound[at], reference_.problem().shape.keys, contract_.tile, v.power);
  }

 private:
  double got_o(const Block& block, Index r, Index c) const {
    return load(out_.o, out_.o.at(block.b, block.h, block.row_index[static_cast<std::size_t>(r)], c));
  }
  Decision decide_o(const Block& block, Index r, Index c, double y) const {
    const auto e = static_cast<std::size_t>(r * reference_.problem().shape.value_dim + c);
    return decide(preimage(y, out_.o.dtype, contract_.roundoff), block.o[e], block.o_low[e], block.radius[e], block.bound[e],
                  block.slack[static_cast<std::size_t>(r)]);
  }

  Decision decide_lse(const Block& block, Index r, double y) const {
    const auto at = static_cast<std::size_t>(r);
    return decide(preimage(y, out_.lse.dtype, contract_.roundoff), block.lse[at], block.lse_low[at], block.lse_radius[at], block.lse_bound[at],
                  block.slack[at]);
  }

  bool any_undecided(const Block& block, Index r) const {
    const auto at = static_cast<std::size_t>(r);
    if (block.domain[at] == Domain::must_overflow) return false;
    if (block.lse_kind[at] == Kind::finite && out_.lse) {
      const double y = load(out_.lse, out_.lse.at(block.b, block.h, block.row_index[at], 0));
      if (std::isfinite(y) && std::isfinite(block.lse_bound[at]) && decide_lse(block, r, y) == Decision::undecided) return true;
    }
    for (Index c = 0; c < reference_.problem().shape.value_dim; ++c) {
      const auto e = static_cast<std::size_t>(r * reference_.problem().shape.value_dim + c);
      const double y = got_o(block, r, c);
      if (block.o_kind[e] == Kind::finite && !std::isnan(y) && decide_o(block, r, c, y) == Decision::undecided) return true;
    }
    return false;
  }

  Element element(const Block& block, Index r, Index c, double got, double exact, double low, double bound, Dtype dtype) const {
    Element e;
    e.b = block.b;
    e.h = block.h;
    e.row = block.row_index[static_cast<std::size_t>(r)];
    e.column = c;
    e.output = c < 0 ? Output::lse : Output::o;
    e.got = got;
    e.exact = exact;
    e.bound = bound;
    const double error = std::fabs((got - exact) - low);
    e.ratio = error == 0 ? 0 : error <= inf ? error / bound : inf;
    e.ulp = error / (2 * half_ulp(dtype, exact));
    return e;
  }

  void fail(Element e, std::string why) {
    Verdict& v = tally_.v;
    ++v.outside;
    ++v.failures[why];
    e.why = std::move(why);
    if (options_.judged) options_.judged(e);
    if (v.outside == 1 || precedes(e, v.first_failure)) v.first_failure = e;
  }

  void judge_lse(const Block& block, Index r) {
    Verdict& v = tally_.v;
    const auto at = static_cast<std::size_t>(r);
    const Index position = out_.lse.at(block.b, block.h, block.row_index[at], 0);
    const double y = load(out_.lse, position);
    ++v.compared_lse;
    count_found(y);
    const Kind kind = block.lse_kind[at];
    if (kind == Kind::nan) ++v.nan_expected;
    if (kind == Kind::minus_infinity) ++v.infinity_expected;
    const double exact = kind == Kind::nan ? std::numeric_limits<double>::quiet_NaN() : kind == Kind::minus_infinity ? -inf : block.lse[at];
    const double bound = kind == Kind::finite ? block.lse_bound[at] : 0;
    Element e = element(block, r, -1, y, exact, kind == Kind::finite ? block.lse_low[at] : 0, bound, Dtype::f32);
    const bool poisoned = options_.untouched && options_.untouched(out_.lse, position);
    if (poisoned && kind != Kind::nan) return fail(e, "LSE was not written");
    if (kind != Kind::nan && std::isnan(y) && block.query_lost[at]) return excuse("Q is infinite, and is projected first");
    if (kind == Kind::finite && block.domain[at] == Domain::must_overflow) return excuse("scores beyond the range");
    if (kind == Kind::nan) return std::isnan(y) ? inside() : fail(e, "LSE is a number where NaN belongs");
    if (kind == Kind::minus_infinity) return y == -inf ? inside() : fail(e, "LSE of a row without weight is not -inf");
    if (!std::isfinite(y)) {
      if (block.domain[at] == Domain::may_overflow) return excuse("scores may leave the range");
      return fail(e, std::isnan(y) ? "LSE is NaN" : "LSE is infinite");
    }
    if (!std::isfinite(bound)) {
      ++v.hull_only;
      return;
    }
    if (e.ratio > v.worst_lse.ratio || v.worst_lse.bound == 0) v.worst_lse = e;
    if (std::isnan(bound) || !std::isfinite(block.lse_radius[at])) tally_.oracle_inconsistent = true;
    const Decision d = decide_lse(block, r, y);
    if (d == Decision::outside) return fail(e, "LSE is outside its bound");
    inside();  // undecided at 512 bits: not refuted
    if (options_.judged) options_.judged(e);
  }

  void judge_element(const Block& block, Index r, Index c, double& sxy, double& sxx) {
    Verdict& v = tally_.v;
    const auto at = static_cast<std::size_t>(r);
    const auto index = static_cast<std::size_t>(r * reference_.problem().shape.value_dim + c);
    const Index position = out_.o.at(block.b, block.h, block.row_index[at], c);
    const double y = load(out_.o, position);
    ++v.compared_o;
    count_found(y);
    const Kind kind = block.o_kind[index];
    const double o = block.o[index];
    const bool rounds = unit_roundoff(out_.o.dtype) > contract_.roundoff;
    const double bound = block.bound[index] + (rounds ? half_ulp(out_.o.dtype, std::fabs(o) + block.bound[index]) : 0);
    full_bound_[index] = bound;
    Element e = element(block, r, c, y, o, block.o_low[index], bound, out_.o.dtype);
    const bool poisoned = options_.untouched && options_.untouched(out_.o, position);
    if (!poisoned && kind != Kind::nan && std::isnan(y) && block.query_lost[static_cast<std::size_t>(r)]) return excuse("Q is infinite, and is projected first");
    if (kind != Kind::finite) {
      (kind == Kind::nan ? v.nan_expected : v.infinity_expected)++;
      e.exact = kind == Kind::nan ? std::numeric_limits<double>::quiet_NaN() : kind == Kind::plus_infinity ? inf : -inf;
      const bool same = kind == Kind::nan ? std::isnan(y) : y == e.exact;
      if (same && !(poisoned && kind != Kind::nan)) return inside_element();
      // Weight 0 times infinity is NaN; a kernel that skips weights of 0 leaves the value without that key.
      if (block.underflow_excused[index] && (std::isnan(y) || decide_o(block, r, c, y) != Decision::outside))
        return excuse("an infinity in V under a weight that may underflow");
      const bool may_overflow = block.domain[at] == Domain::may_overflow || block.domain[at] == Domain::must_overflow || block.value_overflow[index];
      if (kind != Kind::nan && may_overflow && !std::isfinite(y) && !poisoned) return excuse("an infinity in V in a sum that may overflow");
      return fail(e, poisoned ? "O was not written" : kind == Kind::nan ? "O is a number where NaN belongs" : "O is not the infinity that belongs there");
    }
    if (poisoned) return fail(e, "O was not written");
    if (block.domain[at] == Domain::must_overflow) return excuse("scores beyond the range");
    const bool may_overflow = block.domain[at] == Domain::may_overflow || block.value_overflow[index];
    if (std::isnan(y)) return may_overflow ? excuse("sums may leave the range") : fail(e, "O is NaN");
    if (block.fully_masked[at]) return y == 0 ? inside_element(true) : fail(e, "a fully masked row of O is not 0");
    if (std::isnan(block.bound[index]) || !std::isfinite(block.radius[index])) tally_.oracle_inconsistent = true;
    const Decision d = decide_o(block, r, c, y);
    const bool has_ratio = block.domain[at] == Domain::bounded && std::isfinite(y) && bound > 0 && std::isfinite(bound);
    if (has_ratio && (e.ratio > v.worst_o.ratio || v.worst_o.bound == 0)) v.worst_o = e;
    if (d == Decision::outside) {
      if (std::isinf(y)) {
        return may_overflow ? excuse("sums may leave the range") : fail(e, "O is infinite");
      }
      return fail(e, block.exact[at]                       ? "O is not the exact value"
                     : block.domain[at] != Domain::bounded ? "O is outside the hull of V"
                                                           : "O is outside its bound");
    }
    if (block.domain[at] != Domain::bounded || !std::isfinite(bound)) {
      ++v.hull_only;
      return;
    }
    if (has_ratio) {
      const double error = (y - o) - block.o_low[index];
      tally_.ratio_sum += error / bound;
      ++tally_.ratios;
      sxy += error / bound * (o / bound);
      sxx += o / bound * (o / bound);
      if (options_.judged) options_.judged(e);
    }
    inside_element(block.exact[at] != 0);
  }

  void inside() { ++tally_.v.inside; }
  void inside_element(bool exactly = false) {
    inside();
    ++tally_.inside_o;
    tally_.v.exact += exactly;
  }
  void excuse(const char* reason) { ++tally_.v.excused[reason]; }
  void count_found(double y) {
    tally_.v.nan_found += std::isnan(y);
    tally_.v.infinity_found += std::isinf(y);
  }

  const Reference& reference_;
  const KeyValues& kv_;
  const AttentionOutput& out_;
  const JudgeOptions& options_;
  Tally& tally_;
  const Contract& contract_;
  std::vector<double> full_bound_;
};

void merge(Tally& into, const Tally& t) {
  Verdict& v = into.v;
  const Verdict& w = t.v;
  if (w.outside > 0 && (v.outside == 0 || precedes(w.first_failure, v.first_failure))) v.first_failure = w.first_failure;
  for (auto member : {&Verdict::compared_o, &Verdict::compared_lse, &Verdict::inside, &Verdict::outside, &Verdict::hull_only, &Verdict::exact,
                      &Verdict::nan_expected, &Verdict::nan_found, &Verdict::infinity_expected, &Verdict::infinity_found, &Verdict::rows_in_balls})
    v.*member += w.*member;
  v.rows_judged += w.rows_judged;
  for (const auto& [reason, n] : w.excused) v.excused[reason] += n;
  for (const auto& [reason, n] : w.failures) v.failures[reason] += n;
  if (w.worst_o.ratio > v.worst_o.ratio || v.worst_o.bound == 0) v.worst_o = w.worst_o;
  if (w.worst_lse.ratio > v.worst_lse.ratio || v.worst_lse.bound == 0) v.worst_lse = w.worst_lse;
  v.power.add(w.power);
  into.ratio_sum += t.ratio_sum;
  into.ratios += t.ratios;
  into.inside_o += t.inside_o;
  into.slopes.insert(into.slopes.end(), t.slopes.begin(), t.slopes.end());
  into.oracle_inconsistent = into.oracle_inconsistent || t.oracle_inconsistent;
}

double t_statistic(const std::vector<double>& slopes) {
  const double n = static_cast<double>(slopes.size());
  if (n < 9) return 0;
  double mean = 0, variance = 0;
  for (double s : slopes) mean += s / n;
  for (double s : slopes) variance += (s - mean) * (s - mean) / (n - 1);
  return variance > 0 && std::fabs(mean) > 1e-12 ? mean / std::sqrt(variance / n) : 0;
}

}  // namespace

std::vector<Index> rows_to_judge(Index rows, Index sample, std::uint64_t seed) {
  std::vector<Index> chosen;
  if (sample == 0 || sample >= rows) {
    for (Index i = 0; i < rows; ++i) chosen.push_back(i);
    return chosen;
  }
  // One row of each of `sample` equal stretches: early, late and in between are always there.
  for (Index k = 0; k < sample; ++k) {
    const Index begin = rows * k / sample, end = rows * (k + 1) / sample;
    const std::uint64_t x = SplitMix64::number(seed, usize(k));
    chosen.push_back(begin + static_cast<Index>(x % usize(end - begin)));
  }
  return chosen;
}

std::string_view name_of(Output output) {
  constexpr std::array<std::string_view, 8> names = {"O", "LSE", "dQ", "dK", "dV", "dBias", "dSink", "C"};
  return names[static_cast<std::size_t>(output)];
}

std::string describe(const Element& e) {
  std::string place;
  switch (e.output) {
    case Output::lse: place = fmt::format("LSE[b={}, h={}, row={}]", e.b, e.h, e.row); break;
    case Output::d_sink: place = fmt::format("dSink[h={}]", e.h); break;
    case Output::c: place = fmt::format("C[row={}, column={}]", e.row, e.column); break;
    case Output::dk:
    case Output::dv: place = fmt::format("{}[b={}, h={}, key={}, column={}]", name_of(e.output), e.b, e.h, e.row, e.column); break;
    case Output::d_bias: place = fmt::format("dBias[b={}, h={}, row={}, key={}]", e.b, e.h, e.row, e.column); break;
    default: place = fmt::format("{}[b={}, h={}, row={}, column={}]", name_of(e.output), e.b, e.h, e.row, e.column);
  }
  return fmt::format("{}: {} = {:.9g}, exact {:.9g}, bound {:.3g}", e.why, place, e.got, e.exact, e.bound);
}

std::string_view name_of(Outcome outcome) {
  constexpr std::array<std::string_view, 6> names = {"pass", "fail", "suspect", "inconclusive", "unsupported", "error"};
  return names[static_cast<std::size_t>(outcome)];
}

Verdict judge(const Attention& problem, const AttentionOutput& out, const Contract& contract, const JudgeOptions& options) {
  const AttentionShape& s = problem.shape;
  Tally total;
  total.v.contract = contract.name;
  total.v.tile = contract.tile;
  total.v.row_tile = contract.row_tile;
  if (!out.lse && !options.without_lse) {
    total.v.outcome = Outcome::fail;
    total.v.reason = "the candidate gives no LSE, which is always judged";
    return total.v;
  }
  const Reference reference(problem, contract);
  const std::vector<Index> rows = rows_to_judge(s.rows, options.sample_rows, options.seed);
  total.v.rows_total = s.batch * s.query_heads * s.rows;
  if (static_cast<Index>(rows.size()) < s.rows) {
    total.v.sampled.assign(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(rows.size(), 8)));
    total.v.sample_rows = static_cast<Index>(rows.size());
    total.v.sample_seed = options.seed;
  }
  const auto row_count = static_cast<Index>(rows.size());
  const Index per_block = reference.block_rows();
  const Index blocks = (row_count + per_block - 1) / per_block;
  // The certificate costs about as much as the verdict: on large cases it takes every stride-th row.
  const double work = static_cast<double>(s.batch * s.query_heads * row_count) * static_cast<double>(s.keys) * static_cast<double>(s.value_dim);
  const Index power_stride = static_cast<Index>(work / 0x1p27) + 1;
  const Index all_rows = s.batch * s.query_heads * row_count;
  const Index ball_stride = options.ball_rows > 0 ? std::max<Index>(1, all_rows / options.ball_rows) : 0;
  std::mutex mutex;
  // Heads side by side as far as their K and V, in fp64 and fp32 with absolute values, stay within half a GiB.
  const Index head_bytes = 24 * std::max<Index>(s.keys, 1) * (s.dim + s.value_dim);
  const int heads_at_once = static_cast<int>(std::clamp<Index>((Index{1} << 29) / head_bytes, 1, options.threads > 0 ? options.threads : hardware_threads()));
  parallel_for(s.batch * s.kv_heads, heads_at_once, [&](Index group) {
    const Index b = group / s.kv_heads, g = group % s.kv_heads;
    const KeyValuesPointer kv = reference.load_head(b, g);
    parallel_for(s.group() * blocks, options.threads, [&](Index task) {
      const Index h = g * s.group() + task / blocks, first = task % blocks * per_block;
      const auto count = static_cast<std::size_t>(std::min(per_block, row_count - first));
      Block block = reference.evaluate(*kv, h, {rows.data() + first, count});
      Tally tally;
      RowJudge judge(reference, *kv, out, options, tally);
      for (Index r = 0; r < static_cast<Index>(count); ++r) {
        const Index serial = (b * s.query_heads + h) * row_count + first + r;
        const bool cross_check = ball_stride > 0 && (serial + static_cast<Index>(options.seed % 1000003)) % ball_stride == 0;
        judge.judge(block, r, cross_check, options.power && serial % power_stride == 0);
      }
      const std::lock_guard lock(mutex);
      merge(total, tally);
    });
  });

  Verdict& v = total.v;
  if (total.ratios > 0) v.mean_ratio = total.ratio_sum / static_cast<double>(total.ratios);
  std::int64_t excused = 0;
  for (const auto& [reason, n] : v.excused) excused += n;
  const std::string rest =
      excused + v.hull_only == 0
          ? "every element is inside its bound"
          : fmt::format("every element that a bound decides is inside it ({} excused, {} held to the hull of V only)", excused, v.hull_only);
  v.slope_t = t_statistic(total.slopes);
  if (total.oracle_inconsistent) {
    v.outcome = Outcome::error;
    v.reason = "the oracle disagrees with itself: an enclosure or a bound is not a number, or its fp64 and ball enclosures of an element do not meet";
  } else if (v.outside > 0) {
    v.outcome = Outcome::fail;
    v.reason = describe(v.first_failure);
  } else if (total.inside_o == 0) {
    v.outcome = Outcome::inconclusive;
    v.reason = v.compared_o + v.compared_lse == 0 ? "the problem has no output element" : "no element of O could be judged by its bound";
  } else if (options.statistics && std::fabs(v.slope_t) > 8) {
    v.outcome = Outcome::suspect;
    v.reason = fmt::format("{}, but errors lean with the value: t = {:.1f}", rest, v.slope_t);
  } else {
    v.outcome = Outcome::pass;
    v.reason = rest;
    if (!v.sampled.empty())
      v.reason += fmt::format("; {} of {} rows of each head were judged: one of each equal stretch, seed {}", v.sample_rows, s.rows, v.sample_seed);
  }
  return v;
}

Verdict judge_by_ladder(const Attention& problem, const AttentionOutput& out, Index tile, const JudgeOptions& options) {
  return climb(contract_ladder(problem.q.dtype, tile), options, [&](const Contract& c, const JudgeOptions& o) { return judge(problem, out, c, o); });
}

}  // namespace assay
