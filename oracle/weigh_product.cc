#include "oracle/weigh_product.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <utility>

#include "oracle/emulation.h"
#include "oracle/exact_sum.h"
#include "oracle/product_sample.h"
#include "oracle/row_sample.h"
#include "oracle/weigh.h"
#include "problem/parallel.h"

namespace assay {
namespace {

// About as many products as a replicate takes.
constexpr Index most_products = Index{1} << 20;

std::vector<Index> spread(Index n, Index count, Index also, std::uint64_t seed) {
  const std::vector<Index> even = rows_to_judge(n, std::min(n, count), seed);
  std::set<Index> chosen(even.begin(), even.end());
  if (also >= 0) chosen.insert(also);
  return {chosen.begin(), chosen.end()};
}

}  // namespace

ProductSample sample_product(const Product& p, const TensorView& c, const Verdict& bounds,
                             std::uint64_t seed) {
  ProductSample s;
  const Element* worst = bounds.worst(Output::c);
  const Index elements = std::max<Index>(most_products / std::max<Index>(p.k, 1), 64);
  const Index rows = std::clamp<Index>(elements / 32, 1, 16);
  s.rows = spread(p.m, rows, worst ? worst->row : -1, seed);
  s.columns = spread(p.n, elements / std::ssize(s.rows), worst ? worst->column : -1, seed);
  const Index n = std::ssize(s.columns), m = std::ssize(s.rows);
  s.group = p.w.group;
  s.tensor_scale = static_cast<double>(p.w.tensor_scale);
  s.a.resize(m, p.k);
  s.w.resize(p.k, n);
  const double scale_of_a = p.a_low ? static_cast<double>(p.a_low.tensor_scale) : 1;
  std::vector<ProductRow> rows_of_a(usize(m));
  for (Index r = 0; r < m; ++r) {
    rows_of_a[usize(r)].read(p, s.rows[usize(r)]);
    for (Index k = 0; k < p.k; ++k) s.a(r, k) = rows_of_a[usize(r)].a[usize(k)] * scale_of_a;
  }
  std::vector<ExactSum> exact;  // column after column
  exact.reserve(usize(m * n));
  for (Index j = 0; j < n; ++j) {
    const ProductColumns column(p.w, s.columns[usize(j)], 1);
    for (Index k = 0; k < p.k; ++k) s.w(k, j) = column.weight(k, 0) * s.tensor_scale;
    for (const ProductRow& row : rows_of_a) exact.push_back(exact_product(p, row, column, 0));
  }
  s.exact = s.error = RowMajor::Zero(m, n);
  s.asked.resize(m, n);
  s.out = c.dtype;
  const RowMajor gauge = s.a.cwiseAbs() * s.w.cwiseAbs();
  for (Index r = 0; r < m; ++r)
    for (Index j = 0; j < n; ++j) {
      const ExactSum& is = exact[usize(j * m + r)];
      const double got = load(c, c.at(0, 0, s.rows[usize(r)], s.columns[usize(j)]));
      s.asked(r, j) = std::isfinite(is.high) && std::isfinite(got) && !underflows(gauge(r, j));
      if (!s.asked(r, j)) continue;
      s.exact(r, j) = is.high;
      s.error(r, j) = (got - is.high) - is.low;
    }
  return s;
}

namespace {

// The sum of a matrix instruction that aligns the products of a block and its accumulator to the
// largest exponent among them and drops the bits below 2^-bits of it.
class AlignedSum {
 public:
  explicit AlignedSum(int bits) : bits_(bits) {}
  void add(const double* products, Index count) {
    double largest = std::fabs(sum_);
    for (Index k = 0; k < count; ++k) largest = std::max(largest, std::fabs(products[k]));
    if (!(largest > 0)) return;
    const int quantum = std::ilogb(largest) - bits_;
    double units = std::trunc(std::ldexp(sum_, -quantum));
    for (Index k = 0; k < count; ++k) units += std::trunc(std::ldexp(products[k], -quantum));
    const double sum = std::ldexp(units, quantum);
    // The result is rounded to as many bits again.
    const int own = sum == 0 ? 0 : std::ilogb(sum) - bits_;
    sum_ = sum == 0 ? 0 : std::ldexp(std::nearbyint(std::ldexp(sum, -own)), own);
  }
  double take() { return std::exchange(sum_, 0); }

