// The verdict on merges: kernels that keep their contract pass, whatever the parts are, and wrong
// outputs fail with the right words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kernels/attention/merge.h"
#include "oracle/merge.h"
#include "testing/matchers.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// Parts with storage of their own. Each batch index has one row.
class Parts {
 public:
  Parts(std::size_t parts, Index rows, Index columns, Dtype dtype = Dtype::f32)
      : rows_(rows), columns_(columns) {
    for (std::size_t s = 0; s <= parts; ++s) {
      AttentionOutput& x = views_.emplace_back();
      x.o = view(dtype, columns);
      x.lse = view(Dtype::f32, 1);
    }
  }
  // The last view is the output.
  MergeProblem problem(bool base_two = false) const {
    return {{views_.data(), views_.size() - 1}, base_two};
  }
  const AttentionOutput& out() const { return views_.back(); }
  void set_o(std::size_t s, Index row, Index c, double x) {
    store(views_[s].o, views_[s].o.at(row, 0, 0, c), x);
  }
  void set_lse(std::size_t s, Index row, double x) {
    store(views_[s].lse, views_[s].lse.at(row, 0, 0, 0), x);
  }
  double o(std::size_t s, Index row, Index c) const {
    return load(views_[s].o, views_[s].o.at(row, 0, 0, c));
  }
  double lse(std::size_t s, Index row) const {
    return load(views_[s].lse, views_[s].lse.at(row, 0, 0, 0));
  }
  std::size_t count() const { return views_.size() - 1; }
  Index rows() const { return rows_; }
  Index columns() const { return columns_; }

  void randomize(std::uint64_t seed, double spread) {
    std::mt19937_64 g(seed);
    std::normal_distribution<double> normal;
    for (std::size_t s = 0; s < count(); ++s)
      for (Index r = 0; r < rows_; ++r) {
        set_lse(s, r, g() % 8 == 0 ? -inf : spread * normal(g));
        for (Index c = 0; c < columns_; ++c) set_o(s, r, c, normal(g) + (c % 2 ? 10 : 0));
      }
  }

 private:
  TensorView view(Dtype dtype, Index columns) {
    storage_.emplace_back(usize(rows_ * columns * 4 + 8));
    TensorView t;
    t.data = storage_.back().data();
    t.dtype = dtype;
    t.shape = {rows_, 1, 1, columns};
    t.stride = {columns, columns, columns, 1};
    return t;
  }
  Index rows_, columns_;
  std::vector<std::vector<unsigned char>> storage_;
  std::vector<AttentionOutput> views_;
};

enum class Form { times_inverse, divided, weights_normalised };

// Every intermediate result has the type T.
template <class T>
void emulate(Parts& parts, bool base_two, Form form) {
  for (Index r = 0; r < parts.rows(); ++r) {
    T m = -std::numeric_limits<T>::infinity();
    bool is_nan = false;
    for (std::size_t s = 0; s < parts.count(); ++s) {
      const auto x = static_cast<T>(parts.lse(s, r));
      is_nan = is_nan || std::isnan(x);
      m = std::max(m, x);
    }
    is_nan = is_nan || m == std::numeric_limits<T>::infinity();
    std::vector<T> w(parts.count(), 0);
    T sum = 0;
    for (std::size_t s = 0; s < w.size(); ++s) {
      const auto x = static_cast<T>(parts.lse(s, r));
      if (std::isfinite(x)) w[s] = base_two ? std::exp2(x - m) : std::exp(x - m);
      sum += w[s];
    }
    const std::size_t out = parts.count();
    parts.set_lse(out, r,
                  is_nan ? nan
                  : sum == 0
                      ? -inf
                      : static_cast<double>(m + (base_two ? std::log2(sum) : std::log(sum))));
    for (Index c = 0; c < parts.columns(); ++c) {
      T o = 0;
      for (std::size_t s = 0; s < w.size(); ++s)
        if (parts.lse(s, r) != -inf)
          o = std::fma(form == Form::weights_normalised ? w[s] / sum : w[s],
                       static_cast<T>(parts.o(s, r, c)), o);
      if (sum != 0 && form != Form::weights_normalised)
        o = form == Form::divided ? o / sum : o * (1 / sum);
      parts.set_o(out, r, c, is_nan ? nan : static_cast<double>(o));
    }
  }
}

Contract contract_of(double roundoff) {
  Contract c;
  c.roundoff = roundoff;
  return c;
}

