#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "oracle/conventional.h"
#include "oracle/decide.h"
#include "oracle/exact_sum.h"
#include "oracle/low_bit_operands.h"
#include "oracle/product.h"
#include "oracle/product_bound.h"
#include "oracle/row_sample.h"
#include "oracle/safety_factors.h"
#include "oracle/tally.h"
#include "oracle/weigh.h"
#include "oracle/weigh_product.h"
#include "problem/parallel.h"

namespace assay {
namespace {

// The number of terms that the power certificate takes for a tile.
Index tile_of(const LowBitView& w) { return w.group > 0 && w.group <= max_tile ? w.group : 128; }

double tensor_scale_of_a(const Product& p) {
  return p.a_low ? static_cast<double>(p.a_low.tensor_scale) : 1.0;
}

class ProductJudge {
 public:
  ProductJudge(const Product& p, const TensorView& c, const ProductContract& contract,
               const JudgeOptions& options, Tally& tally)
      : p_(p), c_(c), contract_(contract), options_(options), tally_(tally) {}

  void judge(const ProductRow& row, Index m, const ProductColumns& w) {
    bounds_.compute(row, w, contract_, p_.k);
    for (Index i = 0; i < w.count; ++i) judge_element(row, m, w, i);
  }

 private:
  void judge_element(const ProductRow& row, Index m, const ProductColumns& w, Index i) {
    ExactSum exact = exact_of(row, w, i, p_.k);
    ProductElementBound bound = bounds_.of_element(usize(i));
    const auto scale_by = [&](double g, bool in_weights) {
      if (g == 1) return;
      exact = times(exact, g);
      bound.scale_by(g, std::fabs(exact.high), in_weights, contract_);
    };
    scale_by(static_cast<double>(p_.w.tensor_scale), contract_.scales_weights);
    scale_by(tensor_scale_of_a(p_), false);
    const Index position = c_.at(0, 0, m, w.first + i);
    Element e = element_at(Output::c, 0, 0, m, w.first + i);
    measure(e, load(c_, position), exact.high, exact.low,
            stored_bound(bound.bound, exact.high, c_.dtype, contract_.roundoff), c_.dtype);
    tally_.compare(e);
    if (options_.untouched && options_.untouched(c_, position) && !std::isnan(exact.high))
      return fail(e, "C was not written");
    if (!std::isfinite(exact.high)) return judge_special(e, row, w, i, bound.may_overflow);
    if (bound.may_overflow && !std::isfinite(e.got))
      return tally_.excuse("sums may leave the range");
    if (std::isnan(e.got)) return fail(e, "C is NaN");
    const Preimage y = preimage(e.got, c_.dtype, contract_.roundoff);
    switch (decide(y, exact.high, exact.low, exact.radius, bound.bound, safety::product_slack)) {
      case Decision::outside:
        return fail(e, bound.bound == 0 ? "C is wrong, and no rounding explains it"
                                        : "C is outside its bound");
      case Decision::undecided: return tally_.excuse("not refuted: within the bound's own error");
      case Decision::inside: break;
    }
    tally_.inside(e, bound.bound == 0);
    // An infinity can be right where the value is beyond the output's range.
    if (std::isfinite(e.got) && e.bound > 0) {
      tally_.rate(e);
      tally_.tell(e);
      tally_.lean(((e.got - exact.high) - exact.low) / e.bound);
    }
    if (options_.power) certify(row, w, i, e.bound);
  }

  // Judges an element whose exact value is NaN or infinite.
  void judge_special(Element& e, const ProductRow& row, const ProductColumns& w, Index i,
                     bool may_overflow) {
    if (std::isnan(e.exact)) {
      ++tally_.verdict.nan_expected;
      return std::isnan(e.got) ? tally_.inside(e) : fail(e, "C is a number where NaN belongs");
    }
    ++tally_.verdict.infinity_expected;
    if (e.got == e.exact) return tally_.inside(e);
    if (may_overflow && !std::isfinite(e.got)) return tally_.excuse("sums may leave the range");
    if (std::isnan(e.got) && an_infinity_meets_0(row, w, i))
      return tally_.excuse("an infinity may meet a number that is read as 0");
    fail(e, "C is not the infinity that belongs there");
  }