 private:
  int bits_;
  double sum_ = 0;
};

// The weights as they are multiplied, but for a tensor scale that comes last.
RowMajor multiplied_weights(const ProductSample& s, const ProductContract& c, bool scales_last) {
  RowMajor w = scales_last ? RowMajor(s.w / s.tensor_scale) : s.w;
  if (c.weight_dtype)
    for (double& weight : w.reshaped()) weight = round_to(*c.weight_dtype, weight);
  return w;
}

RowMajorSingle aligned_product(const ProductSample& s, const RowMajor& w,
                               const Eigen::RowVectorXd& units, const ProductContract& c,
                               Index serial) {
  const int bits = -std::ilogb(c.roundoff);
  // Some kernels add every 128 terms to a sum in binary32.
  const Index promoted = serial % 2 == 0 ? s.a.cols() : 128;
  RowMajorSingle out(s.a.rows(), s.w.cols());
  const RowMajor columns = (w * units.asDiagonal()).transpose();
  std::vector<double> products(usize(c.block));
  for (Index r = 0; r < out.rows(); ++r)
    for (Index j = 0; j < out.cols(); ++j) {
      AlignedSum sum(bits);
      float total = 0;
      for (Index k = 0; k < s.a.cols(); k += c.block) {
        if (k > 0 && k % promoted == 0) total += static_cast<float>(sum.take());
        const Index count = std::min<Index>(c.block, s.a.cols() - k);
        for (Index i = 0; i < count; ++i) products[usize(i)] = s.a(r, k + i) * columns(j, k + i);
        sum.add(products.data(), count);
      }
      out(r, j) = total + static_cast<float>(sum.take());
    }
  return out;
}

// Factors of the columns of W, of few bits, so that almost every weight stays exact. The sums are
// divided by them in the end. Where the order of a sum is fixed, its roundings would be the same in
// every run, and their size no sample of anything; and a kernel may sum codes, whose scale comes
// later. In these units each run rounds other numbers.
Eigen::RowVectorXd draw_units(Index columns, SplitMix64& random, Index serial) {
  Eigen::RowVectorXd units = Eigen::RowVectorXd::Ones(columns);
  if (serial == 0) return units;
  for (double& unit : units) unit = 1 + static_cast<double>(random.below(16)) / 16;
  return units;
}

// One run of the product in the roundings of the contract, in the units of its columns.
RowMajorSingle emulate(const ProductSample& s, const Eigen::RowVectorXd& units,
                       const ProductContract& c, SplitMix64& random, Index serial) {
  const bool scales_last = s.tensor_scale != 1 && !c.scales_weights;
  const RowMajor multiplied = multiplied_weights(s, c, scales_last);
  if (c.block > 0) {
    RowMajorSingle out = aligned_product(s, multiplied, units, c, serial);
    if (scales_last) out *= static_cast<float>(s.tensor_scale);
    return out;
  }
  Contract dot;
  dot.dot_roundoff = c.roundoff;
  if (c.roundoff == 0x1p-23) dot.dot_block = 16;
  Schedule how = draw_schedule(dot, 1, random, serial);
  // Parts of 0 are the whole sum; in order, a group is a part.
  if (c.order != ProductOrder::any && s.group > 0 && serial % 2 == 0) how.dot_part = s.group;
  RowMajorSingle a = s.a.cast<float>(), w = multiplied.cast<float>();
  const auto floor = static_cast<float>(c.operand_floor);
  a = (a.array().abs() < floor).select(0.0f, a);
  w *= units.cast<float>().asDiagonal();
  // Where a large term stands decides how many roundings of its size follow.
  if (c.order != ProductOrder::groups_in_order && how.dim_seed != 0 && serial % 2 != 0) {
    const std::vector<Index> order = shuffled(a.cols(), how.dim_seed);
    a = RowMajorSingle(a(Eigen::all, order));
    w = RowMajorSingle(w(order, Eigen::all));
  }
  RowMajorSingle out = RowMajorSingle::Zero(s.a.rows(), s.w.cols());
  add_product(dot, how, a, w, out);
  if (scales_last) out *= static_cast<float>(s.tensor_scale);
  return out;
}

}  // namespace

ProductReplicates replicate(const ProductSample& s, const ProductContract& c,
                            const JudgeOptions& options) {
  ProductReplicates all;
  all.error.resize(replicate_count);
  parallel_for(replicate_count, options.threads, [&](Index k) {
    SplitMix64 random(SplitMix64::number(options.seed, usize(k)));
    const Eigen::RowVectorXd units = draw_units(s.w.cols(), random, k);
    RowMajorSingle out =
        (emulate(s, units, c, random, k).cast<double>() * units.cwiseInverse().asDiagonal())
            .cast<float>();
    round_all(s.out, out);
    all.error[usize(k)] = out.cast<double>() - s.exact;
  });
  all.square = RowMajor::Zero(s.exact.rows(), s.exact.cols());
  for (const RowMajor& error : all.error) all.square += error.cwiseAbs2() / replicate_count;
  // All sums are of as many terms, so their errors are usually in proportion to the sums of moduli.
  const RowMajor gauge = s.a.cwiseAbs() * s.w.cwiseAbs();
  std::vector<double> ratios;
  for (Index e = 0; e < gauge.size(); ++e)
    if (s.asked.data()[e] && gauge.data()[e] > 0 && std::isfinite(all.square.data()[e]))
      ratios.push_back(std::sqrt(all.square.data()[e]) / gauge.data()[e]);
  std::ranges::sort(ratios);
  // A part of one rounding of the sum of moduli is typical even where every replicate is exact.
  const double usual = std::max(ratios.empty() ? 0 : ratios[ratios.size() / 2], c.roundoff / 16);
  for (Index e = 0; e < all.square.size(); ++e) {
    const double floor = half_ulp(s.out, s.exact.data()[e]) / 2, pooled = usual * gauge.data()[e];
    all.square.data()[e] = std::max({all.square.data()[e], floor * floor, pooled * pooled});
  }
  return all;
}

namespace {

// The s of a row or a column, of the elements that are added.
class LineScore {
 public:
  void add(const ProductSample& s, const ProductReplicates& typical, Index r, Index j) {
    const double square = typical.square(r, j);
    error_ += s.error(r, j) * s.error(r, j);
    for (std::size_t k = 0; k < replicates_.size(); ++k)
      replicates_[k] += typical.error[k](r, j) * typical.error[k](r, j);
    square_ += square;
    fourth_ += square * square;
  }
  // Where a few elements have nearly all of the typical errors, they alone make s, and the limit is
  // that of so many elements.
  void put(RowScores& scores, Dtype out, Index line) const {
    if (!(square_ > 0)) return;
    scores.add(std::sqrt(error_ / square_), row_limit_of(out, square_ * square_ / fourth_), 0, 0,
               line);
    for (std::size_t k = 0; k < replicates_.size(); ++k)
      scores.add_replicate(k, std::sqrt(replicates_[k] / square_));
  }
  bool empty() const { return !(square_ > 0); }

