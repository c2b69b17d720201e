// Packed sequences: each one has the bits of a call of its own, also if it is empty, and sees
// nothing of its neighbours.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/dispatch/varlen.h"

namespace assay {
namespace {

using namespace kernels;
using testing::HasSubstr;

// Copies the rows and keys of the sequence and calls the kernel on them alone.
void expect_own_call(const Case& c, const Inputs& in, const Outputs& packed, Index row0, Index rows,
                     Index key0, Index keys, Index offset, std::uint64_t seed) {
  Attention p = in.problem;
  p.shape.rows = rows;
  p.shape.keys = keys;
  p.offset = {offset};
  p.dropout_seed = seed;
  const auto copy = [&](const TensorView& from, Index heads, Index first, Index count,
                        Index columns) {
    const Extents shape{1, heads, count, columns};
    Tensor to(from.dtype, shape,
              {{heads * count * columns, count * columns, columns, 1}, 0, heads * count * columns});
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < count; ++i)
        for (Index d = 0; d < columns; ++d)
          store(to.view(), to.view().at(0, h, i, d), load(from, from.at(0, h, first + i, d)));
    return to;
  };
  const AttentionShape& s = c.shape;
  const Tensor q = copy(p.q, s.query_heads, row0, rows, s.dim),
               k = copy(p.k, s.kv_heads, key0, keys, s.dim),
               v = copy(p.v, s.kv_heads, key0, keys, s.value_dim);
  p.q = q.view();
  p.k = k.view();
  p.v = v.view();
  std::vector<std::uint8_t> keep;
  if (p.keep) {
    for (Index h = 0; h < s.query_heads; ++h)
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < keys; ++j)
          keep.push_back(in.problem.keep.at(0, h, row0 + i, key0 + j));
    p.keep = {keep.data(), {0, rows * keys, keys, 1}};
    if (keep.empty()) p.keep = {};
  }
  Case own = c;
  own.shape.rows = rows;
  own.shape.keys = keys;
  const Outputs out(own);
  const Status status = attention_forward(p, out.view(), 1);
  ASSERT_TRUE(status.ok()) << status.detail;
  for (Index h = 0; h < s.query_heads; ++h)
    for (Index i = 0; i < rows; ++i) {
      ASSERT_EQ(load(out.lse.view(), out.lse.view().at(0, h, i, 0)),
                load(packed.lse.view(), packed.lse.view().at(0, h, row0 + i, 0)));
      for (Index d = 0; d < s.value_dim; ++d)
        ASSERT_EQ(load(out.o.view(), out.o.view().at(0, h, i, d)),
                  load(packed.o.view(), packed.o.view().at(0, h, row0 + i, d)));
    }
}

TEST(Varlen, EverySequenceHasTheBitsOfItsOwnCall) {
  // There are empty sequences at the beginning, in the middle and at the end: without rows, without
  // keys, and without both. One sequence has more rows than keys.
  const std::vector<Index> cu_rows = {0, 0, 5, 5, 105, 112, 112, 120, 120},
                           cu_keys = {0, 0, 9, 20, 120, 120, 120, 123, 123};
  const std::size_t sequences = cu_rows.size() - 1;
  for (const char* features :
       {"causal", "causal window=7,2 softcap=3 sink=0.5 alibi", "bool=random causal",
        "dropout=0.3:11", "dtype=bf16 causal layout=q:bshd,k:bshd,v:bshd,o:bshd"})
    for (int anchor = 0; anchor < 3; ++anchor)
      for (int threads : {1, 2, 16}) {
        const Case c =
            parse_case("attention b=1 h=6/2 l=124x130 d=16/12 seed=5 " + std::string(features));
        const Inputs in(c);
        const Outputs out(c);
        poison(out.o, Poison::nan);
        Attention packed = in.problem;
        packed.offset.clear();
        if (anchor == 2)
          for (std::size_t n = 0; n < sequences; ++n)
            packed.offset.push_back(static_cast<Index>(n) - 2);
        const Status status = attention_varlen(
            packed, cu_rows, cu_keys,
            anchor == 1 ? kernels::Anchor::bottom_right : kernels::Anchor::top_left, out.view(),
            threads);
        ASSERT_TRUE(status.ok()) << status.detail;
        for (std::size_t n = 0; n < sequences; ++n) {
          const Index rows = cu_rows[n + 1] - cu_rows[n], keys = cu_keys[n + 1] - cu_keys[n];
          const Index offset = anchor == 0   ? 0
                               : anchor == 1 ? keys - rows
                                             : static_cast<Index>(n) - 2;
          expect_own_call(c, in, out, cu_rows[n], rows, cu_keys[n], keys, offset,
                          packed.dropout_seed + n);
        }
        // Rows that belong to no sequence are not written.
        for (Index h = 0; h < 6; ++h)
          for (Index i = 120; i < 124; ++i)
            for (Index d = 0; d < 12; ++d)
              ASSERT_TRUE(holds_poison(out.o.view(), out.o.view().at(0, h, i, d), Poison::nan));
      }
}