  // Whether an element of A that the kernel reads as 0 is multiplied by an infinity.
  bool an_infinity_meets_0(const ProductRow& row, const ProductColumns& w, Index i) const {
    for (Index k = 0; k < p_.k; ++k)
      if (const double a = row.a[usize(k)];
          a != 0 && std::fabs(a) < contract_.operand_floor && std::isinf(w.code_at(k, i)))
        return true;
    return false;
  }

  // An element that fails can become the worst one here, even if it is NaN.
  void fail(Element& e, const char* why) {
    e.why = why;
    tally_.rate(e);
    tally_.fail(e, why);
  }

  // Counts the changes of one term that would move the element by more than twice its bound.
  void certify(const ProductRow& row, const ProductColumns& w, Index i, double bound) {
    Power& power = tally_.verdict.power;
    const double g =
        std::fabs(static_cast<double>(p_.w.tensor_scale)) * std::fabs(tensor_scale_of_a(p_));
    const double threshold = 2 * bound / g;
    for (Index k = 0; k < p_.k; ++k) {
      const Index next = k + 1 < p_.k ? k + 1 : std::max<Index>(k - 1, 0);
      const double a = row.a[usize(k)], weight = w.weight(k, i);
      const double term = std::fabs(a * weight);
      const double exchange = std::fabs((a - row.a[usize(next)]) * (weight - w.weight(next, i)));
      const std::array<bool, change_count> shown = {term > threshold, term > threshold,
                                                    exchange > threshold, 0.01 * term > threshold};
      auto& lanes = power.lanes[static_cast<std::size_t>(kind_of_tile(k))];
      const std::size_t lane = usize(k % tile_);
      ++power.pairs;
      for (std::size_t change = 0; change < change_count; ++change) {
        if (!shown[change]) continue;
        ++power.by_output[change];
        ++power.by_either[change];
        lanes[change].set(lane);
      }
    }
  }

  TileKind kind_of_tile(Index k) const {
    const Index t = k / tile_;
    if ((t + 1) * tile_ > p_.k) return TileKind::tail;
    if (p_.k <= tile_) return TileKind::only;
    if (t == 0) return TileKind::first;
    return t + 1 == p_.k / tile_ ? TileKind::last_full : TileKind::interior;
  }

