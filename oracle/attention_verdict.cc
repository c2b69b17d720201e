#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <span>
#include <tuple>
#include <utility>

#include "oracle/conventional.h"
#include "oracle/decide.h"
#include "oracle/row_sample.h"
#include "oracle/tally.h"
#include "oracle/verdict.h"
#include "oracle/weigh.h"
#include "problem/parallel.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr const char* lost_infinity =
    "an infinity of Q or K is projected first, or meets what is read as 0";
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

double lse_of(MaskedLse lse) {
  return lse == MaskedLse::minus_infinity ? -inf : lse == MaskedLse::infinity ? inf : 0;
}
double lse_of(WeightlessLse lse) {
  switch (lse) {
    case WeightlessLse::minus_infinity: return -inf;
    case WeightlessLse::infinity: return inf;
    case WeightlessLse::zero: return 0;
    default: return nan;
  }
}

// Balls start with the first number of bits. It is doubled up to the last number until every
// element is decided.
constexpr long first_ball_bits = 128, last_ball_bits = 512;

// The results of one task for its rows.
struct RowTally {
  explicit RowTally(const JudgeOptions& options) : elements(options) {}

  Tally elements;
  std::vector<double> slopes;  // of the error against the value, one for each row
  std::vector<SuspectRow> suspects;
  bool oracle_inconsistent = false;

  void merge(const RowTally& other) {
    elements.merge(other.elements);
    slopes.insert(slopes.end(), other.slopes.begin(), other.slopes.end());
    suspects.insert(suspects.end(), other.suspects.begin(), other.suspects.end());
    oracle_inconsistent = oracle_inconsistent || other.oracle_inconsistent;
  }
};

// The sums of a regression of the error against the value, through the origin. Both are in units of
// the bound.
struct Slope {
  double xy = 0, xx = 0;

  void add(double error, double value) {
    xy += error * value;
    xx += value * value;
  }
};

class RowJudge {
 public:
  RowJudge(const Reference& reference, const KeyValues& kv, const AttentionOutput& out,
           const JudgeOptions& options, RowTally& tally)
      : reference_(reference),
        kv_(kv),
        out_(out),
        options_(options),
        rows_(tally),
        tally_(tally.elements),
        contract_(reference.contract()),
        masked_rows_(options.conventions.of<MaskedRows>()),
        weightless_rows_(options.conventions.of<WeightlessRows>()),
        flushes_(options.conventions.of<Subnormals>() == Subnormals::flushed),
        zero_times_nan_(reference.problem(), kv) {}

  void judge(Block& block, Index r, bool cross_check, bool certify) {
    ++tally_.verdict.rows_judged;
    refine(block, r, cross_check);
    lse_ratio_ = 0;
    if (out_.lse) judge_lse(block, r);
    judge_o(block, r, certify);
  }
  // Judges a row without weight, whose O must be that of row k of another problem, the substitute.
  void judge_by_substitute(Block& block, Index r, RowJudge& of_substitute, Block& substitute,
                           Index k, bool cross_check) {
    ++tally_.verdict.rows_judged;
    if (out_.lse) judge_lse(block, r);
    of_substitute.refine(substitute, k, cross_check);
    of_substitute.judge_o(substitute, k, false);
  }
  // Says that this judges rows of a substitute. `wrong` is the reason if an element fails.
  void judges_substitute(std::string wrong) { wrong_substitute_ = std::move(wrong); }

