#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <tuple>

#include "oracle/decide.h"
#include "oracle/exact_sum.h"
#include "oracle/low_bit_operands.h"
#include "oracle/product.h"
#include "oracle/product_bound.h"
#include "problem/parallel.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// Bounds are evaluated in fp64, a few thousand roundings deep at most.
constexpr double slack = 0x1p-36;

bool precedes(const Element& a, const Element& b) { return std::tie(a.row, a.column) < std::tie(b.row, b.column); }

class ProductJudge {
 public:
  ProductJudge(const Product& p, const TensorView& c, const ProductContract& contract, const JudgeOptions& options)
      : p_(p), c_(c), contract_(contract), options_(options) {}

  Verdict mine;

  void judge(const ProductRow& row, Index m, const ProductColumns& w) {
    bounds_.compute(row, w, contract_, p_.k);
    for (Index i = 0; i < w.count; ++i) judge_element(row, m, w, i);
  }

 private:
  void judge_element(const ProductRow& row, Index m, const ProductColumns& w, Index i) {
    const auto at = static_cast<std::size_t>(i);
    ExactSum exact = exact_of(row, w, i, p_.k);
    ProductElementBound of_element = bounds_.of_element(at);
    for (double g : {static_cast<double>(p_.w.tensor_scale),
                     p_.a_low ? static_cast<double>(p_.a_low.tensor_scale) : 1.0}) {
      if (g == 1) continue;
      exact = times(exact, g);
      of_element.scale_by(g, std::fabs(exact.high), contract_);
    }
    const double bound = of_element.bound;
    const bool may_overflow = of_element.may_overflow;
    const Index position = c_.at(0, 0, m, w.first + i);
    const double y = load(c_, position);
    Compared& compared = mine.outputs[Output::c];
    ++compared.elements;
    mine.nan_found += std::isnan(y);
    mine.infinity_found += std::isinf(y);
    const bool rounds = unit_roundoff(c_.dtype) > contract_.roundoff;
    Element e;
    e.output = Output::c;
    e.row = m;
    e.column = w.first + i;
    e.got = y;
    e.exact = exact.high;
    e.bound = bound + (rounds ? half_ulp(c_.dtype, std::fabs(exact.high) + bound) : 0);
    const double error = std::fabs((y - exact.high) - exact.low);
    e.ratio = error == 0 ? 0 : error <= inf ? error / e.bound : inf;
    e.ulp = error / (2 * half_ulp(c_.dtype, exact.high));
    if (options_.untouched && options_.untouched(c_, position) && !std::isnan(exact.high)) return fail(e, "C was not written");
    if (std::isnan(exact.high)) {
      ++mine.nan_expected;
      return std::isnan(y) ? void(++mine.inside) : fail(e, "C is a number where NaN belongs");
    }
    if (std::isinf(exact.high)) {
      ++mine.infinity_expected;
      if (y == exact.high) return void(++mine.inside);
      return may_overflow && !std::isfinite(y) ? excuse("sums may leave the range") : fail(e, "C is not the infinity that belongs there");
    }
    if (may_overflow && !std::isfinite(y)) return excuse("sums may leave the range");
    if (std::isnan(y)) return fail(e, "C is NaN");
    switch (decide(preimage(y, c_.dtype, contract_.roundoff), exact.high, exact.low, exact.radius, bound, slack)) {
      case Decision::outside: return fail(e, bound == 0 ? "C is wrong, and no rounding explains it" : "C is outside its bound");
      case Decision::undecided: return excuse("not refuted: within the bound's own error");
      default: break;
    }
    ++mine.inside;
    mine.exact += bound == 0;
    if (std::isfinite(y) && e.bound > 0) {  // an infinity is right beyond the range of the output
      if (e.ratio >= compared.worst.ratio) compared.worst = e;
      if (options_.judged) options_.judged(e);
      ratio_sum_ += ((y - exact.high) - exact.low) / e.bound;
      ++ratios_;
    }
    if (options_.power) certify(row, w, i, e.bound);
  }

  // Whether a change of one term would move the element by more than twice its bound.
  void certify(const ProductRow& row, const ProductColumns& w, Index i, double bound) {
    Power& power = mine.power;
    const double g = std::fabs(static_cast<double>(p_.w.tensor_scale)) * (p_.a_low ? std::fabs(static_cast<double>(p_.a_low.tensor_scale)) : 1);
    const double threshold = 2 * bound / g;
    const Index tile = tile_of(p_.w), tiles = (p_.k + tile - 1) / tile;
    for (Index k = 0; k < p_.k; ++k) {
      const double term = std::fabs(row.a[static_cast<std::size_t>(k)] * w.weight(k, i));
      const Index next = k + 1 < p_.k ? k + 1 : std::max<Index>(k - 1, 0);
      const double exchange = std::fabs((row.a[static_cast<std::size_t>(k)] - row.a[static_cast<std::size_t>(next)]) * (w.weight(k, i) - w.weight(next, i)));
      const std::array<bool, change_count> shown = {term > threshold, term > threshold, exchange > threshold, 0.01 * term > threshold};
      const Index t = k / tile;
      const bool full = (t + 1) * tile <= p_.k;
      const TileKind kind = !full ? TileKind::tail : tiles == 1 ? TileKind::only : t == 0 ? TileKind::first : t + 1 == p_.k / tile ? TileKind::last_full : TileKind::interior;
      ++power.pairs;
      for (std::size_t change = 0; change < change_count; ++change) {
        if (!shown[change]) continue;
        ++power.by_output[change];
        ++power.by_either[change];
        power.lanes[static_cast<std::size_t>(kind)][change].set(static_cast<std::size_t>(k % tile));
      }
    }
  }

