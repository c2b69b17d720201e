// Properties of any problem: the kernels pass, and problems with the same meaning give the same
// bits. Cases are drawn at random and shrunk.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <string>

#include "harness/judging/execute.h"
#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/product/product.h"
#include "kernels/simd/targets.h"
#include "oracle/visibility.h"
#include "testing/matchers.h"
#include "testing/ran_case.h"
#include "testing/require_that.h"
#include "testing/same_bits.h"

namespace assay {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Removes what ties a key to its number, and takes the families whose scores and sums are exact.
Case exact_and_plain(Case c, Index scores, Index values) {
  constexpr Scores exact_scores[] = {Scores::equal, Scores::subset, Scores::gather};
  constexpr Values exact_values[] = {Values::integers, Values::ones, Values::one_hot};
  c.scores = exact_scores[scores];
  c.values = exact_values[values];
  c.causal = c.alibi = c.finite_min_masks = false;
  c.window_left = c.window_right = -1;
  c.keep = c.bias = {};
  c.offset = {};
  c.lengths.clear();
  c.starts.clear();
  c.documents.clear();
  c.pokes.clear();
  c.scale.reset();
  c.sink.reset();
  c.softcap = c.dropout = 0;
  c.dropout_seed = 0;
  c.hidden = Hidden::generated;
  return c;
}

// ---- Any case passes ----

void require_pass(const Case& c, Candidate& candidate) {
  ExecuteOptions options;
  options.power = false;
  CaseResult r;
  try {
    r = execute(c, candidate, options);
  } catch (const CaseError&) {
    RC_DISCARD("not on this machine");
  }
  require_that(r, HasNothingOutside());
}

RC_GTEST_PROP(AnyCase, ForwardPasses, ()) {
  require_pass(*any_case(CaseKind::forward), *make_candidate("host"));
}
RC_GTEST_PROP(AnyCase, BackwardPasses, ()) {
  require_pass(*any_case(CaseKind::backward), *make_candidate("host"));
}
RC_GTEST_PROP(AnyCase, CachesPass, ()) {
  require_pass(*any_case(CaseKind::cached), *make_candidate("host"));
}
RC_GTEST_PROP(AnyCase, ProductsPass, ()) {
  require_pass(*any_case(CaseKind::product), *make_candidate("host"));
}

// Tests the properties themselves: on a kernel with a fault they fail, and the case that remains is
// small.
TEST(AnyCase, AFaultIsFoundAndMadeSmall) {
  for (const auto& [kind, fault] : {std::pair{CaseKind::forward, "fault:causal-off-by-one"},
                                    {CaseKind::backward, "fault:key-gradient-unscaled"},
                                    {CaseKind::product, "fault:scale-dropped"}}) {
    const auto candidate = make_candidate(fault);
    Case last;
    rc::detail::TestParams params;
    params.seed = 7;
    params.maxSuccess = 500;
    const auto result = rc::detail::checkTestable(
        [&] {
          const Case c = *any_case(kind);
          try {
            if (execute(c, *candidate,
                        {.ball_rows = 0, .power = false, .relations = false, .diagnosis = false})
                    .outcome == Outcome::fail) {
              last = c;
              RC_FAIL("found");
            }
          } catch (const CaseError&) {
          }
        },
        rc::detail::TestMetadata{}, params);
    ASSERT_TRUE(result.is<rc::detail::FailureResult>()) << fault;
    EXPECT_THAT(execute(last, *candidate), Fails());
    const Index size = kind == CaseKind::product
                           ? last.product.m * last.product.n
                           : last.shape.batch * last.shape.rows * last.shape.query_heads;
    EXPECT_LE(size, 4) << print_case(last);
  }
}

// ---- The same problem, said in another way ----

RC_GTEST_PROP(SameProblem, GroupedHeadsAreRepeatedHeads, ()) {
  const Ran r(*any_case(CaseKind::forward));
  Attention p = r.in.problem;
  const AttentionShape& s = r.c.shape;
  const auto repeated = [&](const TensorView& t, Index columns) {
    return made(t.dtype, {s.batch, s.query_heads, s.keys, columns},
                [&](Index b, Index h, Index j, Index d) { return at(t, b, h / s.group(), j, d); });
  };
  const Tensor k = repeated(p.k, s.dim), v = repeated(p.v, s.value_dim);
  p.shape.kv_heads = s.query_heads;
  p.k = k.view();
  p.v = v.view();
  require_same(r.run(r.in.problem), r.run(p));
}

RC_GTEST_PROP(SameProblem, BooleanMasksAreAdditiveMinusInfinity, ()) {
  Case c = *any_case(CaseKind::forward);
  if (c.keep.pattern == MaskPattern::none) c.keep.pattern = MaskPattern::random;
  const Ran r(c);
  Attention p = r.in.problem;
  const AttentionShape& s = c.shape;
  const Tensor bias = made(c.dtype, s.pair_extents(), [&](Index b, Index h, Index i, Index j) {
    return !p.keep.at(b, h, i, j) ? -infinity : p.bias ? at(p.bias, b, h, i, j) : 0.0;
  });
  p.keep = {};
  p.bias = bias.view();
  require_same(r.run(r.in.problem), r.run(p));
}

// Causality, windows, lengths, starts, documents and the boolean mask have the effect of one
// boolean mask that the oracle evaluates.
RC_GTEST_PROP(SameProblem, MasksComposeToOne, ()) {
  const Ran r(*any_case(CaseKind::forward));
  const AttentionShape& s = r.c.shape;
  Attention without_bias = r.in.problem;
  without_bias.bias = {};
  without_bias.alibi_slopes.clear();
  std::vector<std::uint8_t> keep(usize(s.batch * s.query_heads * s.rows * s.keys), 0);
  RowVisibility row;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.query_heads; ++h)
      for (Index i = 0; i < s.rows; ++i) {
        evaluate_visibility(without_bias, b, h, i, row);
        for (Index j = row.begin; j < row.end; ++j)
          keep[usize(((b * s.query_heads + h) * s.rows + i) * s.keys + j)] =
              row.bias[usize(j)] != -infinity;
      }
  Attention p = r.in.problem;
  p.causal = false;
  p.window_left = p.window_right = -1;
  p.key_lengths.clear();
  p.key_starts.clear();
  p.query_segment.clear();
  p.key_segment.clear();
  p.keep = {keep.data(), {s.query_heads * s.rows * s.keys, s.rows * s.keys, s.keys, 1}};
  require_same(r.run(r.in.problem), r.run(p));
}

