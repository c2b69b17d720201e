// Identities that hold of any problem: between the answers to two problems, between the outputs of
// one problem, and between outputs and inputs. Each identity is a sum that is exact for the exact
// outputs, so the computed outputs leave at most the same sum of the elements' own bounds; nothing
// is tuned. Cases are drawn at random. Every test tells how much it compared, and shows that the
// identity fails for a kernel with a fault.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "harness/records/record.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/merge.h"
#include "oracle/merge.h"
#include "oracle/visibility.h"
#include "testing/matchers.h"
#include "testing/ran_case.h"
#include "testing/require_that.h"
#include "testing/same_bits.h"

namespace assay {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double log_two = 0x1.62e42fefa39efp-1;

// Returns how much an identity compared on one case, and throws if it does not hold.
using Identity = std::int64_t(const Case& c, Candidate& kernel);

// `least` is at most a tenth of what a hundred cases give. The test fails if almost nothing is
// compared any more.
void expect_of_the_kernel(CaseKind kind, Identity& identity, std::int64_t least) {
  std::int64_t compared = 0;
  EXPECT_TRUE(rc::check([&] { compared += identity(*any_case(kind), production_kernel()); }));
  printf("%ld compared\n", static_cast<long>(compared));
  EXPECT_GE(compared, least);
}

void expect_to_fail_of(const char* fault, CaseKind kind, Identity& identity) {
  const auto candidate = make_candidate(fault);
  rc::detail::TestParams params;
  params.seed = 7;
  params.maxSuccess = 500;
  params.disableShrinking = true;
  const auto result = rc::detail::checkTestable([&] { identity(*any_case(kind), *candidate); },
                                                rc::detail::TestMetadata{}, params);
  EXPECT_TRUE(result.is<rc::detail::FailureResult>()) << fault << " keeps the identity";
}

// A sum of measured numbers with the sum of their bounds, which is the largest distance from the
// same sum of the exact numbers.
class Sum {
 public:
  void add(double weight, double measured, const Enclosed& of) {
    if (weight == 0 || (of.known && of.bound == 0 && measured == 0))
      return;  // the term is 0, also if the other factor is the NaN of a key that no row sees
    known_ = known_ && of.known && std::isfinite(weight) && std::isfinite(measured);
    value_ += weight * measured;
    bound_ += std::fabs(weight) * of.bound;
    absolute_ += std::fabs(weight * measured);
    ++terms_;
  }
  void add_exactly(double weight, double x) { add(weight, x, {x, 0, true}); }
  bool known() const { return known_ && std::isfinite(value_) && std::isfinite(bound_); }
  bool empty() const { return terms_ == 0; }

  // Whether the exact sums can be equal. The second part of the tolerance is the rounding of this
  // sum itself, gamma of its terms and products.
  bool may_equal(const Sum& other) const {
    return std::fabs(value_ - other.value_) <= tolerance() + other.tolerance();
  }

