#include "oracle/filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "oracle/weigh.h"

namespace assay {
namespace {

class Filters {
 public:
  Filters(const EvidenceRows& rows, const Replicates& replicates, const Attention& problem,
          double roundoff)
      : rows_(rows),
        replicates_(replicates),
        p_(problem),
        roundoff_(roundoff),
        spread_(least_spread_of(rows.out_dtype)),
        count_(std::ssize(replicates.error)),
        by_key_(p_.shape.keys, count_, spread_),
        by_distance_(2 * nearest + 1, count_, spread_),
        from_first_(nearest, count_, spread_),
        from_last_(nearest, count_, spread_) {}

  FilterAnswers ask() {
    ask_row_factors();
    ask_lse();
    ask_scale();
    ask_keys();
    answers_.keep_most_significant();
    return std::move(answers_);
  }

 private:
  static constexpr Index nearest = 4;

  bool usable(Index r) const { return replicates_.usable[usize(r)] && replicates_.sigma(r) > 0; }
  double weight(Index r) const { return 1 / (replicates_.sigma(r) * replicates_.sigma(r)); }

  // A direction tells nothing if it consists of rounding errors of the oracle's own sums.
  bool is_noise(double square, Index r) const {
    constexpr double least = 0x1p-40;
    return !(square > least * least * rows_.exact.row(r).squaredNorm());
  }

  // Adds one row to the only share of a question, which has no key, lane, tile or distance.
  void add(Shares& share, Index r, const Eigen::RowVectorXd& direction) const {
    const double w = weight(r);
    if (is_noise(direction.squaredNorm(), r)) return;
    std::vector<double> by_chance(usize(count_));
    for (Index k = 0; k < count_; ++k)
      by_chance[usize(k)] = w * replicates_.error[usize(k)].row(r).dot(direction);
    share.add(0, w * rows_.error.row(r).dot(direction), w * direction.squaredNorm(),
              by_chance.data());
  }

  void answer(const char* fault, double least, const Shares& share) {
    share.answer(answers_, least, [=](Index) { return std::string(fault); });
  }

  void ask_row_factors() {
    Shares share(1, count_, spread_);
    for (Index r = 0; r < rows_.rows(); ++r)
      if (usable(r)) add(share, r, rows_.exact.row(r));
    answer("O is too large by a factor", least_factor(roundoff_, rows_.out_dtype), share);
  }

  // A fault in the row sum makes the LSE of all rows too large, or of all rows too small.
  void ask_lse() {
    Shares share(1, count_, spread_);
    for (Index r = 0; r < rows_.rows(); ++r) {
      const double sigma = replicates_.lse_sigma(r);
      if (!rows_.lse_asked[usize(r)] || !usable(r) || !std::isfinite(sigma)) continue;
      // The rounding error of an LSE grows with the LSE, so the direction does as well.
      const double w = std::max(1.0, std::fabs(rows_.lse(r))) / (sigma * sigma);
      std::vector<double> by_chance(usize(count_));
      for (Index k = 0; k < count_; ++k)
        by_chance[usize(k)] = w * replicates_.lse_error[usize(k)](r);
      share.add(0, w * rows_.lse_error(r), w * w * sigma * sigma, by_chance.data());
    }
    answer("LSE is too large by a constant", least_factor(roundoff_, Dtype::f32), share);
  }

  // The derivative of O with respect to the logarithm of the scale.
  void ask_scale() {
    Shares share(1, count_, spread_);
    for (const EvidenceHead& head : rows_.heads) {
      const Index n = head.block.count;
      if (n == 0) continue;
      RowMajor weights = RowMajor::Zero(head.rows(), n);
      for (Index r = 0; r < head.rows(); ++r) {
        double mean = 0;
        for (Index j = 0; j < n; ++j) {
          const auto pair = usize(r * n + j);
          const double p = head.block.weight[pair];
          if (!(p > 0)) continue;
          const double t = scaled_score(head.block.dot[pair]);
          mean += p * t;
          weights(r, j) = p * t;
        }
        for (Index j = 0; j < n; ++j) {
          const auto pair = usize(r * n + j);
          weights(r, j) -= head.block.weight[pair] * mean;
          if (!head.block.kept.empty() && !head.block.kept[pair]) weights(r, j) = 0;
        }
      }
      const RowMajor direction =
          weights * head.kv->values.middleRows(head.block.key0, n).leftCols(rows_.exact.cols());
      for (Index r = 0; r < head.rows(); ++r)
        if (usable(head.first + r)) add(share, head.first + r, direction.row(r));
    }
    // The error of tanh counts for more where the softcap's slope is small.
    const double least = least_factor(roundoff_, rows_.out_dtype);
    answer("the scale is too large by a factor", p_.softcap > 0 ? 32 * least : least, share);
  }
  // d s / d log(scale), with the slope of a softcap.
  double scaled_score(double dot) const {
    const double t = static_cast<double>(p_.scale) * dot;
    if (p_.softcap == 0) return t;
    const double c = static_cast<double>(p_.softcap), y = std::tanh(t / c);
    return t * (1 - y * y);
  }