 private:
  bool is_substitute() const { return !wrong_substitute_.empty(); }
  void judge_o(Block& block, Index r, bool certify) {
    const AttentionShape& s = reference_.problem().shape;
    const BlockRow& row = block.row(r);
    full_bound_.resize(block.o.size());
    Slope slope;
    squares_ = 0;
    for (Index c = 0; c < s.value_dim; ++c) judge_element(block, r, c, slope);
    if (is_substitute()) return;  // it has no replicates, and its errors are those of other rows
    suspect(block, r);
    if (slope.xx > 0) rows_.slopes.push_back(slope.xy / slope.xx);
    if (certify && row.lse.kind == Kind::finite && row.domain == Domain::bounded)
      // A tile that is wider than the certificate's lanes is certified in pieces.
      certify_row(kv_, block, r, full_bound_.data(), bound_of_compared_lse(row), s.keys,
                  std::min<Index>(contract_.tile, max_tile), tally_.verdict.power);
  }

  // Computes the row in ball arithmetic if fp64 does not decide it, or if it is to be
  // cross-checked.
  void refine(Block& block, Index r, bool cross_check) {
    bool in_balls = false;
    auto take = [&](long bits) {
      if (!reference_.refine(kv_, block, r, bits)) rows_.oracle_inconsistent = true;
      if (!in_balls) ++tally_.verdict.rows_in_balls;
      in_balls = true;
    };
    if (block.row(r).needs_ball || cross_check) take(first_ball_bits);
    for (long bits = in_balls ? 2 * first_ball_bits : first_ball_bits;
         bits <= last_ball_bits && any_undecided(block, r); bits *= 2)
      take(bits);
  }

  // Keeps the row if its errors are the largest that this task has seen.
  void suspect(const Block& block, Index r) {
    const double columns = static_cast<double>(reference_.problem().shape.value_dim);
    const double score = std::max(std::sqrt(squares_ / columns), lse_ratio_);
    const SuspectRow row{block.b, block.h, block.row(r).index, score};
    if (!(score > 0)) return;
    if (rows_.suspects.empty()) rows_.suspects.push_back(row);
    else if (score > rows_.suspects.front().score) rows_.suspects.front() = row;
  }

  // An LSE that is not compared shows no fault.
  double bound_of_compared_lse(const BlockRow& row) const {
    return out_.lse ? row.lse.bound : std::numeric_limits<double>::infinity();
  }

  Index position_of_o(const Block& block, Index r, Index c) const {
    return out_.o.at(block.b, block.h, block.row(r).index, c);
  }
  Index position_of_lse(const Block& block, Index r) const {
    return out_.lse.at(block.b, block.h, block.row(r).index, 0);
  }
  bool untouched(const TensorView& t, Index position) const {
    return options_.untouched && options_.untouched(t, position);
  }
  bool may_overflow(const Block& block, Index r, Index c) const {
    return block.row(r).domain == Domain::may_overflow || block.element(r, c).value_overflow;
  }

  Decision decide_number(const Certified& x, double slack, double y, Dtype dtype) const {
    Preimage from = preimage(y, dtype, contract_.roundoff);
    if (flushes_ && y == 0) from = flushed_preimage(dtype);
    return decide(from, x.value, x.low, x.radius, x.bound, slack);
  }
  Decision decide_o(const Block& block, Index r, Index c, double y) const {
    return decide_number(block.element(r, c), block.row(r).slack, y, out_.o.dtype);
  }
  Decision decide_lse(const BlockRow& row, double y) const {
    return decide_number(row.lse, row.slack, y, out_.lse.dtype);
  }

  bool any_undecided(const Block& block, Index r) const {
    const BlockRow& row = block.row(r);
    if (row.domain == Domain::must_overflow) return false;
    if (row.lse.kind == Kind::finite && out_.lse) {
      const double y = load(out_.lse, position_of_lse(block, r));
      if (std::isfinite(y) && std::isfinite(row.lse.bound) &&
          decide_lse(row, y) == Decision::undecided)
        return true;
    }
    for (Index c = 0; c < reference_.problem().shape.value_dim; ++c) {
      const double y = load(out_.o, position_of_o(block, r, c));
      if (block.element(r, c).kind == Kind::finite && !std::isnan(y) &&
          decide_o(block, r, c, y) == Decision::undecided)
        return true;
    }
    return false;
  }