 private:
  double tolerance() const { return bound_ * (1 + 0x1p-40) + (terms_ + 4) * 0x1p-52 * absolute_; }
  double value_ = 0, bound_ = 0, absolute_ = 0, terms_ = 0;
  bool known_ = true;
};

// Returns 1 if the two could be compared, and throws if they cannot be equal.
std::int64_t require_equal(const Sum& a, const Sum& b) {
  if (!a.known() || !b.known() || (a.empty() && b.empty())) return 0;
  RC_ASSERT(a.may_equal(b));
  return 1;
}

Case without_dropout(Case c) {
  c.dropout = 0, c.dropout_seed = 0;
  return c;
}
Case without_dropout_and_sink(Case c) {
  c.sink.reset();
  return without_dropout(std::move(c));
}

Attention with_values(const Attention& p, const Tensor& v) {
  Attention other = p;
  other.v = v.view();
  other.shape.value_dim = v.view().shape[3];
  return other;
}

// ---- Two problems that mean the same ----

// Puts `more` keys before the first one. key_starts hides them, so they and their masks may hold
// anything.
struct Prepended {
  Prepended(const Attention& p, Index more, double fill) : problem(p) {
    const AttentionShape& s = p.shape;
    const auto longer = [&](const TensorView& t, Index columns) {
      return made(t.dtype, {s.batch, s.kv_heads, s.keys + more, columns},
                  [&](Index b, Index g, Index j, Index d) {
                    return j < more ? round_to(t.dtype, fill) : at(t, b, g, j - more, d);
                  });
    };
    k = longer(p.k, s.dim);
    v = longer(p.v, s.value_dim);
    problem.shape.keys += more;
    problem.k = k.view();
    problem.v = v.view();
    const Extents pairs{s.batch, s.query_heads, s.rows, s.keys + more};
    if (p.bias) {
      bias = made(p.bias.dtype, pairs, [&](Index b, Index h, Index i, Index j) {
        return j < more ? round_to(p.bias.dtype, fill) : at(p.bias, b, h, i, j - more);
      });
      problem.bias = bias.view();
    }
    if (p.keep) {
      for_each_index(pairs, [&](Index b, Index h, Index i, Index j) {
        keep.push_back(j < more || p.keep.at(b, h, i, j - more));
      });
      problem.keep = {keep.data(),
                      {pairs[1] * pairs[2] * pairs[3], pairs[2] * pairs[3], pairs[3], 1}};
    }
    const auto batches = usize(s.batch);
    problem.offset.resize(batches, 0);
    problem.key_starts.resize(batches, 0);
    for (auto* positions : {&problem.offset, &problem.key_starts, &problem.key_lengths})
      for (Index& n : *positions) n += more;
    problem.key_segment.clear();
    for (Index b = 0; b < s.batch && !p.key_segment.empty(); ++b) {
      problem.key_segment.insert(problem.key_segment.end(), usize(more),
                                 p.query_segment[usize(b * s.rows)]);
      const auto from = p.key_segment.begin() + b * s.keys;
      problem.key_segment.insert(problem.key_segment.end(), from, from + s.keys);
    }
  }
  Prepended(const Prepended&) = delete;
  Prepended& operator=(const Prepended&) = delete;