  void fail(Element& e, std::string why) {
    e.why = std::move(why);
    if (options_.judged) options_.judged(e);
    ++mine.outside;
    ++mine.failures[e.why];
    if (mine.outside == 1 || precedes(e, mine.first_failure)) mine.first_failure = e;
    Element& worst = mine.outputs[Output::c].worst;
    if (e.ratio >= worst.ratio && e.bound > 0) worst = e;
  }
  void excuse(const char* reason) { ++mine.excused[reason]; }

 public:
  static Index tile_of(const LowBitView& w) { return w.group > 0 && w.group <= max_tile ? w.group : 128; }
  double ratio_sum_ = 0;
  std::int64_t ratios_ = 0;

 private:
  const Product& p_;
  const TensorView& c_;
  const ProductContract& contract_;
  const JudgeOptions& options_;
  ProductBounds bounds_;
};

void merge(Verdict& into, const Verdict& from) {
  if (from.outside > 0 && (into.outside == 0 || precedes(from.first_failure, into.first_failure))) into.first_failure = from.first_failure;
  into.inside += from.inside;
  into.outside += from.outside;
  into.exact += from.exact;
  into.nan_expected += from.nan_expected;
  into.nan_found += from.nan_found;
  into.infinity_expected += from.infinity_expected;
  into.infinity_found += from.infinity_found;
  for (const auto& [why, n] : from.excused) into.excused[why] += n;
  for (const auto& [why, n] : from.failures) into.failures[why] += n;
  for (const auto& [output, part] : from.outputs) {
    Compared& mine = into.outputs[output];
    mine.elements += part.elements;
    if (part.worst.bound > 0 && part.worst.ratio >= mine.worst.ratio) mine.worst = part.worst;
  }
  into.power.add(from.power);
}

constexpr Index columns_of_a_task = 64;

}  // namespace

std::vector<ProductContract> product_ladder(Dtype a) {
  std::vector<ProductContract> ladder;
  auto add = [&](const char* name, ProductOrder order, double roundoff, bool products_rounded, std::optional<Dtype> weights) {
    ProductContract c;
    c.name = name;
    c.order = order;
    c.roundoff = roundoff;
    c.products_rounded = products_rounded;
    c.weight_dtype = weights;
    if (roundoff > 0x1p-20) c.largest = 65504, c.floor = 0x1p-24;
    ladder.push_back(c);
  };
  add("fp32 sums by group, any order", ProductOrder::groups, 0x1p-24, true, {});
  add("fp32 sums, any order", ProductOrder::any, 0x1p-24, true, {});
  add("fp32 truncating sums, any order", ProductOrder::any, 0x1p-23, true, {});
  if (a != Dtype::f32) add("weights rounded to the dtype of A, fp32 sums, any order", ProductOrder::any, 0x1p-24, true, a);
  if (a == Dtype::f16) add("fp16 sums, any order", ProductOrder::any, 0x1p-11, true, a);
  return ladder;
}

Verdict judge_product(const Product& p, const TensorView& c, const ProductContract& contract, const JudgeOptions& options) {
  Verdict v;
  v.contract = contract.name;
  v.tile = ProductJudge::tile_of(p.w);
  v.row_tile = 1;
  v.rows_total = p.m;
  const std::vector<Index> rows = rows_to_judge(p.m, options.sample_rows, options.seed);
  v.rows_judged = static_cast<Index>(rows.size());
  if (options.sample_rows > 0 && options.sample_rows < p.m) {
    v.sampled.assign(rows.begin(), rows.begin() + std::min<std::ptrdiff_t>(8, std::ssize(rows)));
    v.sample_rows = std::ssize(rows);
    v.sample_seed = options.seed;
  }
  std::vector<ProductRow> decoded(rows.size());
  parallel_for(std::ssize(rows), options.threads, [&](Index r) { decoded[static_cast<std::size_t>(r)].read(p, rows[static_cast<std::size_t>(r)]); });
  std::mutex mutex;
  double ratio_sum = 0;
  std::int64_t ratios = 0;
  parallel_for(rows.empty() ? 0 : (p.n + columns_of_a_task - 1) / columns_of_a_task, options.threads, [&](Index task) {
    const Index first = task * columns_of_a_task;
    const ProductColumns w(p.w, first, std::min(columns_of_a_task, p.n - first));
    ProductJudge judge(p, c, contract, options);
    for (std::size_t r = 0; r < rows.size(); ++r) judge.judge(decoded[r], rows[r], w);
    const std::lock_guard lock(mutex);
    merge(v, judge.mine);
    ratio_sum += judge.ratio_sum_;
    ratios += judge.ratios_;
  });
  v.mean_ratio = ratios > 0 ? ratio_sum / static_cast<double>(ratios) : 0;
  std::int64_t excused = 0;
  for (const auto& [why, n] : v.excused) excused += n;
  if (v.outside > 0) {
    v.outcome = Outcome::fail;
    v.reason = describe(v.first_failure);
  } else if (v.inside == 0) {
    v.outcome = Outcome::inconclusive;
    v.reason = excused == 0 ? "the problem has no output element" : "no element of C could be judged by its bound";
  } else {
    v.outcome = Outcome::pass;
    v.reason = excused == 0 ? "every element is inside its bound" : fmt::format("every element that a bound decides is inside it ({} excused)", excused);
    if (!v.sampled.empty()) v.reason += fmt::format("; {} of {} rows were judged: one of each equal stretch, seed {}", v.sample_rows, p.m, v.sample_seed);
  }
  return v;
}

Verdict judge_product_by_ladder(const Product& p, const TensorView& c, const JudgeOptions& options) {
  return climb(product_ladder(p.a_low ? Dtype::f32 : p.a.dtype), options,
               [&](const ProductContract& contract, const JudgeOptions& o) { return judge_product(p, c, contract, o); });
}

}  // namespace assay