  void judge_lse(const Block& block, Index r) {
    const BlockRow& row = block.row(r);
    const Index position = position_of_lse(block, r);
    const double y = load(out_.lse, position);
    const Kind kind = row.lse.kind;
    const bool finite = kind == Kind::finite;
    Element e = element_at(Output::lse, block.b, block.h, row.index, -1);
    measure(e, y,
            kind == Kind::nan              ? nan
            : kind == Kind::minus_infinity ? -inf
                                           : row.lse.value,
            finite ? row.lse.low : 0, finite ? row.lse.bound : 0, Dtype::f32);
    tally_.compare(e);
    if (kind == Kind::nan) ++tally_.verdict.nan_expected;
    if (kind == Kind::minus_infinity) ++tally_.verdict.infinity_expected;
    if (kind == Kind::minus_infinity && lse_may_be_anything(row))
      return tally_.excuse("LSE of a row without weight may be anything");
    if (kind != Kind::nan && untouched(out_.lse, position))
      return tally_.fail(e, "LSE was not written");
    if (kind != Kind::nan && std::isnan(y) && row.nan_excused) return tally_.excuse(lost_infinity);
    if (std::isnan(y) && spreads(block, r, -1)) return tally_.excuse(spreads_by_convention);
    if (finite) return judge_finite_lse(row, e);
    if (kind == Kind::nan)
      return std::isnan(y) ? tally_.inside(e) : tally_.fail(e, "LSE is a number where NaN belongs");
    judge_lse_without_weight(row, e);
  }

  bool lse_may_be_anything(const BlockRow& row) const {
    const Conventions& meant = options_.conventions;
    return row.fully_masked ? meant.of<MaskedLse>() == MaskedLse::any
                            : meant.of<WeightlessLse>() == WeightlessLse::any;
  }

  // Judges LSE of a row without weight, which convention sets.
  void judge_lse_without_weight(const BlockRow& row, Element e) {
    const Conventions& meant = options_.conventions;
    e.exact = row.fully_masked ? lse_of(meant.of<MaskedLse>()) : lse_of(meant.of<WeightlessLse>());
    if (e.got == e.exact || (std::isnan(e.got) && std::isnan(e.exact))) return tally_.inside(e);
    tally_.fail(e, e.exact == -inf
                       ? "LSE of a row without weight is not -inf"
                       : fmt::format("LSE of a {} is not {}",
                                     row.fully_masked ? "fully masked row" : "row without weight",
                                     row.fully_masked ? name_of(meant.of<MaskedLse>())
                                                      : name_of(meant.of<WeightlessLse>())));
  }

  // Whether NaN in an output of the row may come from a masked key, by convention.
  bool spreads(const Block& block, Index r, Index c) {
    return options_.conventions.of<MaskedNan>() == MaskedNan::spreads &&
           zero_times_nan_.of_masked(block.h, block.row(r).index, c);
  }

  void judge_finite_lse(const BlockRow& row, const Element& e) {
    if (row.domain == Domain::must_overflow) return tally_.excuse("scores beyond the range");
    if (!std::isfinite(e.got)) {
      if (row.domain == Domain::may_overflow) return tally_.excuse("scores may leave the range");
      return tally_.fail(e, std::isnan(e.got) ? "LSE is NaN" : "LSE is infinite");
    }
    if (!std::isfinite(e.bound)) return tally_.hold_to_hull();
    tally_.rate(e);
    lse_ratio_ = e.ratio;
    if (!std::isfinite(row.lse.radius)) rows_.oracle_inconsistent = true;
    if (decide_lse(row, e.got) == Decision::outside)
      return tally_.fail(e, "LSE is outside its bound");
    tally_.inside(e);  // an element that 512 bits do not decide is not refuted
    tally_.tell(e);
  }