// Keys may follow the last one if lengths mask them, whatever they hold.
RC_GTEST_PROP(SameProblem, MaskedKeysMayBeAppended, (bool nan)) {
  Case c = *any_case(CaseKind::forward);
  c.keep = c.bias = {};
  c.finite_min_masks = false;
  c.documents.clear();
  std::erase_if(c.pokes, [](const Poke& p) { return p.tensor == 'm'; });
  const Ran r(c);
  Attention p = r.in.problem;
  const AttentionShape& s = c.shape;
  const Index more = *rc::gen::inRange<Index>(1, 150);
  const auto longer = [&](const TensorView& t, Index columns) {
    return made(t.dtype, {s.batch, s.kv_heads, s.keys + more, columns},
                [&](Index b, Index g, Index j, Index d) {
                  return j < s.keys ? at(t, b, g, j, d)
                         : nan      ? std::nan("")
                                    : round_to(t.dtype, 30000 - static_cast<double>(d));
                });
  };
  const Tensor k = longer(p.k, s.dim), v = longer(p.v, s.value_dim);
  p.shape.keys += more;
  p.k = k.view();
  p.v = v.view();
  if (p.key_lengths.empty()) p.key_lengths.assign(usize(s.batch), s.keys);
  require_same(r.run(r.in.problem), r.run(p));
}

// Batches and heads do not influence one another: each one alone has the same bits as among the
// others.
RC_GTEST_PROP(SameProblem, EveryBatchElementAlone, ()) {
  Case c = *any_case(CaseKind::forward);
  c.dropout = 0, c.dropout_seed = 0;  // its draws are numbered by the batch
  const Ran r(c);
  const Outputs all = r.run(r.in.problem);
  for (Index b = 0; b < c.shape.batch; ++b) {
    const Attention piece = piece_of(r.in.problem, b, 0, c.shape.rows, c.shape.keys);
    const Outputs alone = r.run(piece);
    for (Index h = 0; h < c.shape.query_heads; ++h)
      for (Index i = 0; i < c.shape.rows; ++i)
        RC_ASSERT(row_difference(all.view(), b, h, i, alone.view(), 0, i, c.shape.value_dim) == "");
  }
}

