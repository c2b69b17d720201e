#include "oracle/gradient_suspicions.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <Eigen/Cholesky>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "oracle/explain.h"
#include "oracle/suspicions.h"

namespace assay {
namespace {

constexpr std::string_view names[] = {
    "gradient-factor",         "gradient-rows-zero",         "gradient-rows-stale",
    "gradient-rows-misplaced", "gradient-columns-misplaced", "key-gradients-exchanged",
    "gradient-key-left-out",   "gradient-row-left-out",      "gradient-heads-miscounted"};

class Written {
 public:
  Written(const EvidenceGroup& group, const GroupSums& right, const AttentionShape& s,
          std::span<const GradientTerms> terms)
      : group_(group), right_(right), s_(s), terms_(terms) {
    for (const GradientRows& g : group.gradients) got_.push_back(g.exact + g.error);
  }

  std::vector<GradientSuspicion> all() const {
    std::vector<GradientSuspicion> found;
    const auto tell = [&](std::string_view name, const auto& change) {
      GroupSums x = right_;
      std::vector<std::string> told;
      for (std::size_t n = 0; n < 3; ++n)
        if (std::string words = change(n, x); !words.empty()) told.push_back(std::move(words));
      if (!told.empty())
        found.push_back({name, fmt::format("{}", fmt::join(told, ", ")), std::move(x)});
    };
    tell("gradient-factor", [&](std::size_t n, GroupSums& x) { return scale(n, x); });
    tell("gradient-rows-zero", [&](std::size_t n, GroupSums& x) { return clear_tail(n, x); });
    tell("gradient-rows-stale", [&](std::size_t n, GroupSums& x) { return repeat_rows(n, x); });
    tell("gradient-rows-misplaced", [&](std::size_t n, GroupSums& x) { return move_rows(n, x); });
    tell("gradient-columns-misplaced",
         [&](std::size_t n, GroupSums& x) { return move_columns(n, x); });
    tell("gradient-key-left-out",
         [&](std::size_t n, GroupSums& x) { return n == 0 ? lose_key(x) : std::string(); });
    tell("gradient-heads-miscounted",
         [&](std::size_t n, GroupSums& x) { return n > 0 ? recount_heads(n, x) : std::string(); });
    tell("gradient-row-left-out",
         [&](std::size_t n, GroupSums& x) { return n > 0 ? lose_row(n, x) : std::string(); });
    if (s_.dim != s_.value_dim) return found;
    GroupSums x = right_;
    std::swap(x.value[1], x.value[2]);
    std::swap(x.gauge[1], x.gauge[2]);
    found.push_back({"key-gradients-exchanged", "dK and dV are exchanged", std::move(x)});
    return found;
  }

 private:
  std::string_view output(std::size_t n) const { return name_of(group_.gradients[n].output); }

  // The factor with the least squares of errors.
  std::string scale(std::size_t n, GroupSums& x) const {
    const RowMajor& right = right_.value[n];
    const double factor = got_[n].cwiseProduct(right).sum() / right.squaredNorm();
    constexpr double least = 0x1p-9;  // as of O
    if (!(std::fabs(factor - 1) > least) || !std::isfinite(factor)) return {};
    x.value[n] *= factor;
    x.gauge[n] *= std::fabs(factor);
    if (std::fabs(factor) < least) return fmt::format("{} is 0", output(n));
    return fmt::format("{} is {:.4g} times what it should be", output(n), factor);
  }

  bool is_zero(std::size_t n, Index r) const {
    constexpr double rounding_of_the_difference = 1e-9;
    return got_[n].row(r).norm() <= rounding_of_the_difference * right_.value[n].row(r).norm();
  }

  // The rows behind the last one that is not 0 in any head.
  std::string clear_tail(std::size_t n, GroupSums& x) const {
    const Index rows = n == 0 ? s_.rows : s_.keys, all = got_[n].rows();
    Index first = 0;
    for (Index r = 0; r < all; ++r)
      if (!is_zero(n, r)) first = std::max(first, r % rows + 1);
    if (first == 0 || first == rows) return {};
    for (Index r = 0; r < all; ++r)
      if (r % rows >= first) x.value[n].row(r).setZero(), x.gauge[n](r) = 0;
    return fmt::format("{} of {} {} and on is 0", output(n), n == 0 ? "row" : "key", first);
  }

  std::string repeat_rows(std::size_t n, GroupSums& x) const {
    const Eigen::VectorXd& bound = group_.gradients[n].bound;
    const Index rows = n == 0 ? s_.rows : s_.keys;
    Index count = 0;
    for (Index r = 0; r < got_[n].rows(); ++r) {
      if (r % rows == 0 || rms_error(got_[n].row(r), right_.value[n].row(r)) <= bound(r)) continue;
      x.value[n].row(r) = right_.value[n].row(r - 1);
      x.gauge[n](r) = right_.gauge[n](r - 1);
      ++count;
    }
    if (count == 0) return {};
    return fmt::format("the wrong {} of {} hold the one before", n == 0 ? "rows" : "keys",
                       output(n));
  }