  Attention problem;
  Tensor k, v, bias;
  std::vector<std::uint8_t> keep;
};

// Splits of keys, and the tiles that they consist of, begin at multiples of their width from key 0.
// Behind whole splits of hidden keys, every key therefore has the same neighbours in its tile, the
// merge leaves out empty splits, and every bit of O and LSE is the same. Behind any other number of
// hidden keys, the keys fall into other tiles: maxima rise at other keys, and sums are associated
// in another way. Both answers are then only within their own bounds of the exact value that they
// share.
std::int64_t prepended_keys_change_nothing(const Case& drawn, Candidate& kernel) {
  const Ran r(without_dropout(drawn), kernel);  // its draws are numbered by the key
  const AttentionShape& s = r.c.shape;
  const Index split = kernels::forward_tiling(s.dim, s.value_dim).split_keys;
  const Index more =
      *rc::gen::oneOf(rc::gen::inRange<Index>(1, 150), rc::gen::element(split, 2 * split));
  const Prepended other(r.in.problem, more, *rc::gen::element(std::nan(""), infinity, 30000.0));
  const Outputs plain = r.run(r.in.problem), behind = r.run(other.problem);
  if (more % split == 0) {
    require_same(plain, behind);
    return s.batch * s.query_heads * s.rows * (s.value_dim + 1);
  }
  const Enclosures e(r.in.problem, contract_of(kernel, r.in.problem, r.how), r.c.out_dtype()),
      f(other.problem, contract_of(kernel, other.problem, r.how), r.c.out_dtype());
  std::int64_t compared = 0;
  const auto compare = [&](const Enclosed& x, const Enclosed& y, double a, double b) {
    if (std::isnan(x.exact)) RC_ASSERT(std::isnan(a) && std::isnan(b));
    else if (x.known && y.known) {
      ++compared;
      RC_ASSERT(std::fabs(a - x.exact) <= x.bound);
      RC_ASSERT(std::fabs(b - x.exact) <=
                y.bound + 0x1p-40 * x.bound);  // the bound of the enclosure of the plain problem
    }
  };
  for_each_index(plain.o.view().shape, [&](Index b, Index h, Index i, Index c) {
    compare(e.o(b, h, i, c), f.o(b, h, i, c), at(plain.o.view(), b, h, i, c),
            at(behind.o.view(), b, h, i, c));
    if (c == 0)
      compare(e.lse(b, h, i), f.lse(b, h, i), at(plain.lse.view(), b, h, i, 0),
              at(behind.lse.view(), b, h, i, 0));
  });
  return compared;
}

TEST(Identity, MaskedKeysMayBePrepended) {
  expect_of_the_kernel(CaseKind::forward, prepended_keys_change_nothing, 20000);
  for (const char* fault :
       {"fault:window-start-rounded-up-to-tile", "fault:alibi-distance-from-key-zero"})
    expect_to_fail_of(fault, CaseKind::forward, prepended_keys_change_nothing);
}

// The same rows over only the keys [begin, end).
Attention over_keys(const Attention& p, Index begin, Index end) {
  Attention part = p;
  part.shape.keys = end - begin;
  part.k.origin = p.k.at(0, 0, begin, 0);
  part.v.origin = p.v.at(0, 0, begin, 0);
  if (p.bias) part.bias.origin = p.bias.at(0, 0, 0, begin);
  if (p.keep) part.keep.data += begin * p.keep.stride[3];
  part.offset.resize(usize(p.shape.batch), 0);
  for (Index& n : part.offset) n -= begin;
  for (auto* ends : {&part.key_lengths, &part.key_starts})
    for (Index& n : *ends) n = std::clamp<Index>(n - begin, 0, end - begin);
  part.key_segment.clear();
  for (Index b = 0; b < p.shape.batch && !p.key_segment.empty(); ++b)
    part.key_segment.insert(part.key_segment.end(),
                            p.key_segment.begin() + b * p.shape.keys + begin,
                            p.key_segment.begin() + b * p.shape.keys + end);
  return part;
}

// Divides the keys into up to four parts. The kernel computes each part, and the parts are merged
// in natural units or with every LSE in base 2.
//
// The exact results of the parts merge to the exact whole: O = sum p_s O_s, p_s = e^(L_s - L). The
// merge reads computed numbers: LSE_s within beta_s of L_s (its conversion to base 2 included) and
// O_s within B_s of the exact one. With beta the largest beta_s, every weight changes by a factor
// within e^(+-2 beta) after normalisation, so that
//   |O' - O| <= sum p_s e^(2 beta) B_s + (e^(2 beta) - 1) sum p_s |O_s - O|,   |L' - L| <= beta,
// The errors of the merge itself come in addition. Their bound, for the numbers that it read, is
// the bound of its verdict.
std::int64_t parts_merge_to_the_whole(const Case& drawn, Candidate& kernel) {
  const Ran r(without_dropout(drawn), kernel);
  const Attention& p = r.in.problem;
  const AttentionShape& s = p.shape;
  std::vector<Index> cuts = *rc::gen::container<std::vector<Index>>(
      *rc::gen::inRange<std::size_t>(1, 4), rc::gen::inRange<Index>(0, s.keys + 1));
  cuts.insert(cuts.end(), {0, s.keys});
  std::sort(cuts.begin(), cuts.end());
  const bool base_two = *rc::gen::arbitrary<bool>();
  const double unit = base_two ? log_two : 1;

  std::vector<Outputs> parts;
  std::vector<Enclosures> exact;
  std::vector<AttentionOutput> views;
  for (std::size_t k = 0; k + 1 < cuts.size(); ++k) {
    Attention part = over_keys(p, cuts[k], cuts[k + 1]);
    if (k > 0) part.sink.clear();  // the sink joins only once
    parts.push_back(r.run(part));
    exact.emplace_back(part, contract_of(kernel, part, r.how), r.c.out_dtype());
    const TensorView& lse = parts.back().lse.view();
    for_each_index(lse.shape, [&](Index b, Index h, Index i, Index) {
      store(lse, lse.at(b, h, i, 0), at(lse, b, h, i, 0) / unit);
    });
    views.push_back(parts.back().view());
  }
  const Outputs whole = r.run(p), merged = r.run(p);
  const Enclosures of_whole(p, contract_of(kernel, p, r.how), r.c.out_dtype());
  RC_ASSERT(kernels::attention_merge(views,
                                     base_two ? kernels::LogBase::two : kernels::LogBase::natural,
                                     merged.view(), 1)
                .ok());
  Contract merging;
  merging.roundoff = 0x1p-53;
  const MergeProblem problem{views, base_two};
  const Verdict v = judge_merge(problem, merged.view(), merging);
  require_that(v, HasNothingOutside());

  std::int64_t compared = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h)
      for (Index i = 0; i < s.rows; ++i) {
        const Enclosed& l = of_whole.lse(b, h, i);
        std::vector<double> weight(parts.size(), 0);
        double beta = 0;
        bool known = l.known;
        for (std::size_t k = 0; k < parts.size() && known; ++k) {
          const Enclosed& part = exact[k].lse(b, h, i);
          if (part.exact == -infinity) continue;  // the part saw no key
          known = part.known;
          weight[k] = std::exp(part.exact - l.exact) * (1 + 0x1p-30);
          beta = std::max(
              beta, part.bound + (base_two ? half_ulp(Dtype::f32,
                                                      (std::fabs(part.exact) + part.bound) / unit) *
                                                 unit * (1 + 0x1p-40)
                                           : 0));
        }
        if (!known || !(beta < 1)) continue;
        const MergedRow own = merge_row(problem, merging, b, h, i, 0);
        if (own.nan || own.empty) continue;
        const auto merge_error = [&](double value, double bound, double radius, Dtype dtype) {
          return bound + radius + half_ulp(dtype, std::fabs(value) + bound);
        };
        const double lse = at(merged.lse.view(), b, h, i, 0) * unit;
        const double lse_error =
            beta +
            merge_error(own.lse, own.lse_bound, own.lse_radius, Dtype::f32) * unit * (1 + 0x1p-40) +
            0x1p-50 * std::fabs(lse);
        RC_ASSERT(std::fabs(lse - l.exact) <= lse_error + l.bound);
        RC_ASSERT(std::fabs(lse - at(whole.lse.view(), b, h, i, 0)) <= lse_error + l.bound);
        ++compared;
        for (Index c = 0; c < s.value_dim; ++c) {
          const Enclosed& o = of_whole.o(b, h, i, c);
          const auto column = usize(c);
          double error = merge_error(own.o[column], own.o_bound[column], own.o_radius[column],
                                     r.c.out_dtype());
          bool decided = o.known && own.extended[column] == 0 && !own.may_overflow[column];
          for (std::size_t k = 0; k < parts.size() && decided; ++k) {
            if (weight[k] == 0) continue;
            const Enclosed& part = exact[k].o(b, h, i, c);
            decided = part.known;
            error += weight[k] * (std::exp(2 * beta) * part.bound +
                                  std::expm1(2 * beta) * std::fabs(part.exact - o.exact));
          }
          if (!decided) continue;
          ++compared;
          const double got = at(merged.o.view(), b, h, i, c);
          RC_ASSERT(std::fabs(got - at(whole.o.view(), b, h, i, c)) <= error + o.bound);
        }
      }
  return compared;
}