template <class T>
double largest_ratio(Dtype dtype, double roundoff) {
  double most = 0;
  std::uint64_t seed = 1;
  for (std::size_t count : {1, 2, 3, 8, 33})
    for (double spread : {0.0, 1.0, 30.0, 1e4})
      for (bool base_two : {false, true})
        for (Form form : {Form::times_inverse, Form::divided, Form::weights_normalised}) {
          Parts parts(count, 40, 6, dtype);
          parts.randomize(seed++, spread);
          emulate<T>(parts, base_two, form);
          const Verdict v =
              judge_merge(parts.problem(base_two), parts.out(), contract_of(roundoff));
          EXPECT_THAT(v, Passes()) << count << " parts, spread " << spread << ", seed " << seed - 1;
          EXPECT_EQ(v.inside, v.compared());
          EXPECT_EQ(v.compared(Output::o), 40 * 6);
          most = std::max({most, v.worst_ratio(Output::o), v.worst_ratio(Output::lse)});
        }
  return most;
}

TEST(Merge, KernelsThatKeepTheirContractPass) {
  const double single = largest_ratio<float>(Dtype::f32, 0x1p-24),
               narrow = largest_ratio<float>(Dtype::bf16, 0x1p-24);
  const double twice = largest_ratio<double>(Dtype::f32, 0x1p-53);
  printf("largest error/bound of merges: fp32 %.3f, fp32 to bf16 %.3f, fp64 to fp32 %.3f\n", single,
         narrow, twice);
  EXPECT_GT(single, 0.25);
  EXPECT_GT(narrow, 0.9);
  EXPECT_GT(twice, 0.9);
}

// The kernel computes in binary64 and rounds once.
TEST(Merge, TheKernelPasses) {
  std::uint64_t seed = 100;
  for (std::size_t count : {1, 2, 9})
    for (double spread : {0.5, 40.0})
      for (bool base_two : {false, true})
        for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16}) {
          Parts parts(count, 40, 6, dtype);
          parts.randomize(seed++, spread);
          const MergeProblem problem = parts.problem(base_two);
          ASSERT_TRUE(
              kernels::attention_merge(problem.parts,
                                       base_two ? kernels::LogBase::two : kernels::LogBase::natural,
                                       parts.out(), 1)
                  .ok());
          const Verdict v = judge_merge(problem, parts.out(), contract_of(0x1p-53));
          EXPECT_THAT(v, Passes()) << seed - 1;
          EXPECT_EQ(v.inside, v.compared());
        }
}

TEST(Merge, Fp64ContainsTheBalls) {
  double largest = 0;
  for (bool base_two : {false, true})
    for (double spread : {0.0, 1.0, 30.0, 700.0, 1e5}) {
      Parts parts(7, 60, 4);
      parts.randomize(static_cast<std::uint64_t>(spread) + base_two, spread);
      for (Index r = 0; r < parts.rows(); ++r) {
        const MergedRow plain =
            merge_row(parts.problem(base_two), contract_of(0x1p-24), r, 0, 0, 0);
        const MergedRow balls =
            merge_row(parts.problem(base_two), contract_of(0x1p-24), r, 0, 0, 256);
        ASSERT_EQ(plain.empty, balls.empty);
        if (plain.empty) continue;
        auto check = [&](double value, double radius, double mid, double low, double ball_radius) {
          const double error = std::fabs((value - mid) - low);
          EXPECT_LE(error, radius + ball_radius) << "row " << r << " spread " << spread;
          EXPECT_LT(ball_radius, std::fabs(mid) * 0x1p-90 + 0x1p-900);
          if (radius > 0) largest = std::max(largest, error / radius);
        };
        check(plain.lse, plain.lse_radius, balls.lse, balls.lse_low, balls.lse_radius);
        for (std::size_t c = 0; c < 4; ++c)
          check(plain.o[c], plain.o_radius[c], balls.o[c], balls.o_low[c], balls.o_radius[c]);
      }
    }
  EXPECT_GT(largest, 0.001);
}