  void judge_element(const Block& block, Index r, Index c, Slope& slope) {
    const BlockRow& row = block.row(r);
    const BlockElement& o = block.element(r, c);
    const Index position = position_of_o(block, r, c);
    const double y = load(out_.o, position);
    const double full = stored_bound(o.bound, o.value, out_.o.dtype, contract_.roundoff);
    full_bound_[usize(r * block.value_dim + c)] = full;
    Element e = element_at(Output::o, block.b, block.h, row.index, c);
    measure(e, y, o.value, o.low, full, out_.o.dtype);
    tally_.compare(e);
    const bool poisoned = untouched(out_.o, position);
    if (!poisoned && o.kind != Kind::nan && std::isnan(y)) {
      if (row.nan_excused) return tally_.excuse(lost_infinity);
      if (spreads(block, r, c)) return tally_.excuse(spreads_by_convention);
    }
    if (row.fully_masked && row.lse.kind == Kind::minus_infinity && masked_rows_ >= MaskedRows::nan)
      return judge_masked(e, poisoned);
    if (is_weightless(row) && weightless_rows_ != WeightlessRows::nan)
      return judge_weightless(block, r, c, e, poisoned);
    if (o.kind != Kind::finite) return judge_special(block, r, c, e, poisoned);
    if (poisoned) return tally_.fail(e, "O was not written");
    if (row.domain == Domain::must_overflow) return tally_.excuse("scores beyond the range");
    if (std::isnan(y))
      return may_overflow(block, r, c) ? tally_.excuse("sums may leave the range")
                                       : tally_.fail(e, "O is NaN");
    if (row.fully_masked)
      return y == 0 ? tally_.inside(e, true) : tally_.fail(e, "a fully masked row of O is not 0");
    judge_finite(block, r, c, e, slope);
  }

  // Judges an element of a fully masked row that is NaN, or anything, by convention.
  void judge_masked(Element e, bool poisoned) {
    if (masked_rows_ == MaskedRows::any)
      return tally_.excuse("O of a fully masked row may be anything");
    e.exact = nan;
    ++tally_.verdict.nan_expected;
    if (poisoned) return tally_.fail(e, "O was not written");
    if (std::isnan(e.got)) return tally_.inside(e, true);
    tally_.fail(e, "a fully masked row of O is not NaN");
  }

  // Whether the row sees keys, all with a score of -inf.
  static bool is_weightless(const BlockRow& row) {
    return !row.fully_masked && row.lse.kind == Kind::minus_infinity;
  }

  // Judges an element of such a row that is 0, or anything, by convention.
  void judge_weightless(const Block& block, Index r, Index c, Element e, bool poisoned) {
    if (weightless_rows_ == WeightlessRows::any)
      return tally_.excuse("O of a row without weight may be anything");
    e.exact = 0;
    if (poisoned) return tally_.fail(e, "O was not written");
    if (e.got == 0) return tally_.inside(e, true);
    if (std::isnan(e.got)) {
      if (block.row(r).nan_excused) return tally_.excuse(lost_infinity);
      if (spreads(block, r, c)) return tally_.excuse(spreads_by_convention);
      if (zero_times_nan_.of_visible(block.h, block.row(r).index, c))
        return tally_.excuse("0 times NaN or an infinity of V");
    }
    tally_.fail(e, "a row of O without weight is not 0");
  }