TEST(Identity, PartsOfTheKeysMergeToTheWhole) {
  expect_of_the_kernel(CaseKind::forward, parts_merge_to_the_whole, 20000);
  for (const char* fault : {"fault:lse-in-base-two", "fault:alibi-distance-from-key-zero"})
    expect_to_fail_of(fault, CaseKind::forward, parts_merge_to_the_whole);
}

// A record with its LSE in base 2 is rounded to binary32 once more, as a kernel that works in base
// 2 would round it. It gets the same verdict as the record in natural units. The same numbers under
// the wrong unit do not, except where every LSE is near 0.
TEST(Identity, RecordsInBaseTwoAreJudgedAlike) {
  const std::string path =
      (std::filesystem::path(testing::TempDir()) / ("base_two_" + std::to_string(getpid())))
          .string();
  VerifyOptions options;
  options.power = false;
  std::int64_t compared = 0, judged = 0, wrong_unit = 0, other_contract = 0;
  EXPECT_TRUE(rc::check([&] {
    const Case c = *any_case(CaseKind::forward);
    write_records(path, {c}, &production_kernel());
    const auto verdict = [&] {
      const RecordFile file(path);
      const Verdict v = verify(file, file.read(""), options).verdict;
      return v;
    };
    const Verdict natural = verdict();
    bool fits = true;  // an LSE near the least number of a mask has no number in base 2
    const auto rewrite = [&](double factor, const char* unit) {
      const MappedFile file(path);
      Safetensors contents = parse_safetensors(file.bytes());
      contents.metadata.at("record") += unit;
      std::vector<TensorToStore> tensors;
      for (const auto& [name, t] : contents.tensors) {
        std::vector<std::byte> bytes(t.bytes.begin(), t.bytes.end());
        for (std::size_t e = 0; name == "lse" && e < bytes.size(); e += sizeof(float)) {
          float x;
          std::memcpy(&x, bytes.data() + e, sizeof x);
          fits = fits &&
                 !(std::isfinite(x) && std::fabs(x * factor) >= overflow_threshold(Dtype::f32));
          x = static_cast<float>(x * factor);
          std::memcpy(bytes.data() + e, &x, sizeof x);
        }
        tensors.push_back({name, t.dtype, t.shape, bytes.size(),
                           [bytes](const auto& put) { put(bytes.data(), bytes.size()); }});
      }
      write_safetensors(path, std::move(tensors), contents.metadata);
    };
    rewrite(1 / log_two, "");
    const Verdict mistaken = verdict();
    rewrite(1, " lse=base2");
    const Verdict base_two = verdict();
    if (!fits) return;
    require_that(natural, HasNothingOutside());
    RC_ASSERT(name_of(base_two.outcome) == name_of(natural.outcome));
    RC_ASSERT(base_two.compared(Output::lse) == natural.compared(Output::lse));
    // One more rounding may refute the strictest arithmetic, and another arithmetic leaves other
    // elements to the hull.
    if (base_two.contract == natural.contract) RC_ASSERT(base_two.inside == natural.inside);
    else ++other_contract;
    compared += base_two.compared(Output::lse);
    ++judged;
    wrong_unit += mistaken.outcome == Outcome::fail;
  }));
  std::filesystem::remove(path);
  printf(
      "%ld LSEs compared; of %ld records %ld fail under the wrong unit, %ld pass by a more lenient "
      "arithmetic\n",
      static_cast<long>(compared), static_cast<long>(judged), static_cast<long>(wrong_unit),
      static_cast<long>(other_contract));
  EXPECT_GE(compared, 1000);
  EXPECT_GE(wrong_unit, judged / 2);
  EXPECT_LE(other_contract, judged / 4);
}