// Computed by hand: two parts whose weights are 1 and 1/4.
TEST(Merge, ClosedForm) {
  Parts parts(2, 1, 1);
  parts.set_lse(0, 0, 3);
  parts.set_lse(1, 0, 1);
  parts.set_o(0, 0, 0, 5);
  parts.set_o(1, 0, 0, -5);
  const MergedRow two = merge_row(parts.problem(true), {}, 0, 0, 0, 128);
  EXPECT_NEAR(two.o[0], (5 - 5 * 0.25) / 1.25, 1e-15);
  EXPECT_NEAR(two.lse, 3 + std::log2(1.25), 1e-15);
  const MergedRow natural = merge_row(parts.problem(false), {}, 0, 0, 0, 128);
  EXPECT_NEAR(natural.o[0], 5 * std::tanh(1.0), 1e-15);
  EXPECT_NEAR(natural.lse, 3 + std::log1p(std::exp(-2.0)), 1e-15);
}

class WrongMerge : public testing::Test {
 protected:
  WrongMerge() {
    parts_.randomize(5, 2);
    for (Index r = 0; r < 10; ++r) parts_.set_lse(1, r, 0.5);
    emulate<float>(parts_, false, Form::divided);
  }
  Verdict verdict(bool base_two = false) const {
    return judge_merge(parts_.problem(base_two), parts_.out(), contract_of(0x1p-24));
  }
  static constexpr std::size_t out = 3;
  Parts parts_{3, 10, 4};
};

TEST_F(WrongMerge, RightOnePasses) { EXPECT_THAT(verdict(), Passes()); }

TEST_F(WrongMerge, NanFails) {
  parts_.set_o(out, 4, 2, nan);
  EXPECT_THAT(verdict(), FailsWith("O is NaN: O[b=4, h=0, row=0, column=2]"));
}
TEST_F(WrongMerge, NanInLseOnlyFails) {
  parts_.set_lse(out, 4, nan);
  EXPECT_THAT(verdict(), FailsWith("LSE is NaN: LSE[b=4, h=0, row=0]"));
}
TEST_F(WrongMerge, InfinityFails) {
  parts_.set_o(out, 0, 0, -inf);
  EXPECT_THAT(verdict(), FailsWith("O is infinite"));
}
TEST_F(WrongMerge, ZerosFail) {
  for (Index c = 0; c < 4; ++c) parts_.set_o(out, 9, c, 0);
  EXPECT_THAT(verdict(), FailsWith("O is outside its bound"));
}
TEST_F(WrongMerge, TheOtherBaseFails) {
  EXPECT_THAT(verdict(true), Fails());
  emulate<float>(parts_, true, Form::divided);
  EXPECT_THAT(verdict(true), Passes());
  EXPECT_THAT(verdict(), FailsWith("LSE is outside its bound"));
}
TEST_F(WrongMerge, APlainMeanFails) {
  for (Index r = 0; r < 10; ++r)
    for (Index c = 0; c < 4; ++c)
      parts_.set_o(out, r, c, (parts_.o(0, r, c) + parts_.o(1, r, c) + parts_.o(2, r, c)) / 3);
  EXPECT_THAT(verdict(), FailsWith("O is outside its bound"));
}
// The bugs of a merge of one pass, which corrects its sums whenever a larger LSE comes.
enum class Bug {
  none,
  sum_not_corrected,
  accumulator_not_corrected,
  last_part_dropped,
  empty_part_counts,
  parts_weigh_the_same,
  log_of_sum_omitted
};

void merge_in_one_pass(Parts& parts, Bug bug) {
  for (Index r = 0; r < parts.rows(); ++r) {
    double m = -inf, sum = 0;
    std::vector<double> o(usize(parts.columns()));
    for (std::size_t s = 0; s < parts.count() - (bug == Bug::last_part_dropped); ++s) {
      const double lse = parts.lse(s, r), larger = std::max(m, lse);
      if (lse == -inf && bug != Bug::empty_part_counts) continue;
      const double correction = std::exp(m - larger),
                   weight = bug == Bug::parts_weigh_the_same ? 1 : std::exp(lse - larger);
      m = larger;
      sum = (bug == Bug::sum_not_corrected ? sum : sum * correction) + weight;
      for (std::size_t c = 0; c < o.size(); ++c)
        o[c] = (bug == Bug::accumulator_not_corrected ? o[c] : o[c] * correction) +
               weight * parts.o(s, r, static_cast<Index>(c));
    }
    const std::size_t out = parts.count();
    parts.set_lse(out, r, sum == 0 ? -inf : bug == Bug::log_of_sum_omitted ? m : m + std::log(sum));
    for (std::size_t c = 0; c < o.size(); ++c)
      parts.set_o(out, r, static_cast<Index>(c), sum == 0 ? 0 : o[c] / sum);
  }
}