  // Judges an element that is NaN or infinite because of NaN and infinities in the inputs.
  void judge_special(const Block& block, Index r, Index c, Element e, bool poisoned) {
    const Kind kind = block.element(r, c).kind;
    const bool is_nan = kind == Kind::nan;
    const double y = e.got;
    ++(is_nan ? tally_.verdict.nan_expected : tally_.verdict.infinity_expected);
    e.exact = is_nan ? nan : kind == Kind::plus_infinity ? inf : -inf;
    const bool same = is_nan ? std::isnan(y) : y == e.exact;
    if (same && (is_nan || !poisoned)) return tally_.inside(e);
    // A weight of 0 times infinity is NaN. A kernel that skips weights of 0 gives the value without
    // that key.
    if (block.element(r, c).underflow_excused &&
        (std::isnan(y) || decide_o(block, r, c, y) != Decision::outside))
      return tally_.excuse("an infinity in V under a weight that may underflow");
    const bool overflows =
        may_overflow(block, r, c) || block.row(r).domain == Domain::must_overflow;
    if (!is_nan && overflows && !std::isfinite(y) && !poisoned)
      return tally_.excuse("an infinity in V in a sum that may overflow");
    tally_.fail(e, poisoned ? "O was not written"
                   : is_nan ? "O is a number where NaN belongs"
                            : "O is not the infinity that belongs there");
  }

  // Judges an element of a row that sees some key. Neither its exact value nor its computed value
  // is NaN.
  void judge_finite(const Block& block, Index r, Index c, const Element& e, Slope& slope) {
    const BlockRow& row = block.row(r);
    const BlockElement& o = block.element(r, c);
    if (std::isnan(o.bound) || !std::isfinite(o.radius)) rows_.oracle_inconsistent = true;
    const bool bounded = row.domain == Domain::bounded;
    const bool has_ratio = bounded && std::isfinite(e.got) && e.bound > 0 && std::isfinite(e.bound);
    if (has_ratio) tally_.rate(e);
    if (decide_o(block, r, c, e.got) == Decision::outside) {
      if (std::isinf(e.got))
        return may_overflow(block, r, c) ? tally_.excuse("sums may leave the range")
                                         : tally_.fail(e, "O is infinite");
      return tally_.fail(e, is_substitute() ? wrong_substitute_
                            : row.exact     ? "O is not the exact value"
                            : !bounded      ? "O is outside the hull of V"
                                            : "O is outside its bound");
    }
    if (!bounded || !std::isfinite(e.bound)) return tally_.hold_to_hull();
    if (has_ratio) {
      const double error = (e.got - e.exact) - o.low;
      squares_ += e.ratio * e.ratio;
      tally_.lean(error / e.bound);
      slope.add(error / e.bound, e.exact / e.bound);
      tally_.tell(e);
    }
    tally_.inside(e, row.exact);
  }

  const Reference& reference_;
  const KeyValues& kv_;
  const AttentionOutput& out_;
  const JudgeOptions& options_;
  RowTally& rows_;
  Tally& tally_;
  const Contract& contract_;
  const MaskedRows masked_rows_;
  const WeightlessRows weightless_rows_;
  const bool flushes_;
  ZeroTimesNan zero_times_nan_;
  std::string wrong_substitute_;
  std::vector<double> full_bound_;
  double squares_ = 0, lse_ratio_ = 0;  // of the row: sum of (error / bound)^2 over O; of LSE
};

double t_statistic(const std::vector<double>& slopes) {
  const double n = static_cast<double>(slopes.size());
  if (n < 9) return 0;
  double mean = 0, variance = 0;
  for (double s : slopes) mean += s / n;
  for (double s : slopes) variance += (s - mean) * (s - mean) / (n - 1);
  return variance > 0 && std::fabs(mean) > 1e-12 ? mean / std::sqrt(variance / n) : 0;
}

// Chooses the rows, among those of all heads, that get more than the verdict: the power certificate
// or a cross-check in balls.
class Extras {
 public:
  Extras(const AttentionShape& s, Index rows_of_a_head, const JudgeOptions& options)
      : options_(options) {
    const Index rows = s.batch * s.query_heads * rows_of_a_head;
    // The certificate of a row costs about as much as its verdict. On large cases only every
    // stride-th row gets one.
    const double work =
        static_cast<double>(rows) * static_cast<double>(s.keys) * static_cast<double>(s.value_dim);
    power_stride_ = static_cast<Index>(work / 0x1p27) + 1;
    ball_stride_ = options.ball_rows > 0 ? std::max<Index>(1, rows / options.ball_rows) : 0;
    ball_offset_ = static_cast<Index>(options.seed % 1000003);
  }
  bool certified(Index serial) const { return options_.power && serial % power_stride_ == 0; }
  bool cross_checked(Index serial) const {
    return ball_stride_ > 0 && (serial + ball_offset_) % ball_stride_ == 0;
  }