// ---- What the values say ----

// Without a sink and without dropout the weights sum to 1. The errors of scores and exponentials
// cancel, because their bound is proportional to V - O, which is 0.
std::int64_t ones_give_one(const Case& drawn, Candidate& kernel) {
  const Ran r(without_dropout_and_sink(drawn), kernel);
  const AttentionShape& s = r.c.shape;
  const Tensor ones =
      made(r.in.problem.v.dtype, s.v_extents(), [](Index, Index, Index, Index) { return 1.0; });
  const Attention p = with_values(r.in.problem, ones);
  const Outputs out = r.run(p);
  const Enclosures e(p, contract_of(kernel, p, r.how), r.c.out_dtype());
  std::int64_t compared = 0;
  for_each_index(out.o.view().shape, [&](Index b, Index h, Index i, Index c) {
    const Enclosed& o = e.o(b, h, i, c);
    if (!o.known) return;
    const double y = at(out.o.view(), b, h, i, c);
    RC_ASSERT((e.lse(b, h, i).exact == -infinity ? y == 0 : std::fabs(y - 1) <= o.bound));
    ++compared;
  });
  return compared;
}

TEST(Identity, OnesGiveOne) {
  expect_of_the_kernel(CaseKind::forward, ones_give_one, 10000);
  for (const char* fault : {"fault:sum-not-rescaled", "fault:zero-at-tail-enters-sum"})
    expect_to_fail_of(fault, CaseKind::forward, ones_give_one);
}

// O is a mean over what the row sees: V divided by 1 - p where it is kept, and 0 where it is
// dropped and for the sink.
std::int64_t outputs_lie_in_the_hull(const Case& c, Candidate& kernel) {
  const Ran r(c, kernel);
  const Attention& p = r.in.problem;
  const AttentionShape& s = p.shape;
  const Outputs out = r.run(p);
  const Enclosures e(p, contract_of(kernel, p, r.how), r.c.out_dtype());
  const double scale = 1 / (1 - static_cast<double>(p.dropout));
  std::int64_t compared = 0;
  RowVisibility row;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h)
      for (Index i = 0; i < s.rows; ++i) {
        evaluate_visibility(p, b, h, i, row);
        if (row.visible == 0) continue;
        for (Index column = 0; column < s.value_dim; ++column) {
          const Enclosed& o = e.o(b, h, i, column);
          if (!o.known) continue;
          double low = p.sink.empty() ? infinity : 0, high = p.sink.empty() ? -infinity : 0;
          for (Index j = row.begin; j < row.end; ++j) {
            if (row.bias[usize(j)] == -infinity) continue;
            const double x = p.dropout > 0 && !keeps_weight(p, b, h, i, j)
                                 ? 0
                                 : scale * at(p.v, b, h / s.group(), j, column);
            low = std::min(low, x), high = std::max(high, x);
          }
          const double y = at(out.o.view(), b, h, i, column), outside = std::max(low - y, y - high);
          RC_ASSERT(
              outside <=
              o.bound +
                  0x1p-50 *
                      std::max(std::fabs(low),
                               std::fabs(high)));  // the roundings of `scale` and of its products
          ++compared;
        }
      }
  return compared;
}