// The first rows of a causal problem have the bits of the problem with only those rows and the keys
// that they may see.
RC_GTEST_PROP(SameProblem, CausalPrefix, ()) {
  Case c = *any_case(CaseKind::forward);
  c.causal = true;
  c.offset = {};
  c.dropout = 0, c.dropout_seed = 0;
  if (c.window_right > 0) c.window_right = 0;
  const Ran r(c);
  const Index rows = *rc::gen::inRange<Index>(1, c.shape.rows + 1),
              keys = std::min(rows, c.shape.keys);
  const Outputs all = r.run(r.in.problem);
  for (Index b = 0; b < c.shape.batch; ++b) {
    const Outputs first = r.run(piece_of(r.in.problem, b, 0, rows, keys));
    for (Index h = 0; h < c.shape.query_heads; ++h)
      for (Index i = 0; i < rows; ++i)
        RC_ASSERT(row_difference(all.view(), b, h, i, first.view(), 0, i, c.shape.value_dim) == "");
  }
}

RC_GTEST_PROP(SameProblem, AnyNumberOfThreads, ()) {
  const Ran r(*any_case(CaseKind::forward));
  const Outputs one = r.run(r.in.problem);
  for (int threads = 2; threads <= 5; ++threads) require_same(one, r.run(r.in.problem, threads));
}

// ---- Exact arithmetic ----

RC_GTEST_PROP(Exact, KeysAndValuesMayBePermuted, ()) {
  const Ran r(exact_and_plain(*any_case(CaseKind::forward), *rc::gen::inRange(0, 3),
                              *rc::gen::inRange(0, 3)));
  Attention p = r.in.problem;
  const AttentionShape& s = r.c.shape;
  std::vector<Index> order(usize(s.keys));
  for (Index j = 0; j < s.keys; ++j) order[usize(j)] = j;
  for (Index j = s.keys - 1; j > 0; --j)
    std::swap(order[usize(j)], order[usize(*rc::gen::inRange<Index>(0, j + 1))]);
  const auto permuted = [&](const TensorView& t, Index columns) {
    return made(
        t.dtype, {s.batch, s.kv_heads, s.keys, columns},
        [&](Index b, Index g, Index j, Index d) { return at(t, b, g, order[usize(j)], d); });
  };
  const Tensor k = permuted(p.k, s.dim), v = permuted(p.v, s.value_dim);
  p.k = k.view();
  p.v = v.view();
  require_same(r.run(r.in.problem), r.run(p));
}

// Adds the same number to every score. Where no addition rounds, O keeps its bits and LSE grows by
// that number.
RC_GTEST_PROP(Exact, ScoresMayBeShifted, ()) {
  const Ran r(exact_and_plain(*any_case(CaseKind::forward), 0, *rc::gen::inRange(0, 3)));
  Attention p = r.in.problem;
  const AttentionShape& s = r.c.shape;
  const Tensor bias =
      made(r.c.dtype, s.pair_extents(), [](Index, Index, Index, Index) { return 4.0; });
  p.bias = bias.view();
  const Outputs before = r.run(r.in.problem), shifted = r.run(p);
  for_each_index(before.o.view().shape, [&](Index b, Index h, Index i, Index d) {
    RC_ASSERT(same_bits(at(before.o.view(), b, h, i, d), at(shifted.o.view(), b, h, i, d)));
  });
  for_each_index(before.lse.view().shape, [&](Index b, Index h, Index i, Index d) {
    const double expected = at(before.lse.view(), b, h, i, d) + 4;
    RC_ASSERT(std::fabs(at(shifted.lse.view(), b, h, i, d) - expected) <= 0x1p-22 * expected);
  });
}

// Four times V gives four times O, bit for bit, wherever that is a normal number.
RC_GTEST_PROP(Exact, PowersOfTwoPassThrough, ()) {
  const Ran r(*any_case(CaseKind::forward));
  Attention p = r.in.problem;
  const AttentionShape& s = r.c.shape;
  bool exact = true;
  const Tensor v = made(p.v.dtype, s.v_extents(), [&](Index b, Index g, Index j, Index d) {
    const double x = at(p.v, b, g, j, d);
    // Products of small numbers are flushed or rounded in one of the two calls.
    exact = exact && (x == 0 || (std::fabs(x) >= 0x1p-14 && std::fabs(x) <= 0x1p13));
    return round_to(p.v.dtype, 4 * x);
  });
  RC_PRE(exact);
  p.v = v.view();
  const Outputs plain = r.run(r.in.problem), scaled = r.run(p);
  Index compared = 0;
  for_each_index(plain.o.view().shape, [&](Index b, Index h, Index i, Index d) {
    const double x = at(plain.o.view(), b, h, i, d), y = at(scaled.o.view(), b, h, i, d);
    // The sum is tiny, or it is beyond fp16.
    if (std::fabs(x) < 0x1p-13 || !std::isfinite(y)) return;
    ++compared;
    // Sums of small weights that cancel may have had a subnormal product in one of the two calls.
    RC_ASSERT(std::fabs(y - 4 * x) <= 0x1p-100);
  });
  RC_CLASSIFY(compared > 0, "compared");
}