 private:
  const JudgeOptions& options_;
  Index power_stride_ = 1, ball_stride_ = 0, ball_offset_ = 0;
};

// The number of heads that are judged at the same time: as many as keep their K and V, in fp64 and
// fp32 with absolute values, within half a GiB.
int heads_at_once(const AttentionShape& s, int threads) {
  const Index head_bytes = 24 * std::max<Index>(s.keys, 1) * (s.dim + s.value_dim);
  return static_cast<int>(std::clamp<Index>((Index{1} << 29) / head_bytes, 1,
                                            threads > 0 ? threads : hardware_threads()));
}

// The other problem whose rows give the O of rows without weight.
struct Substituted {
  Substitute problem;
  Reference reference;
  std::string wrong;  // what an element outside its bound is called

  Substituted(Substitute other, const Contract& contract, std::string words)
      : problem(std::move(other)), reference(problem.problem, contract), wrong(std::move(words)) {}
};

// The substitutes of fully masked rows and of rows whose every visible score is -inf, if any.
class SubstitutedRows {
 public:
  SubstitutedRows(const ProjectedAttention& p, const Contract& contract,
                  const Conventions& conventions) {
    const auto masked = conventions.of<MaskedRows>();
    if (std::optional<Substitute> s = substitute(p, masked))
      masked_.emplace(
          *std::move(s), contract,
          fmt::format("a fully masked row of O is not masked-rows:{}", name_of(masked)));
    const auto weightless = conventions.of<WeightlessRows>();
    if (std::optional<Substitute> s = substitute(p, weightless))
      weightless_.emplace(
          *std::move(s), contract,
          fmt::format("a row of O without weight is not weightless-rows:{}", name_of(weightless)));
  }
  // The substitute of this row; null if the row is judged by itself.
  const Substituted* of(const BlockRow& row) const {
    if (row.lse.kind != Kind::minus_infinity) return nullptr;
    const std::optional<Substituted>& s = row.fully_masked ? masked_ : weightless_;
    return s ? &*s : nullptr;
  }

 private:
  std::optional<Substituted> masked_, weightless_;
};

// Judges rows of one head.
class HeadJudge {
 public:
  HeadJudge(const Reference& reference, const SubstitutedRows& substituted, Index b, Index g)
      : reference_(reference), substituted_(substituted), kv_(reference.load_head(b, g)) {}

  // `serial` is the number of the first of the rows.
  void judge(Index h, std::span<const Index> rows, Index serial, const AttentionOutput& out,
             const Extras& extras, const JudgeOptions& options, RowTally& tally) const {
    Block block = reference_.evaluate(*kv_, h, rows);
    RowJudge judge(reference_, *kv_, out, options, tally);
    std::map<const Substituted*, std::vector<Index>> others;
    for (Index r = 0; r < std::ssize(rows); ++r, ++serial) {
      if (const Substituted* other = substituted_.of(block.row(r))) others[other].push_back(r);
      else judge.judge(block, r, extras.cross_checked(serial), extras.certified(serial));
    }
    for (const auto& [other, which] : others)
      judge_by(*other, judge, block, which, out, options, tally);
  }

 private:
  void judge_by(const Substituted& substituted, RowJudge& judge, Block& block,
                const std::vector<Index>& which, const AttentionOutput& out,
                const JudgeOptions& options, RowTally& tally) const {
    std::vector<Index> rows;
    for (const Index r : which) rows.push_back(block.row(r).index);
    const Reference& reference = substituted.reference;
    const KeyValuesPointer kv = reference.load_head(block.b, kv_->g);
    Block other = reference.evaluate(*kv, block.h, rows);
    RowJudge of_substitute(reference, *kv, out, options, tally);
    of_substitute.judges_substitute(substituted.wrong);
    for (Index k = 0; k < std::ssize(which); ++k)
      judge.judge_by_substitute(block, which[usize(k)], of_substitute, other, k, k == 0);
  }