TEST(Identity, OutputsLieInTheHullOfWhatIsSeen) {
  expect_of_the_kernel(CaseKind::forward, outputs_lie_in_the_hull, 10000);
  expect_to_fail_of("fault:accumulator-not-rescaled", CaseKind::forward, outputs_lie_in_the_hull);
}

// V is the unit matrix, so O lists the weights. A hidden or dropped key has exactly 0, which no sum
// of products with 0 misses. A key that is seen has more than 0, unless its bound says that it may
// vanish. The weights sum to 1.
std::int64_t weights_read_off(const Case& c, Candidate& kernel) {
  const Ran r(c, kernel);
  const AttentionShape& s = r.c.shape;
  RC_PRE(s.keys <= max_head_dim);
  const Tensor unit = made(r.in.problem.v.dtype, {s.batch, s.kv_heads, s.keys, s.keys},
                           [](Index, Index, Index j, Index d) { return j == d ? 1.0 : 0.0; });
  const Attention p = with_values(r.in.problem, unit);
  const Outputs out = r.run(p);
  const Enclosures e(p, contract_of(kernel, p, r.how), r.c.out_dtype());
  std::int64_t compared = 0;
  RowVisibility row;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h)
      for (Index i = 0; i < s.rows; ++i) {
        evaluate_visibility(p, b, h, i, row);
        Sum sum, one;
        for (Index j = 0; j < s.keys; ++j) {
          const Enclosed& o = e.o(b, h, i, j);
          const double y = at(out.o.view(), b, h, i, j);
          sum.add(1, y, o);
          if (!o.known) continue;
          const bool seen = j >= row.begin && j < row.end && row.bias[usize(j)] != -infinity;
          if (!seen || !keeps_weight(p, b, h, i, j)) RC_ASSERT(y == 0);
          else if (o.exact > o.bound) RC_ASSERT(y > 0);
          ++compared;
        }
        one.add_exactly(1, 1);
        if (p.sink.empty() && p.dropout == 0 && row.visible > 0)
          compared += require_equal(sum, one);
      }
  return compared;
}

TEST(Identity, UnitVectorsReadOffTheAttendedKeys) {
  expect_of_the_kernel(CaseKind::forward, weights_read_off, 20000);
  for (const char* fault : {"fault:causal-off-by-one", "fault:document-boundary-off-by-one"})
    expect_to_fail_of(fault, CaseKind::forward, weights_read_off);
}

// The weights of the codes are exactly 0 or equal, and the sums of the values do not round. So O is
// exact and needs no bound, whatever the extents and the masks are.
std::int64_t codes_are_exact(const Case& drawn, Candidate& kernel) {
  Case c = without_dropout_and_sink(drawn);
  c.scores = *rc::gen::element(Scores::subset, Scores::gather, Scores::equal);
  c.values = *rc::gen::element(Values::integers, Values::balanced, Values::ones);
  c.bias = {};
  c.alibi = false;
  c.softcap = 0;
  c.scale.reset();
  c.pokes.clear();
  const Ran r(c, kernel);
  const Outputs out = r.run(r.in.problem);
  JudgeOptions options;
  options.power = false;
  const Verdict v =
      judge(r.in.problem, out.view(), contract_of(kernel, r.in.problem, r.how), options);
  require_that(v, HasNothingOutside());
  if (c.scores == Scores::equal)
    // Masks may hide the key that another row was to pick.
    RC_ASSERT(v.exact == v.compared(Output::o));
  return v.exact;
}

TEST(Identity, CodesAreExactAtAnyLength) {
  expect_of_the_kernel(CaseKind::forward, codes_are_exact, 10000);
  expect_to_fail_of("fault:window-off-by-one", CaseKind::forward, codes_are_exact);
}

// ---- Gradients ----
// For exact gradients, dS_ij = p_ij (R_ij dP_ij - D_i) with dP_ij = dO_i . v_j, D_i = dO_i . O_i,
// O_i = sum_j p_ij R_ij v_j, and dS' = f dS, where f is the slope of a softcap.