  // Leaving out key j moves O by p (O - v) / (1 - p), to first order p (O - v). Products with all
  // keys at once are matrix products; each row's are then added up by key, distance and so on.
  void ask_keys() {
    for (const EvidenceHead& head : rows_.heads) collect_keys(head);
    by_key_.answer(answers_, least_share_of_part,
                   [](Index j) { return fmt::format("key {} is missing", j); });
    from_last_.answer(answers_, least_share_of_part, [](Index d) {
      return d == 0 ? std::string("the newest key of each row is missing")
                    : fmt::format("the key {} before the newest of each row is missing", d);
    });
    from_first_.answer(answers_, least_share_of_part, [](Index d) {
      return d == 0 ? std::string("the first key of each row is missing")
                    : fmt::format("the key {} behind the first of each row is missing", d);
    });
    by_distance_.answer(answers_, least_share_of_part, [](Index d) {
      return fmt::format("the key at a distance of {} from the diagonal is missing", d - nearest);
    });
    for (const Index width : {16, 32, 64, 128, 256}) {
      if (width >= 2 * p_.shape.keys) break;
      Shares lanes(width, count_, spread_),
          tiles((p_.shape.keys + width - 1) / width, count_, spread_);
      for (Index j = 0; j < p_.shape.keys; ++j) {
        lanes.add(j % width, by_key_, j);
        tiles.add(j / width, by_key_, j);
      }
      if (width <= p_.shape.keys)
        lanes.answer(answers_, least_share_of_part, [=](Index lane) {
          return fmt::format("every key of lane {} of {} is missing", lane, width);
        });
      tiles.answer(answers_, least_share_of_part, [=](Index t) {
        return fmt::format("keys {} to {} are missing", t * width, (t + 1) * width - 1);
      });
    }
  }

  void collect_keys(const EvidenceHead& head) {
    const Index n = head.block.count, dv = rows_.exact.cols();
    if (n == 0) return;
    const auto values = head.kv->values.middleRows(head.block.key0, n).leftCols(dv);
    const Eigen::RowVectorXd norms = values.rowwise().squaredNorm().transpose();
    const auto of_rows = [&](const RowMajor& m) { return m.middleRows(head.first, head.rows()); };
    const RowMajor exact_v = of_rows(rows_.exact) * values.transpose();
    std::vector<RowMajor> error_v;
    std::vector<Eigen::VectorXd> error_o;
    const auto products = [&](const RowMajor& error) {
      error_v.push_back(of_rows(error) * values.transpose());
      error_o.push_back(of_rows(error).cwiseProduct(of_rows(rows_.exact)).rowwise().sum());
    };
    products(rows_.error);
    for (const RowMajor& error : replicates_.error) products(error);
    std::vector<double> shares(usize(count_) + 1);
    for (Index r = 0; r < head.rows(); ++r) {
      const Index at = head.first + r;
      if (!usable(at)) continue;
      const double w = weight(at), o_o = rows_.exact.row(at).squaredNorm();
      const BlockRow& row = head.block.row(r);
      const Index begin = row.seen_begin, end = row.seen_end;
      const Index diagonal = row.index + p_.offset_of(head.block.b);
      for (Index j = begin; j < end; ++j) {
        const auto pair = usize(r * n + j);
        const double p = head.block.weight[pair];
        if (!(p > 0) || (!head.block.kept.empty() && !head.block.kept[pair])) continue;
        for (std::size_t k = 0; k < shares.size(); ++k)
          shares[k] = w * p * (error_o[k](r) - error_v[k](r, j));
        const double square = w * p * p * (o_o - 2 * exact_v(r, j) + norms(j));
        if (is_noise(square / w, at)) continue;
        const auto give = [&](Shares& to, Index index) {
          if (index >= 0 && index < to.size()) to.add(index, shares[0], square, shares.data() + 1);
        };
        const Index key = head.block.key0 + j;
        give(by_key_, key);
        give(from_first_, j - begin);
        give(from_last_, end - 1 - j);
        if (p_.causal || p_.window_left >= 0 || p_.window_right >= 0)
          give(by_distance_, key - diagonal + nearest);
      }
    }
  }

  const EvidenceRows& rows_;
  const Replicates& replicates_;
  const Attention& p_;
  const double roundoff_, spread_;
  const Index count_;
  FilterAnswers answers_;
  Shares by_key_, by_distance_, from_first_, from_last_;
};

}  // namespace

FilterAnswers ask_filters(const EvidenceRows& rows, const Replicates& replicates,
                          const Attention& problem, double roundoff) {
  return Filters(rows, replicates, problem, roundoff).ask();
}

}  // namespace assay