  const Reference& reference_;
  const SubstitutedRows& substituted_;
  const KeyValuesPointer kv_;
};

// Judges the chosen rows of every head.
void judge_rows(const ProjectedAttention& problem, const Contract& contract,
                const AttentionOutput& out, const std::vector<Index>& rows,
                const JudgeOptions& options, RowTally& total) {
  const Reference reference(problem, contract);
  const SubstitutedRows substituted(problem, contract, options.conventions);
  const AttentionShape& s = reference.problem().shape;
  const Index row_count = std::ssize(rows), per_block = reference.block_rows();
  const Index blocks = (row_count + per_block - 1) / per_block;
  const Extras extras(s, row_count, options);
  std::mutex mutex;
  parallel_for(s.batch * s.kv_heads, heads_at_once(s, options.threads), [&](Index group) {
    const Index b = group / s.kv_heads, g = group % s.kv_heads;
    const HeadJudge head(reference, substituted, b, g);
    parallel_for(s.group() * blocks, options.threads, [&](Index task) {
      const Index h = g * s.group() + task / blocks, first = task % blocks * per_block;
      const Index count = std::min(per_block, row_count - first);
      RowTally tally(options);
      head.judge(h, {rows.data() + first, usize(count)},
                 (b * s.query_heads + h) * row_count + first, out, extras, options, tally);
      const std::lock_guard lock(mutex);
      total.merge(tally);
    });
  });
}

void conclude_attention(Verdict& v, const RowTally& rows, Index rows_of_a_head, bool statistics) {
  v.slope_t = t_statistic(rows.slopes);
  const auto o = v.outputs.find(Output::o);
  conclude(v, o == v.outputs.end() ? 0 : o->second.inside,
           {.judged = "element of O", .hull_only = "held to the hull of V only"});
  if (rows.oracle_inconsistent) {
    v.outcome = Outcome::error;
    v.reason =
        "the oracle disagrees with itself: an enclosure or a bound is not a number, or its fp64 "
        "and ball enclosures of an element do not meet";
  } else if (v.outcome == Outcome::pass && statistics && std::fabs(v.slope_t) > 8) {
    v.outcome = Outcome::suspect;
    v.reason += fmt::format(", but errors lean with the value: t = {:.1f}", v.slope_t);
  } else if (v.outcome == Outcome::pass) {
    v.reason += sentence_on_sample(v, rows_of_a_head, "rows of each head");
  }
}

// Keeps the rows that evidence looks at first: those with the largest scores.
std::vector<SuspectRow> worst_of(std::vector<SuspectRow> rows) {
  constexpr std::ptrdiff_t most = 16;
  const auto before = [](const SuspectRow& a, const SuspectRow& b) {
    return std::tuple(-a.score, a.b, a.h, a.row) < std::tuple(-b.score, b.b, b.h, b.row);
  };
  std::ranges::sort(rows, before);
  if (std::ssize(rows) > most) rows.resize(usize(most));
  return rows;
}