// sum_j p_ij R_ij dP_ij = dO_i . O_i = D_i with any mask, softcap and dropout, because R is a
// factor in O as well. So sum_j dS_ij = D_i (1 - sum_j p_ij). Without a sink this is 0. With one,
// 1 - sum_j p_ij is the share of the sink, and the row adds -D_i times it to dSink. dS is the
// gradient of the bias, before the slope of the softcap. So sums of dBias over the keys are 0, and
// with a sink sum_bij dBias + dSink = 0 for each head.
std::int64_t bias_gradients_sum_to_zero(const Case& c, Candidate& kernel) {
  const Ran r(c, kernel);
  const AttentionShape& s = r.c.shape;
  const RanBackward g(r, r.in.problem, r.in.d_o.view());
  std::int64_t compared = 0;
  const Sum zero;
  for (Index h = 0; h < s.query_heads; ++h) {
    Sum head;
    for (Index b = 0; b < s.batch; ++b)
      for (Index i = 0; i < s.rows; ++i) {
        Sum row;
        for (Index j = 0; j < s.keys; ++j)
          for (Sum* sum : {&row, &head})
            sum->add(1, at(g.out().d_bias, b, h, i, j), g.d_bias(b, h, i, j));
        if (!c.sink) compared += require_equal(row, zero);
      }
    if (!c.sink) continue;
    head.add(1, at(g.out().d_sink, 0, h, 0, 0), g.d_sink(h));
    compared += require_equal(head, zero);
  }
  return compared;
}

TEST(Identity, GradientsOfScoresSumToZero) {
  expect_of_the_kernel(CaseKind::backward, bias_gradients_sum_to_zero, 300);
  for (const char* fault : {"fault:delta-omitted", "fault:sink-gradient-sign",
                            "fault:weight-gradients-without-dropout-scale"})
    expect_to_fail_of(fault, CaseKind::backward, bias_gradients_sum_to_zero);
}

// Both sides are scale sum_ij dS'_ij q_i . k_j, over the query heads of one kv head. This holds
// with any mask, softcap, sink and dropout, because dQ and dK use the same dS'.
std::int64_t queries_and_keys_balance(const Case& c, Candidate& kernel) {
  const Ran r(c, kernel);
  const AttentionShape& s = r.c.shape;
  const Attention& p = r.in.problem;
  const RanBackward x(r, p, r.in.d_o.view());
  std::int64_t compared = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index g = 0; g < s.kv_heads; ++g) {
      Sum queries, keys;
      for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h)
        for (Index i = 0; i < s.rows; ++i)
          for (Index d = 0; d < s.dim; ++d)
            queries.add(at(p.q, b, h, i, d), at(x.out().dq, b, h, i, d), x.dq(b, h, i, d));
      for (Index j = 0; j < s.keys; ++j)
        for (Index d = 0; d < s.dim; ++d)
          keys.add(at(p.k, b, g, j, d), at(x.out().dk, b, g, j, d), x.dk(b, g, j, d));
      compared += require_equal(queries, keys);
    }
  return compared;
}

TEST(Identity, QueriesAndKeysBalance) {
  expect_of_the_kernel(CaseKind::backward, queries_and_keys_balance, 20);
  for (const char* fault : {"fault:key-gradient-unscaled", "fault:query-gradient-scaled-twice"})
    expect_to_fail_of(fault, CaseKind::backward, queries_and_keys_balance);
}

// sum_j v_j . dV_j = sum_ij p_ij R_ij dO_i . v_j = sum_i dO_i . O_i always holds. And sum_j dV_j =
// sum_i (sum_j p_ij R_ij) dO_i. Without a sink and without dropout this is the sum of dO over the
// rows that see a key.
std::int64_t values_and_outputs_balance(const Case& c, Candidate& kernel) {
  const Ran r(c, kernel);
  const AttentionShape& s = r.c.shape;
  const Attention& p = r.in.problem;
  const TensorView& d_o = r.in.d_o.view();
  const RanBackward x(r, p, d_o);
  const Enclosures e(p, contract_of(kernel, p, r.how), r.c.out_dtype());
  std::int64_t compared = 0;
  for (Index b = 0; b < s.batch; ++b)
    for (Index g = 0; g < s.kv_heads; ++g) {
      Sum values, outputs;
      for (Index column = 0; column < s.value_dim; ++column) {
        Sum of_keys, of_rows;
        for (Index j = 0; j < s.keys; ++j) {
          const double dv = at(x.out().dv, b, g, j, column);
          of_keys.add(1, dv, x.dv(b, g, j, column));
          values.add(at(p.v, b, g, j, column), dv, x.dv(b, g, j, column));
        }
        for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h)
          for (Index i = 0; i < s.rows; ++i) {
            const double upstream = at(d_o, b, h, i, column);
            outputs.add(upstream, at(x.forward().o.view(), b, h, i, column), e.o(b, h, i, column));
            if (e.lse(b, h, i).exact != -infinity) of_rows.add_exactly(1, upstream);
          }
        if (!c.sink && c.dropout == 0) compared += require_equal(of_keys, of_rows);
      }
      compared += require_equal(values, outputs);
    }
  return compared;
}