 private:
  double error_ = 0, square_ = 0, fourth_ = 0;
  std::array<double, replicate_count> replicates_{};
};

// The s of each row, and of each column, of the sample.
void score(const ProductSample& s, const ProductReplicates& typical, Evidence& e) {
  std::vector<LineScore> rows(s.rows.size()), columns(s.columns.size());
  for (Index r = 0; r < s.exact.rows(); ++r)
    for (Index j = 0; j < s.exact.cols(); ++j) {
      if (!s.asked(r, j) || !std::isfinite(typical.square(r, j))) continue;
      rows[usize(r)].add(s, typical, r, j);
      columns[usize(j)].add(s, typical, r, j);
    }
  e.rows_asked = std::ranges::count_if(rows, [](const LineScore& l) { return !l.empty(); });
  if (e.rows_asked == 0) return;
  RowScores of_rows, of_columns;
  for (std::size_t r = 0; r < rows.size(); ++r) rows[r].put(of_rows, s.out, s.rows[r]);
  for (std::size_t j = 0; j < columns.size(); ++j) columns[j].put(of_columns, s.out, s.columns[j]);
  const Atypical row = of_rows.finish();
  Atypical column = of_columns.finish();
  column.of_column = true;
  e.rows[Output::c] = row.s / row.limit > column.s / column.limit ? row : column;
}

FilterAnswers ask(const ProductSample& s, const ProductReplicates& typical, double roundoff) {
  FilterAnswers answers;
  const RowMajor weight = s.asked.select(typical.square.cwiseInverse().array(), 0.0).matrix();
  const double spread = least_spread_of(s.out);
  Shares factor(1, replicate_count, spread), terms(s.a.cols(), replicate_count, spread);
  std::vector<double> of_factor;
  std::vector<Eigen::VectorXd> of_terms;
  const auto products = [&](const RowMajor& error) {
    RowMajor weighted = weight;
    for (Index e = 0; e < weighted.size(); ++e)
      if (weighted.data()[e] > 0) weighted.data()[e] *= error.data()[e];
    of_factor.push_back(weighted.cwiseProduct(s.exact).sum());
    // Leaving out term k moves C by - a_k w_k.
    of_terms.push_back(-(s.w * weighted.transpose()).cwiseProduct(s.a.transpose()).rowwise().sum());
  };
  products(s.error);
  for (const RowMajor& error : typical.error) products(error);
  factor.add(0, of_factor[0], weight.cwiseProduct(s.exact.cwiseAbs2()).sum(), of_factor.data() + 1);
  const Eigen::VectorXd squares = (s.w.cwiseAbs2() * weight.transpose())
                                      .cwiseProduct(s.a.cwiseAbs2().transpose())
                                      .rowwise()
                                      .sum();
  std::vector<double> shares(of_terms.size());
  for (Index k = 0; k < terms.size(); ++k) {
    for (std::size_t n = 0; n < shares.size(); ++n) shares[n] = of_terms[n](k);
    terms.add(k, shares[0], squares(k), shares.data() + 1);
  }
  factor.answer(answers, least_factor(roundoff, s.out),
                [](Index) { return std::string("C is too large by a factor"); });
  terms.answer(answers, least_share_of_part,
               [](Index k) { return fmt::format("term {} is missing", k); });
  for (const Index width : {8, 16, 32, 64, 128}) {
    if (width >= 2 * terms.size()) break;
    Shares lanes(width, replicate_count, spread),
        tiles((terms.size() + width - 1) / width, replicate_count, spread);
    for (Index k = 0; k < terms.size(); ++k) {
      lanes.add(k % width, terms, k);
      tiles.add(k / width, terms, k);
    }
    lanes.answer(answers, least_share_of_part, [=](Index lane) {
      return fmt::format("every term of lane {} of {} is missing", lane, width);
    });
    tiles.answer(answers, least_share_of_part, [=](Index t) {
      return fmt::format("terms {} to {} are missing", t * width, (t + 1) * width - 1);
    });
  }
  answers.keep_most_significant();
  return answers;
}

// Sums are emulated in binary32, rounded or truncated, in f16, and in blocks of any roundoff.
bool is_emulated(const ProductContract& c) {
  return c.block > 0 || c.roundoff <= 0x1p-24 || c.roundoff == 0x1p-23 || c.roundoff == 0x1p-11;
}

}  // namespace

Evidence weigh_product(const Product& p, const TensorView& c,
                       std::span<const ProductContract> contracts, const Verdict& bounds,
                       const JudgeOptions& options) {
  if (p.m == 0 || p.n == 0 || p.k == 0) return not_asked("there is no product");
  if (!std::ranges::all_of(contracts, [](const ProductContract& x) { return is_emulated(x); }))
    return not_asked("no run of a product has such a roundoff");
  const ProductSample sample = sample_product(p, c, bounds, options.seed);
  return best_fit(contracts, sample.out, options,
                  [&](const ProductContract& contract, Evidence& e) {
                    const ProductReplicates typical = replicate(sample, contract, options);
                    score(sample, typical, e);
                    if (sample.exact.size() < least_elements) return FilterAnswers{};
                    return ask(sample, typical, contract.roundoff);
                  });
}

}  // namespace assay