// Rows that select one key each are linear in V.
RC_GTEST_PROP(Exact, GatheredRowsAreLinearInV, ()) {
  const Case c = exact_and_plain(*any_case(CaseKind::forward), 2, 0);
  const Ran r(c);
  Case other = c;
  other.seed = c.seed + 1;
  const Inputs second(other);
  const AttentionShape& s = c.shape;
  Attention p = r.in.problem, q = r.in.problem;
  q.v = second.problem.v;
  const Tensor sum = made(p.v.dtype, s.v_extents(), [&](Index b, Index g, Index j, Index d) {
    return at(p.v, b, g, j, d) + at(q.v, b, g, j, d);
  });
  Attention both = p;
  both.v = sum.view();
  const Outputs x = r.run(p), y = r.run(q), z = r.run(both);
  // Where D is too small for a code of every key, a row of several keys gives a mean.
  for_each_index(z.o.view().shape, [&](Index b, Index h, Index i, Index d) {
    if (at(z.lse.view(), b, h, i, 0) == 0)
      RC_ASSERT(at(z.o.view(), b, h, i, d) ==
                at(x.o.view(), b, h, i, d) + at(y.o.view(), b, h, i, d));
  });
}

// ---- Gradients and products ----

// Two times dO gives two times every gradient, wherever that is a normal number.
RC_GTEST_PROP(Exact, GradientsAreLinearInPowersOfTwo, ()) {
  const Case c = *any_case(CaseKind::backward);
  const Ran r(c);
  const Outputs forward = r.run(r.in.problem);
  const TensorView& g = r.in.d_o.view();
  bool exact = true;
  const Tensor twice = made(g.dtype, g.shape, [&](Index b, Index h, Index i, Index d) {
    const double x = at(g, b, h, i, d);
    exact = exact && (x == 0 || (std::fabs(x) >= 0x1p-13 && std::fabs(x) <= 0x1p10));
    return round_to(g.dtype, 2 * x);
  });
  RC_PRE(exact);
  const GradientOutputs once(c, r.in), doubled(c, r.in);
  RC_ASSERT(kernels::attention_backward(r.in.problem, {forward.o.view(), forward.lse.view(), g},
                                        once.view(), 1)
                .ok());
  RC_ASSERT(kernels::attention_backward(r.in.problem,
                                        {forward.o.view(), forward.lse.view(), twice.view()},
                                        doubled.view(), 1)
                .ok());
  for (const auto member : {&GradientOutputs::dq, &GradientOutputs::dk, &GradientOutputs::dv}) {
    const TensorView &a = (once.*member).view(), &b = (doubled.*member).view();
    for_each_index(a.shape, [&](Index n, Index h, Index i, Index d) {
      const double x = at(a, n, h, i, d), y = at(b, n, h, i, d);
      if (!(std::fabs(x) >= 0x1p-13) || !std::isfinite(y)) return;
      RC_ASSERT(std::fabs(y - 2 * x) <= 0x1p-100);
    });
  }
}

RC_GTEST_PROP(SameProblem, GradientsOnAnyNumberOfThreads, ()) {
  const Case c = *any_case(CaseKind::backward);
  const Ran r(c);
  const Outputs forward = r.run(r.in.problem);
  const AttentionBackwardInput in{forward.o.view(), forward.lse.view(), r.in.d_o.view()};
  const GradientOutputs one(c, r.in);
  RC_ASSERT(kernels::attention_backward(r.in.problem, in, one.view(), 1).ok());
  for (int threads : {2, 3, 5}) {
    const GradientOutputs more(c, r.in);
    RC_ASSERT(kernels::attention_backward(r.in.problem, in, more.view(), threads).ok());
    RC_ASSERT(first_difference(one, more) == std::string());
  }
}

