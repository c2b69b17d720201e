// Compares the sums of the bound with plain loops in extended precision: the sums are never below
// the loops and hardly above them.
#include "oracle/sums.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "harness/judging/outputs.h"

namespace assay {
namespace {

struct Sums {
  Case c;
  Inputs inputs;
  KeyValues kv;
  RowMajor q;

  explicit Sums(const std::string& line)
      : c(parse_case(line)), inputs(c), kv(inputs.problem, 0, 0), q(c.shape.rows, c.shape.dim) {
    for (Index i = 0; i < q.rows(); ++i)
      for (Index d = 0; d < q.cols(); ++d)
        q(i, d) = load(inputs.problem.q, inputs.problem.q.at(0, 0, i, d));
  }
};

void expect_above(double computed, long double exact, double loss, const char* what) {
  EXPECT_GE(computed, static_cast<double>(exact) * (1 - 0x1p-50)) << what;
  EXPECT_LE(computed, static_cast<double>(exact) * (1 + loss) + 0x1p-130) << what;
}

constexpr Index key0 = 5;

TEST(Sums, OfScoresLieAboveTheExactOnes) {
  for (const char* line :
       {"attention b=1 h=1 l=7x90 d=64", "attention b=1 h=1 l=7x90 d=300 scores=heavy-tail",
        "attention b=1 h=1 l=7x90 d=64 scores=huge dtype=bf16",
        "attention b=1 h=1 l=7x90 d=33 scores=subnormal",
        "attention b=1 h=1 l=7x90 d=40 scale=1 poke=q:0:0:0:0=3e38;k:0:0:7:0=3e38"}) {
    SCOPED_TRACE(line);
    const Sums s(line);
    const Index count = s.c.shape.keys - key0;
    RowMajor prefix, absolute;
    prefix_sums(s.kv, s.q, key0, count, prefix);
    absolute_products(s.kv, s.q, key0, count, absolute);
    for (Index i = 0; i < s.q.rows(); ++i)
      for (Index j = 0; j < count; ++j) {
        long double partial = 0, moduli = 0, products = 0;
        for (Index d = 0; d < s.q.cols(); ++d) {
          const long double product =
              static_cast<long double>(s.q(i, d)) * s.kv.keys_transposed(d, key0 + j);
          partial += product;
          moduli += std::fabs(partial);
          products += std::fabs(product);
        }
        expect_above(prefix(i, j), moduli, 2e-4, "prefix");
        expect_above(absolute(i, j), products, 1e-4, "absolute");
        // Each product is a difference of partial sums.
        EXPECT_LE(products, 2 * moduli * (1 + 1e-15L));
      }
  }
}

TEST(Sums, OfValuesLieAboveTheExactOnes) {
  for (const char* values : {"normal", "cancel", "uniform", "ones", "near-overflow", "subnormal"})
    for (Index split : {0, 64})
      for (bool sparse : {false, true}) {
        SCOPED_TRACE(std::string(values) + (split ? " splits" : "") + (sparse ? " sparse" : ""));
        const Sums s(std::string("attention b=1 h=1 l=3x300 d=4/21 seed=3 values=") + values);
        const Index count = s.c.shape.keys - key0, rows = s.q.rows(), columns = s.kv.values.cols();
        RowMajor centred(rows, count), kept(rows, count), o;
        std::vector<char> visible(usize(rows * count), 1);
        std::vector<SeenKeys> seen;
        for (Index r = 0; r < rows; ++r) {
          seen.push_back({r * 11, count - r * 70, sparse ? visible.data() + r * count : nullptr});
          double total = 0;
          for (Index j = 0; j < count; ++j) {
            const bool in =
                j >= seen.back().begin && j < seen.back().end && !(sparse && j % 3 == 1);
            visible[usize(r * count + j)] = in;
            kept(r, j) =
                in ? std::exp(-static_cast<double>((j * 37 + r) % 101) / (r == 1 ? 2 : 40)) : 0;
            centred(r, j) = 1e-6 * kept(r, j) * (1 + static_cast<double>(j % 5));
            total += kept(r, j);
          }
          kept.row(r) /= total;
        }
        o = kept * s.kv.values.middleRows(key0, count);
        Contract c;
        c.tile = 16;
        c.split_keys = split;
        const PartialSums counted(c);
        RowMajor sum_centred, sum_prefix, sum_absolute;
        column_sums(s.kv, key0, seen, &counted, {centred, kept, o}, sum_centred, sum_prefix);
        absolute_values(s.kv, centred, key0, sum_absolute);
        for (Index r = 0; r < rows; ++r)
          for (Index v = 0; v < columns; ++v) {
            long double partial = 0, merged = 0, from_mean = 0, moduli = 0, absolute = 0;
            bool first_split = true;
            for (Index j = 0; j < count; ++j) {
              const long double x = s.kv.values(key0 + j, v);
              absolute += centred(r, j) * std::fabs(x);
              if (visible[usize(r * count + j)]) {
                from_mean += centred(r, j) * std::fabs(x - o(r, v));
                partial += kept(r, j) * x;
                moduli += std::fabs(partial);
              }
              if (j < seen[usize(r)].begin || j >= seen[usize(r)].end) continue;
              const bool last = j + 1 == seen[usize(r)].end;
              if (counted.ends_split(key0 + j + 1) || (last && !first_split)) {
                if (!first_split)
                  moduli += counted.merge *
                            (std::fabs(merged) + std::fabs(partial) + std::fabs(merged + partial));
                merged += partial;
                partial = 0;
                first_split = false;
              } else if ((key0 + j + 1) % c.tile == 0 && !last) {
                moduli += counted.tile_end * std::fabs(partial);
              }
            }
            const long double magnitude =
                std::fabs(static_cast<long double>(o(r, v))) * centred.row(r).sum();
            EXPECT_GE(sum_centred(r, v), static_cast<double>(from_mean) * (1 - 0x1p-45));
            EXPECT_LE(sum_centred(r, v), static_cast<double>(from_mean) * (1 + 2e-5) +
                                             3e-7 * static_cast<double>(magnitude) +
                                             0x1p-100 * (1 + s.kv.largest_value));
            EXPECT_GE(sum_prefix(r, v), static_cast<double>(moduli) * (1 - 0x1p-45));
            EXPECT_LE(sum_prefix(r, v), static_cast<double>(moduli) * (1 + 3e-4) +
                                            0x1p-100 * (1 + s.kv.largest_value));
            EXPECT_GE(sum_absolute(r, v), static_cast<double>(absolute) * (1 - 0x1p-45));
            EXPECT_LE(sum_absolute(r, v), static_cast<double>(absolute) * (1 + 1e-4) +
                                              0x1p-100 * (1 + s.kv.largest_value));
          }
      }
}

}  // namespace
}  // namespace assay