TEST(Identity, ValuesAndOutputsBalance) {
  expect_of_the_kernel(CaseKind::backward, values_and_outputs_balance, 500);
  for (const char* fault : {"fault:last-row-tile-dropped", "fault:backward-without-dropout"})
    expect_to_fail_of(fault, CaseKind::backward, values_and_outputs_balance);
}

// If dO is 0, all of dP, D and dS are sums of products with 0.
std::int64_t nothing_comes_of_nothing(const Case& c, Candidate& kernel) {
  const Ran r(c, kernel);
  const Tensor zero = contiguous(r.in.d_o.view().dtype, r.in.d_o.view().shape);
  const RanBackward x(r, r.in.problem, zero.view());
  std::int64_t compared = 0;
  const auto require_zeros = [&](const TensorView& t, const auto& of) {
    for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
      if (!of(b, h, i, d).known) return;
      RC_ASSERT(at(t, b, h, i, d) == 0);
      ++compared;
    });
  };
  require_zeros(x.out().dq, [&](Index b, Index h, Index i, Index d) { return x.dq(b, h, i, d); });
  require_zeros(x.out().dk, [&](Index b, Index g, Index j, Index d) { return x.dk(b, g, j, d); });
  require_zeros(x.out().dv, [&](Index b, Index g, Index j, Index d) { return x.dv(b, g, j, d); });
  require_zeros(x.out().d_bias,
                [&](Index b, Index h, Index i, Index j) { return x.d_bias(b, h, i, j); });
  if (c.sink)
    require_zeros(x.out().d_sink, [&](Index, Index h, Index, Index) { return x.d_sink(h); });
  return compared;
}

TEST(Identity, NothingComesOfNothing) {
  expect_of_the_kernel(CaseKind::backward, nothing_comes_of_nothing, 20000);
}

// If dO is orthogonal to every difference of values, dP_ij is one number for all j. D_i is a mean
// of it and is therefore the same number. So dS = 0, and dQ = dK = 0 except for roundings. This
// does not hold with a sink, whose share is missing in D, nor with dropout. Here the values are the
// same for all keys in one half of the columns, and dO is 0 in the other half.
std::int64_t equal_values_give_no_gradient(const Case& drawn, Candidate& kernel) {
  const Ran r(without_dropout_and_sink(drawn), kernel);
  const AttentionShape& s = r.c.shape;
  const Tensor v =
      made(r.in.problem.v.dtype, s.v_extents(), [&](Index b, Index g, Index j, Index d) {
        return at(r.in.problem.v, b, g, d % 2 == 0 ? 0 : j, d);
      });
  const Tensor d_o =
      made(r.in.d_o.view().dtype, r.in.d_o.view().shape, [&](Index b, Index h, Index i, Index d) {
        return d % 2 == 0 ? at(r.in.d_o.view(), b, h, i, d) : 0.0;
      });
  const RanBackward x(r, with_values(r.in.problem, v), d_o.view());
  std::int64_t compared = 0;
  const auto require_none = [&](const TensorView& t, const auto& of) {
    for_each_index(t.shape, [&](Index b, Index h, Index i, Index d) {
      const Enclosed e = of(b, h, i, d);
      if (!e.known) return;
      RC_ASSERT(std::fabs(at(t, b, h, i, d)) <= e.bound);
      ++compared;
    });
  };
  require_none(x.out().dq, [&](Index b, Index h, Index i, Index d) { return x.dq(b, h, i, d); });
  require_none(x.out().dk, [&](Index b, Index g, Index j, Index d) { return x.dk(b, g, j, d); });
  return compared;
}

TEST(Identity, EqualValuesGiveNoGradient) {
  expect_of_the_kernel(CaseKind::backward, equal_values_give_no_gradient, 10000);
  expect_to_fail_of("fault:delta-omitted", CaseKind::backward, equal_values_give_no_gradient);
}

}  // namespace
}  // namespace assay