// A column of C depends only on its column of W.
RC_GTEST_PROP(SameProblem, ProductsColumnByColumn, ()) {
  Case c = *any_case(CaseKind::product);
  // The scales of nvfp4 are relative to one number of the whole matrix.
  RC_PRE(c.product.format != LowBit::nvfp4 || c.product.weights != Weights::quantized);
  const Index n = *rc::gen::inRange<Index>(1, c.product.n + 1);
  Case narrow = c;
  narrow.product.n = n;
  const ProductInputs wide(c), few(narrow);
  RC_PRE(wide.problem.w.tensor_scale == few.problem.w.tensor_scale);
  const auto product = [](const ProductInputs& in, const TensorView& to) {
    std::shared_ptr<const kernels::PackedWeights> w;
    RC_ASSERT(kernels::PackedWeights::pack(in.problem.w, w).ok());
    RC_ASSERT((in.problem.a ? kernels::product(in.problem.a, *w, to, 1)
                            : kernels::product(in.problem.a_low, *w, to, 1))
                  .ok());
  };
  const ProductOutput all(c), part(narrow);
  product(wide, all.c.view());
  product(few, part.c.view());
  for_each_index(part.c.view().shape, [&](Index b, Index h, Index i, Index j) {
    RC_ASSERT(same_bits(at(all.c.view(), b, h, i, j), at(part.c.view(), b, h, i, j)));
  });
}

// ---- The generator itself ----

RC_GTEST_PROP(AnyCase, LinesStandForThemselves, ()) {
  const CaseKind kind =
      *rc::gen::element(CaseKind::forward, CaseKind::backward, CaseKind::cached, CaseKind::product);
  const Case c = *any_case(kind);
  RC_ASSERT(kind_of(c) == kind && affordable(c));
  const std::string line = print_case(c);
  RC_ASSERT(
      case_of_bytes(kind, {reinterpret_cast<const unsigned char*>(line.data()), line.size()}) == c);
  const auto bytes =
      *rc::gen::container<std::vector<unsigned char>>(64, rc::gen::inRange<int>(0, 256));
  const Case moved = move_case(c, kind, Choices(bytes)),
             crossed = cross_cases(c, moved, kind, Choices(bytes));
  for (const Case& next : {moved, crossed}) {
    check_case(next);
    RC_ASSERT(kind_of(next) == kind && affordable(next));
  }
}

// A walk of moves reaches every feature.
TEST(AnyCase, MovesReachEveryFeature) {
  std::set<std::string> seen;
  std::uint64_t state = 1;
  for (const CaseKind kind :
       {CaseKind::forward, CaseKind::backward, CaseKind::cached, CaseKind::product}) {
    Case c = draw_case(kind, Choices({}));
    for (int step = 0; step < 30000; ++step) {
      std::vector<unsigned char> bytes(48);
      for (unsigned char& b : bytes)
        b = static_cast<unsigned char>(
            (state = state * 6364136223846793005u + 1442695040888963407u) >> 56);
      c = move_case(c, kind, Choices(bytes));
      if (step % 400 == 399) c = draw_case(kind, Choices(bytes));
      const std::string line = print_case(c);
      for (std::size_t begin = line.find(' ') + 1; begin != 0 && begin < line.size();
           begin = line.find(' ', begin) + 1)
        seen.insert(line.substr(begin, line.find_first_of("= ", begin) - begin));
      seen.insert("scores=" + std::string(name_of(c.scores)));
      seen.insert("values=" + std::string(name_of(c.values)));
      for (LayoutKind l : {c.q_layout, c.k_layout, c.o_layout})
        seen.insert("layout=" + std::string(name_of(l)));
      if (kind == CaseKind::product) seen.insert("w=" + std::string(traits(c.product.format).name));
    }
  }
  for (const char* field :
       {"b",       "h",      "l",      "d",       "dtype",  "out",     "scale",
        "softcap", "causal", "offset", "window",  "bool",   "bias",    "finite-min-masks",
        "lengths", "starts", "docs",   "alibi",   "sink",   "dropout", "hidden",
        "poke",    "seed",   "layout", "threads", "target", "cache",   "store",
        "chunks",  "grad",   "m",      "n",       "k",      "w",       "a",
        "weights", "scales", "zeros"})
    EXPECT_TRUE(seen.contains(field)) << field;
  for (const Scores s : values_of<Scores>)
    EXPECT_TRUE(seen.contains("scores=" + std::string(name_of(s))));
  for (const Values v : values_of<Values>)
    EXPECT_TRUE(seen.contains("values=" + std::string(name_of(v))));
  for (const LayoutKind l : values_of<LayoutKind>)
    EXPECT_TRUE(seen.contains("layout=" + std::string(name_of(l))));
  for (const LowBit w : values_of<LowBit>)
    EXPECT_TRUE(seen.contains("w=" + std::string(name_of(w))));
}

}  // namespace
}  // namespace assay