  std::string move_rows(std::size_t n, GroupSums& x) const {
    const Misplaced m = misplaced_columns(got_[n].transpose(), right_.value[n].transpose());
    if (m.wrong.empty() || !m.all_found) return {};
    for (const Index r : m.wrong) {
      x.value[n].row(r) = right_.value[n].row(m.from[usize(r)]);
      x.gauge[n](r) = right_.gauge[n](m.from[usize(r)]);
    }
    const std::string words = words_of(m, n == 0 ? "row" : "key", output(n));
    return n == 0 && s_.group() > 1 ? words + " (counted through the heads of the group)" : words;
  }

  std::string move_columns(std::size_t n, GroupSums& x) const {
    const Misplaced m = misplaced_columns(got_[n], right_.value[n]);
    if (m.wrong.empty() || !m.all_found) return {};
    for (const Index c : m.wrong) x.value[n].col(c) = right_.value[n].col(m.from[usize(c)]);
    return words_of(m, "column", output(n));
  }

  // How often a term counts that should count once, by the share of it in the errors.
  static std::optional<double> times_of(double share) {
    constexpr double off = 0.25;
    if (std::fabs(share + 1) < off) return 0;
    if (std::fabs(share - 1) < off) return 2;
    return std::nullopt;
  }

  // Key j adds dS_ij k_j to every row i of dQ. The key along whose terms the errors e_i lie most,
  //   (sum_i e_i . dS_ij k_j)^2 / sum_i |dS_ij k_j|^2,
  // is left out or counted twice.
  std::string lose_key(GroupSums& x) const {
    const RowMajor errors = got_[0] - right_.value[0];
    if (!errors.allFinite()) return {};
    Eigen::VectorXd along = Eigen::VectorXd::Zero(s_.keys), square = along;
    for (std::size_t h = 0; h < terms_.size(); ++h) {
      const GradientTerms& t = terms_[h];
      const auto e = errors.middleRows(static_cast<Index>(h) * s_.rows, s_.rows);
      along += (e * t.keys.transpose()).cwiseProduct(t.score).colwise().sum().transpose();
      square += t.score.cwiseAbs2().colwise().sum().transpose().cwiseProduct(
          t.keys.rowwise().squaredNorm());
    }
    const auto [key, times] = most_along(along, square);
    if (!times) return {};
    for (std::size_t h = 0; h < terms_.size(); ++h)
      x.value[0].middleRows(static_cast<Index>(h) * s_.rows, s_.rows) +=
          (*times - 1) * terms_[h].score.col(key) * terms_[h].keys.row(key);
    return fmt::format("key {} {} dQ", key, *times == 0 ? "gives nothing to" : "counts twice in");
  }

  // Row i of a head adds dS_ij q_i to dK and P_ij dO_i to dV of every key j.
  std::string lose_row(std::size_t n, GroupSums& x) const {
    const RowMajor errors = got_[n] - right_.value[n];
    if (!errors.allFinite()) return {};
    // Of each row in each head of the group, and then of each row in all heads.
    const Index rows = s_.rows, heads = std::ssize(terms_);
    Eigen::VectorXd along = Eigen::VectorXd::Zero(rows * (heads + 1)), square = along;
    const auto operands = [&](const GradientTerms& t) {
      return n == 1 ? std::pair(&t.score, &t.q) : std::pair(&t.weight, &t.d_o);
    };
    for (Index h = 0; h < heads; ++h) {
      const auto [left, right] = operands(terms_[usize(h)]);
      along.segment(h * rows, rows) = (*left * errors).cwiseProduct(*right).rowwise().sum();
      square.segment(h * rows, rows) =
          left->cwiseAbs2().rowwise().sum().cwiseProduct(right->rowwise().squaredNorm());
      along.tail(rows) += along.segment(h * rows, rows);
      square.tail(rows) += square.segment(h * rows, rows);
    }
    const auto [at, times] = most_along(along, square);
    if (!times) return {};
    const Index row = at % rows, head = at / rows;
    for (Index h = 0; h < heads; ++h) {
      if (head < heads && h != head) continue;
      const auto [left, right] = operands(terms_[usize(h)]);
      x.value[n] += (*times - 1) * left->row(row).transpose() * right->row(row);
    }
    return fmt::format(
        "row {}{} {} {}", row,
        head < heads && heads > 1 ? fmt::format(" of head {} of the group", head) : "",
        *times == 0 ? "gives nothing to" : "counts twice in", output(n));
  }