TEST(Varlen, SequencesWithoutKeysAreZero) {
  const Case c = parse_case("attention b=1 h=1 l=4x4 d=4 seed=5");
  const Inputs in(c);
  const Outputs out(c);
  poison(out.o, Poison::nan);
  const std::vector<Index> cu_rows = {0, 3, 4}, cu_keys = {0, 0, 4};
  ASSERT_TRUE(
      attention_varlen(in.problem, cu_rows, cu_keys, kernels::Anchor::top_left, out.view()).ok());
  EXPECT_EQ(load(out.o.view(), 0), 0);
  EXPECT_EQ(load(out.lse.view(), 2), -INFINITY);
}

TEST(Varlen, RefusesWhatCannotBe) {
  const Case c = parse_case("attention b=1 h=2 l=10x10 d=4 seed=5");
  const Inputs in(c);
  const Outputs out(c);
  poison(out.o, Poison::nan);
  const auto expect = [&](std::vector<Index> rows, std::vector<Index> keys, StatusCode code,
                          const char* words, const std::function<void(Attention&)>& change = {}) {
    Attention p = in.problem;
    p.offset.clear();
    if (change) change(p);
    const Status status = attention_varlen(p, rows, keys, kernels::Anchor::top_left, out.view());
    EXPECT_EQ(status.code, code);
    EXPECT_EQ(status.detail, words);
    for (Index e = 0; e < 80; ++e) ASSERT_TRUE(holds_poison(out.o.view(), e, Poison::nan));
  };
  const auto bad = StatusCode::invalid_arguments;
  expect({}, {0, 10}, bad, "cu_rows is empty; it holds one entry more than there are sequences");
  expect({1, 10}, {0, 10}, bad, "cu_rows[0] = 1 is not 0");
  expect({0, 10}, {0, 5, 4}, bad, "cu_keys[2] = 4 is below cu_keys[1] = 5");
  expect({0, 11}, {0, 10}, bad, "cu_rows[1] = 11 is beyond the 10 packed positions");
  expect({0, 10}, {0, Index{1} << 40}, bad,
         "cu_keys[1] = 1099511627776 is beyond the 10 packed positions");
  expect({0, 4, 10}, {0, 10}, bad, "cu_rows has 3 entries, cu_keys 2");
  expect({0, 10}, {0, 10}, bad, "offset has 2 entries, not 1",
         [](Attention& p) { p.offset = {0, 0}; });
  expect({0, 10}, {0, 10}, bad, "scale = -inf is not a finite number",
         [](Attention& p) { p.scale = -INFINITY; });
  expect({0, 10}, {0, 10}, bad, "batch = 2 of packed sequences is not 1",
         [](Attention& p) { p.shape.batch = 2; });
  expect({0, 10}, {0, 10}, StatusCode::unsupported,
         "key lengths, key starts and documents do not go with cumulative lengths",
         [](Attention& p) { p.key_lengths = {3}; });
}

}  // namespace
}  // namespace assay