TEST_F(WrongMerge, PlantedFaultsFail) {
  parts_.set_lse(0, 3, -inf);
  merge_in_one_pass(parts_, Bug::none);
  EXPECT_THAT(verdict(), Passes());
  for (Bug bug : {Bug::sum_not_corrected, Bug::accumulator_not_corrected, Bug::last_part_dropped,
                  Bug::empty_part_counts, Bug::parts_weigh_the_same, Bug::log_of_sum_omitted}) {
    merge_in_one_pass(parts_, bug);
    EXPECT_THAT(verdict(), Fails()) << static_cast<int>(bug);
  }
}

TEST_F(WrongMerge, TheEdgeOfTheBoundIsSharp) {
  const MergedRow row = merge_row(parts_.problem(), contract_of(0x1p-24), 3, 0, 0, 256);
  auto x = static_cast<float>(row.o[1]);
  while (parts_.set_o(out, 3, 1, x), verdict().outcome == Outcome::pass)
    x = std::nextafter(x, INFINITY);
  EXPECT_GT(x - row.o[1], row.o_bound[1]);
  EXPECT_LE(std::nextafter(x, -INFINITY) - row.o[1], row.o_bound[1] * (1 + 1e-9));
  EXPECT_THAT(verdict(), FailsWith("O is outside its bound"));
}

// Only one part saw a key, so it is copied and nothing may round.
TEST_F(WrongMerge, OnePartIsExact) {
  for (std::size_t s : {0, 2}) parts_.set_lse(s, 6, -inf);
  // The part saw no key, so its O is not read.
  for (Index c = 0; c < 4; ++c) parts_.set_o(0, 6, c, nan);
  emulate<float>(parts_, false, Form::times_inverse);
  EXPECT_THAT(verdict(), Passes());
  parts_.set_o(out, 6, 3, std::nextafter(static_cast<float>(parts_.o(1, 6, 3)), INFINITY));
  EXPECT_THAT(verdict(), FailsWith("O is outside its bound: O[b=6, h=0, row=0, column=3]"));
}

TEST_F(WrongMerge, EmptyRowsAreZeroAndMinusInfinity) {
  for (std::size_t s : {0, 1, 2}) parts_.set_lse(s, 6, -inf);
  emulate<float>(parts_, false, Form::divided);
  EXPECT_THAT(verdict(), Passes());
  parts_.set_o(out, 6, 0, 1);
  EXPECT_THAT(verdict(), FailsWith("a row without weight is not 0"));
  parts_.set_lse(out, 6, 0);
  EXPECT_THAT(verdict(), FailsWith("LSE of a row without weight is not -inf"));
  const Parts none(0, 1, 2);
  EXPECT_THAT(judge_merge(none.problem(), none.out(), {}), Fails());  // its LSE is 0
}

TEST_F(WrongMerge, NanAndInfinitiesOfTheInputs) {
  parts_.set_lse(0, 2, nan);
  parts_.set_lse(1, 3, inf);
  EXPECT_THAT(verdict(), FailsWith("LSE is a number where NaN belongs: LSE[b=2, h=0, row=0]"));
  emulate<float>(parts_, false, Form::divided);
  EXPECT_THAT(verdict(), Passes());
  EXPECT_TRUE(std::isnan(parts_.o(out, 3, 0)));
  parts_.set_o(1, 5, 2, inf);
  EXPECT_THAT(verdict(),
              FailsWith("O is not the infinity that belongs there: O[b=5, h=0, row=0, column=2]"));
  emulate<float>(parts_, false, Form::divided);
  EXPECT_THAT(verdict(), Passes());
}

TEST(Merge, DistantPartsCountNothing) {
  Parts parts(3, 1, 2);
  for (std::size_t s = 0; s < 3; ++s) {
    parts.set_lse(s, 0, s == 1 ? 3e38 : -3e38);
    for (Index c = 0; c < 2; ++c) parts.set_o(s, 0, c, 1.0 + static_cast<double>(s));
  }
  emulate<float>(parts, false, Form::divided);
  EXPECT_EQ(parts.o(3, 0, 0), 2);
  EXPECT_THAT(parts.out(), IsWithinBoundOf(parts.problem(), contract_of(0x1p-24)));
  parts.set_o(3, 0, 0, 2.00001);
  EXPECT_THAT(judge_merge(parts.problem(), parts.out(), contract_of(0x1p-24)), Fails());
}

}  // namespace
}  // namespace assay