  const Product& p_;
  const TensorView& c_;
  const ProductContract& contract_;
  const JudgeOptions& options_;
  Tally& tally_;
  ProductBounds bounds_;
  Index tile_ = tile_of(p_.w);
};

constexpr Index columns_of_a_task = 64;

// Judges the chosen rows; each task takes some of the columns.
void judge_columns(const Product& p, const TensorView& c, const ProductContract& contract,
                   const JudgeOptions& options, const std::vector<Index>& rows, Tally& total) {
  if (rows.empty()) return;
  std::vector<ProductRow> decoded(rows.size());
  parallel_for(std::ssize(rows), options.threads,
               [&](Index r) { decoded[usize(r)].read(p, rows[usize(r)]); });
  const Index tasks = (p.n + columns_of_a_task - 1) / columns_of_a_task;
  // The tallies are merged in their order, so that the verdict is the same for any number of
  // threads.
  std::vector<Tally> tallies(usize(tasks), Tally(options, Ties::last));
  parallel_for(tasks, options.threads, [&](Index task) {
    const Index first = task * columns_of_a_task;
    const ProductColumns w(p.w, first, std::min(columns_of_a_task, p.n - first));
    ProductJudge judge(p, c, contract, options, tallies[usize(task)]);
    for (std::size_t r = 0; r < rows.size(); ++r) judge.judge(decoded[r], rows[r], w);
  });
  for (const Tally& tally : tallies) total.merge(tally);
}

}  // namespace

std::vector<ProductContract> product_ladder(const Product& p) {
  const Dtype a = dtype_of_a(p);
  std::vector<ProductContract> ladder;
  const auto add = [&](std::string name, ProductOrder order, double roundoff) -> ProductContract& {
    ProductContract& c = ladder.emplace_back();
    c.name = std::move(name);
    c.order = order;
    c.roundoff = roundoff;
    c.products_rounded = true;
    return c;
  };
  add("fp32 sums by group, any order", ProductOrder::groups, 0x1p-24);
  add("fp32 sums, any order", ProductOrder::any, 0x1p-24);
  if (p.w.tensor_scale != 1)
    add("fp32 sums, any order, tensor scale in the weights", ProductOrder::any, 0x1p-24)
        .scales_weights = true;
  add("fp32 truncating sums, any order", ProductOrder::any, 0x1p-23);
  const auto is_fp8 = [](LowBit f) { return f == LowBit::f8e4m3 || f == LowBit::f8e5m2; };
  if (p.a_low && is_fp8(p.a_low.format) && is_fp8(p.w.format)) {
    ProductContract& c =
        add("sums of 13 fraction bits in blocks of 32 (FP8 matrix instructions of Ada and Hopper)",
            ProductOrder::any, 0x1p-13);
    c.block = 32;
    c.products_rounded = false;
  }
  if (a != Dtype::f32)
    add("weights rounded to the dtype of A, fp32 sums, any order", ProductOrder::any, 0x1p-24)
        .weight_dtype = a;
  if (a == Dtype::f16) {
    ProductContract& c = add("fp16 sums, any order", ProductOrder::any, 0x1p-11);
    c.weight_dtype = a;
    c.largest = 65504;
    c.floor = 0x1p-24;
  }
  return ladder;
}

namespace {

// The verdict by bounds alone.
Verdict judge_bounds(const Product& p, const TensorView& c, const ProductContract& declared,
                     const JudgeOptions& options) {
  ProductContract contract = declared;
  // Sums of scaled weights underflow and overflow as such; the bound is scaled at the end.
  if (contract.scales_weights) {
    const double g = std::fabs(static_cast<double>(p.w.tensor_scale));
    contract.floor /= std::min(1.0, g);
    contract.largest /= std::max(1.0, g);
  }
  const std::vector<Index> rows = rows_to_judge(p.m, options.sample_rows, options.seed);
  Tally tally(options, Ties::last);
  judge_columns(p, c, contract, options, rows, tally);
  Verdict v = tally.finish();
  v.contract = contract.name;
  v.arithmetic = declared;
  v.tile = tile_of(p.w);
  v.row_tile = 1;
  v.rows_total = p.m;
  v.rows_judged = std::ssize(rows);
  note_sample(v, rows, p.m, options.seed);
  conclude(v, v.inside, {.judged = "element of C"});
  if (v.outcome == Outcome::pass) v.reason += sentence_on_sample(v, p.m, "rows");
  return v;
}

}  // namespace

Verdict judge_product(const Product& p, const TensorView& c, const ProductContract& declared,
                      const JudgeOptions& options) {
  const ProductContract contract = flushing(options.conventions, declared);
  Verdict v = judge_bounds(p, c, contract, options);
  if (is_weighed(v, options))
    take_evidence(v, weigh_product(p, c, {&contract, 1}, v, options), options.evidence);
  return v;
}

Verdict judge_product_by_ladder(const Product& p, const TensorView& c,
                                const JudgeOptions& options) {
  std::vector<ProductContract> ladder = product_ladder(p);
  for (ProductContract& rung : ladder) rung = flushing(options.conventions, rung);
  Verdict v = climb(ladder, options, [&](const ProductContract& contract, const JudgeOptions& o) {
    return judge_bounds(p, c, contract, o);
  });
  const auto first = std::ranges::find(ladder, v.contract, &ProductContract::name);
  if (is_weighed(v, options))
    take_evidence(v, weigh_product(p, c, {first, ladder.end()}, v, options), options.evidence);
  return v;
}

}  // namespace assay