  // How often each head of the group counts, by least squares.
  std::string recount_heads(std::size_t n, GroupSums& x) const {
    const Index heads = std::ssize(terms_);
    if (heads < 2 || !got_[n].allFinite()) return {};
    std::vector<RowMajor> parts;
    for (const GradientTerms& t : terms_)
      parts.push_back(n == 1 ? t.score.transpose() * t.q : t.weight.transpose() * t.d_o);
    Eigen::MatrixXd gram(heads, heads);
    Eigen::VectorXd along(heads);
    for (Index h = 0; h < heads; ++h) {
      along(h) = got_[n].cwiseProduct(parts[usize(h)]).sum();
      for (Index k = 0; k < heads; ++k)
        gram(h, k) = parts[usize(h)].cwiseProduct(parts[usize(k)]).sum();
    }
    const Eigen::VectorXd times = gram.ldlt().solve(along);
    constexpr double off = 0.1;
    std::vector<Index> lost, twice;
    for (Index h = 0; h < heads; ++h) {
      if (std::fabs(times(h)) < off) lost.push_back(h);
      else if (std::fabs(times(h) - 2) < off) twice.push_back(h);
      else if (!(std::fabs(times(h) - 1) < off)) return {};
    }
    for (const Index h : lost) x.value[n] -= parts[usize(h)];
    for (const Index h : twice) x.value[n] += parts[usize(h)];
    std::vector<std::string> told;
    const auto tell = [&](const std::vector<Index>& which, const char* one, const char* many) {
      if (!which.empty())
        told.push_back(fmt::format("{} of the group {}", list_of("head", which),
                                   which.size() == 1 ? one : many));
    };
    tell(lost, "gives nothing to", "give nothing to");
    tell(twice, "counts twice in", "count twice in");
    if (told.empty()) return {};
    return fmt::format("{} {}", fmt::join(told, " and "), output(n));
  }

  static std::pair<Index, std::optional<double>> most_along(const Eigen::VectorXd& along,
                                                            const Eigen::VectorXd& square) {
    Index at = 0;
    double most = 0;
    for (Index k = 0; k < along.size(); ++k)
      if (square(k) > 0 && along(k) * along(k) / square(k) > most)
        most = along(k) * along(k) / square(k), at = k;
    return {at, most > 0 ? times_of(along(at) / square(at)) : std::nullopt};
  }

  const EvidenceGroup& group_;
  const GroupSums& right_;
  const AttentionShape& s_;
  std::span<const GradientTerms> terms_;
  std::vector<RowMajor> got_;
};

// "row 5", "rows 32 to 47"; empty if these are all.
std::string range_of(std::string_view noun, Index first, Index last, Index all) {
  if (last - first + 1 == all) return {};
  if (first == last) return fmt::format("{} {}", noun, first);
  return fmt::format("{}s {} to {}", noun, first, last);
}

}  // namespace

std::string GradientRegion::words(const AttentionShape& s) const {
  std::vector<std::string> all = {range_of("head", first_head, last_head, s.group()),
                                  range_of("row", first_row, last_row, s.rows),
                                  range_of("key", first_key, last_key, s.keys)};
  if (!all.front().empty()) all.front() += " of the group";
  std::erase(all, "");
  return fmt::format("{}", fmt::join(all, ", "));
}

GradientRegion wrong_region(const EvidenceGroup& group, const AttentionShape& s,
                            std::span<const Eigen::VectorXd> typical) {
  GradientRegion x{s.group(), -1, s.rows, -1, s.keys, -1, {}};
  const auto extend = [](Index& first, Index& last, Index at) {
    first = std::min(first, at);
    last = std::max(last, at);
  };
  for (std::size_t n = 0; n < 3; ++n) {
    const GradientRows& g = group.gradients[n];
    const double limit = gradient_leeway * row_limit_of(g.dtype, g.exact.cols());
    for (Index r = 0; r < g.exact.rows(); ++r) {
      const double error = g.error.row(r).norm() / std::sqrt(static_cast<double>(g.error.cols()));
      if (error <= limit * typical[n](r)) continue;
      x.wrong[n] = true;
      if (n > 0) {
        extend(x.first_key, x.last_key, r);
        continue;
      }
      extend(x.first_head, x.last_head, r / s.rows);
      extend(x.first_row, x.last_row, r % s.rows);
    }
  }
  if (x.last_row < 0)
    x.first_head = x.first_row = 0, x.last_head = s.group() - 1, x.last_row = s.rows - 1;
  if (x.last_key < 0) x.first_key = 0, x.last_key = s.keys - 1;
  return x;
}

std::vector<GradientSuspicion> gradient_suspicions_of(const EvidenceGroup& group,
                                                      const AttentionShape& s,
                                                      const GroupSums& right,
                                                      std::span<const GradientTerms> terms) {
  return Written(group, right, s, terms).all();
}

std::span<const std::string_view> gradient_suspicion_names() { return names; }

}  // namespace assay