// The verdict by bounds alone, under the conventions of the options.
Verdict judge_bounds(const ProjectedAttention& given, const AttentionOutput& out,
                     const Contract& contract, const JudgeOptions& options) {
  const ProjectedAttention problem = anchored(given, options.conventions);
  const AttentionShape& s = problem.shape;
  RowTally total(options);
  Verdict& v = total.elements.verdict;
  v.contract = contract.name;
  v.arithmetic = contract;
  v.tile = contract.tile;
  v.row_tile = contract.row_tile;
  if (!out.lse && !options.without_lse) {
    v.outcome = Outcome::fail;
    v.reason = "the candidate gives no LSE, which is always judged";
    return v;
  }
  v.rows_total = s.batch * s.query_heads * s.rows;
  const std::vector<Index> rows = rows_to_judge(s.rows, options.sample_rows, options.seed);
  note_sample(v, rows, s.rows, options.seed);
  judge_rows(problem, contract, out, rows, options, total);
  Verdict verdict = total.elements.finish();
  conclude_attention(verdict, total, s.rows, options.statistics);
  verdict.suspects = worst_of(std::move(total.suspects));
  return verdict;
}

// Asks the evidence about a verdict, under the conventions that it has found. Where bounds are
// wide, they hold also what follows from subnormal numbers that are read as 0: if no arithmetic
// makes such errors, those that flush are asked as well.
void ask_evidence(Verdict& v, const ProjectedAttention& problem, const AttentionOutput& out,
                  const Contract& strict, std::span<const Contract> contracts,
                  const JudgeOptions& options) {
  if (!is_weighed(v, options)) return;
  const auto under = [&](const Conventions& conventions) {
    JudgeOptions own = options;
    own.conventions = conventions;
    std::vector<Contract> asked;
    for (const Contract& c : contracts) asked.push_back(flushing(conventions, c));
    return weigh(anchored(problem, conventions), out, flushing(conventions, strict), asked,
                 v.suspects, own);
  };
  const Conventions found = v.differs.over(options.conventions);
  Evidence e = under(found);
  if (!e.fits && !found.declares(Convention::subnormals) && zeroed_inputs(problem)) {
    Conventions flushed = found;
    flushed.declare(Subnormals::flushed);
    if (Evidence of_flushed = under(flushed); of_flushed.fits) {
      e = std::move(of_flushed);
      v.differs.declare(Subnormals::flushed);
      if (v.outcome == Outcome::pass || v.outcome == Outcome::suspect) {
        v.outcome = Outcome::convention;
        v.reason = told_conventions(v.differs);
      }
    }
  }
  take_evidence(v, std::move(e), options.evidence);
}

}  // namespace

Verdict judge(const ProjectedAttention& problem, const AttentionOutput& out,
              const Contract& contract, const JudgeOptions& options) {
  const auto judge_under = [&](const JudgeOptions& under) {
    return judge_by({&contract, 1}, problem, under,
                    [&](const ProjectedAttention& p, const Contract& c, const JudgeOptions& o) {
                      return judge_bounds(p, out, c, o);
                    });
  };
  Verdict v = by_convention(problem, judge_under(options), options, judge_under);
  ask_evidence(v, problem, out, contract, {&contract, 1}, options);
  return v;
}

Verdict judge_by_ladder(const ProjectedAttention& problem, const AttentionOutput& out, Index tile,
                        const JudgeOptions& options) {
  const std::vector<Contract> ladder = contract_ladder(problem.q.dtype, tile);
  const auto judge_under = [&](const JudgeOptions& under) {
    return judge_by(ladder, problem, under,
                    [&](const ProjectedAttention& p, const Contract& c, const JudgeOptions& o) {
                      return judge_bounds(p, out, c, o);
                    });
  };
  Verdict v = by_convention(problem, judge_under(options), options, judge_under);
  const auto first = std::ranges::find(ladder, v.contract, &Contract::name);
  // Some replicates of the rung without weights_from_lse have such weights. All of one kind err
  // alike, and their typical errors would have to be wide.
  std::vector<Contract> asked;
  for (auto c = first; c != ladder.end(); ++c) {
    if (c->weights_from_lse && c != first) continue;
    Contract& mixed = asked.emplace_back(*c);
    if (std::exchange(mixed.weights_from_lse, false)) mixed.divides_first = false;
  }
  ask_evidence(v, problem, out, ladder.front(), asked, options);
  return v;
}

}  // namespace assay
