#include "oracle/weight_map.h"

#include <Eigen/QR>

#include <algorithm>
#include <cmath>

#include "oracle/evidence.h"
#include "oracle/evidence_rows.h"
#include "oracle/weigh.h"

namespace assay {
namespace {

// About as many products of numbers as the search may take.
constexpr double search_budget = 0x1p29;
// With fewer columns, the values of different keys are too much alike.
constexpr Index least_columns = 8;
// A row is explained if no more than this part of its error is left.
constexpr double largest_rest = 0.1;
// A smaller change of a weight is rounding.
constexpr double least_share = 0.02;

// At most this part of a row's weight is assumed to be missing. If nearly all of it were missing,
// the rest could explain any error.
constexpr double largest_mass = 0.75;

// What is known of the keys of a row.
struct RowKeys {
  Index key0 = 0;
  RowMajor directions;         // p (O' - v), keys x Dv
  std::vector<double> weight;  // p, also of hidden keys
  std::vector<char> visible;
};

// Keys whose weights change by the same share: one key, or a tile of them.
struct Part {
  Index begin = 0, end = 0;
  bool hidden = false;  // keys that the row must not see
  double mass = 0;      // their weights
};

// Let x be the share that is missing of each weight. Then the candidate's output is
// O' = sum p (1 - x) v / sum p (1 - x), and its error O' - O = sum x p (O' - v) is linear in x.
// A few x are not 0. They are found one after the other: each step takes the part of keys whose
// direction explains most of the remaining error, and fits the shares of all chosen parts again.
class RowSearch {
 public:
  RowSearch(const RowKeys& keys, const Eigen::VectorXd& error, double tolerance)
      : keys_(keys), error_(error), tolerance_(tolerance) {
    const Index n = keys.directions.rows();
    for (Index j = 0; j < n; ++j)
      add({j, j + 1, !keys.visible[usize(j)], keys.weight[usize(j)]}, keys.directions.row(j));
    for (Index width = 16; width <= 512 && width < n; width *= 2)
      for (const bool hidden : {false, true}) add_tiles(width, hidden);
  }

  // The shares of all keys; empty if they do not explain the error.
  std::vector<double> search() {
    std::vector<double> shares(usize(keys_.directions.rows()), 0);
    if (error_.norm() <= tolerance_) return shares;
    Eigen::VectorXd rest = error_;
    const Index most = std::clamp<Index>(error_.size() / 16, 1, 8);
    const double enough = std::max(tolerance_, largest_rest * error_.norm());
    while (std::ssize(chosen_) < most && rest.norm() > enough)
      if (!choose(rest)) break;
    if (rest.norm() > enough) return {};
    for (std::size_t k = 0; k < chosen_.size(); ++k) {
      const Part& part = parts_[usize(chosen_[k])];
      for (Index j = part.begin; j < part.end; ++j)
        if (holds(part, j)) shares[usize(j)] += fitted_(static_cast<Index>(k));
    }
    return shares;
  }

 private:
  void add(const Part& part, const Eigen::RowVectorXd& direction) {
    if (part.mass <= 0 || (!part.hidden && part.mass > largest_mass)) return;
    parts_.push_back(part);
    sums_.push_back(direction.transpose());
  }

  bool holds(const Part& part, Index j) const {
    return (keys_.visible[usize(j)] == 0) == part.hidden;
  }

  // Tiles begin at multiples of their width.
  void add_tiles(Index width, bool hidden) {
    const Index n = keys_.directions.rows();
    for (Index begin = -(keys_.key0 % width); begin < n; begin += width) {
      Part part{std::max<Index>(begin, 0), std::min(begin + width, n), hidden, 0};
      Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(error_.size());
      for (Index j = part.begin; j < part.end; ++j)
        if (holds(part, j)) sum += keys_.directions.row(j), part.mass += keys_.weight[usize(j)];
      add(part, sum);
    }
  }

  // The weight of a visible key can be missing or count twice. A hidden key can have its weight.
  bool is_possible(const Part& part, double share) const {
    return part.hidden ? share < 0 && share >= -2 : std::fabs(share) <= 2;
  }

  // Takes the part that explains most of the rest; false if there is none.
  bool choose(Eigen::VectorXd& rest) {
    Index best = -1;
    double most = 0;
    for (std::size_t k = 0; k < parts_.size(); ++k) {
      const double square = sums_[k].squaredNorm();
      if (!(square > 0) || !std::isfinite(square)) continue;
      const double product = sums_[k].dot(rest), explained = product * product / square;
      if (explained > most && is_possible(parts_[k], product / square))
        best = static_cast<Index>(k), most = explained;
    }
    if (best < 0 || std::ranges::find(chosen_, best) != chosen_.end()) return false;
    chosen_.push_back(best);
    Eigen::MatrixXd all(error_.size(), std::ssize(chosen_));
    for (std::size_t k = 0; k < chosen_.size(); ++k)
      all.col(static_cast<Index>(k)) = sums_[usize(chosen_[k])];
    const Eigen::VectorXd fitted = all.colPivHouseholderQr().solve(error_);
    double missing = 0;
    bool possible = true;
    for (std::size_t k = 0; k < chosen_.size(); ++k) {
      const Part& part = parts_[usize(chosen_[k])];
      const double share = fitted(static_cast<Index>(k));
      possible = possible && is_possible(part, share);
      missing += part.mass * share;
    }
    if (!possible || missing > largest_mass) return chosen_.pop_back(), false;
    fitted_ = fitted;
    rest = error_ - all * fitted_;
    return true;
  }

  const RowKeys& keys_;
  const Eigen::VectorXd& error_;
  const double tolerance_;
  std::vector<Part> parts_;
  std::vector<Eigen::VectorXd> sums_;
  std::vector<Index> chosen_;
  Eigen::VectorXd fitted_;
};

// What the rows of one head are searched with.
class HeadSearch {
 public:
  HeadSearch(const Attention& problem, const AttentionOutput& out, const EvidenceRows& rows)
      : p_(problem), out_(out), rows_(rows), head_(rows.heads.front()) {}

  Index keys() const { return head_.block.count; }
  Index first_key() const { return head_.block.key0; }

  // The shares of the keys of row r of the block; empty if they do not explain its errors, or if
  // its outputs are not finite.
  std::vector<double> search(Index r) const {
    const Block& block = head_.block;
    const Index i = block.row(r).index, columns = rows_.exact.cols();
    Eigen::RowVectorXd got(columns);
    for (Index c = 0; c < columns; ++c) {
      got(c) = load(out_.o, out_.o.at(block.b, block.h, i, c));
      if (block.element(r, c).kind != Kind::finite) return {};
    }
    if (!got.allFinite() || block.row(r).fully_masked || keys() == 0) return {};
    const Eigen::VectorXd error = (got - rows_.exact.row(r)).transpose();
    RowKeys of{block.key0, RowMajor(keys(), columns), {}, {}};
    for (Index j = 0; j < keys(); ++j) {
      const std::size_t pair = block.pair(r, j);
      const double p = block.visible[pair] ? block.weight[pair] : hidden_weight(r, j);
      of.visible.push_back(block.visible[pair]);
      of.weight.push_back(p);
      of.directions.row(j) = p * got;
      if (keeps_weight(p_, block.b, block.h, i, block.key0 + j))
        of.directions.row(j) -= p * head_.kv->values.row(block.key0 + j).leftCols(columns);
    }
    const double largest = rows_.exact.row(r).cwiseAbs().maxCoeff();
    const double tolerance = row_limit_of(rows_.out_dtype, columns) *
                             floor_of_row(rows_.out_dtype, largest) *
                             std::sqrt(static_cast<double>(columns));
    return RowSearch(of, error, tolerance).search();
  }

 private:
  // The weight that a hidden key would have beside the visible ones; 0 where a bias is added.
  double hidden_weight(Index r, Index j) const {
    const Block& block = head_.block;
    if (p_.bias || !p_.alibi_slopes.empty() || block.row(r).lse.kind != Kind::finite) return 0;
    std::vector<double> q;
    load_row(p_.q, block.b, block.h, block.row(r).index, q);
    double score = 0;
    for (std::size_t d = 0; d < q.size(); ++d)
      score += q[d] * head_.kv->keys_transposed(static_cast<Index>(d), block.key0 + j);
    score *= static_cast<double>(p_.scale);
    if (const auto cap = static_cast<double>(p_.softcap); cap > 0)
      score = cap * std::tanh(score / cap);
    const double weight = std::exp(score - block.row(r).lse.value);
    return std::isfinite(weight) ? weight : 0;
  }

  const Attention& p_;
  const AttentionOutput& out_;
  const EvidenceRows& rows_;
  const EvidenceHead& head_;
};

// The row of O that is furthest from what is right.
std::optional<SuspectRow> worst_row(const Verdict& failed) {
  if (failed.by_evidence) {
    const auto found = failed.evidence.rows.find(Output::o);
    if (found == failed.evidence.rows.end()) return std::nullopt;
    return SuspectRow{found->second.b, found->second.h, found->second.row};
  }
  if (failed.outside > 0 && failed.first_failure.output == Output::o)
    return SuspectRow{failed.first_failure.b, failed.first_failure.h, failed.first_failure.row};
  const auto found = failed.outputs.find(Output::o);
  if (found == failed.outputs.end()) return std::nullopt;
  const Element& worst = found->second.worst;
  return SuspectRow{worst.b, worst.h, worst.row};
}

Index steps(Index extent, Index most) { return std::max<Index>(1, (extent + most - 1) / most); }

}  // namespace

std::optional<WeightMap> map_weights(const ProjectedAttention& problem, const AttentionOutput& out,
                                     const Contract& contract, const Verdict& failed,
                                     Index most_cells, int threads) {
  const AttentionShape& s = problem.shape;
  const std::optional<SuspectRow> worst = worst_row(failed);
  if (!worst || problem.projection || s.value_dim < least_columns || s.keys == 0 || s.rows == 0)
    return std::nullopt;
  const auto row_cost = static_cast<double>(s.keys * (s.value_dim + s.dim)) * 8;
  const Index most_rows =
      std::clamp<Index>(static_cast<Index>(search_budget / row_cost), 1, most_cells);
  WeightMap map{
      worst->b, worst->h, s.rows, s.keys, steps(s.rows, most_rows), steps(s.keys, most_cells), {}};
  std::set<Index> chosen;
  for (Index i = 0; i < s.rows; i += map.row_step)
    chosen.insert(worst->row / map.row_step == i / map.row_step ? worst->row : i);
  const EvidenceRows rows = evaluate_rows(
      problem, {{{map.b, map.h}, chosen}}, out.o.dtype, contract, threads,
      [&](const Reference& reference, Index b, Index h) {
        return std::shared_ptr<const KeyValues>(reference.load_head(b, h / s.group()));
      });
  const HeadSearch head(problem, out, rows);
  bool any = false;
  for (const Index i : chosen) {
    WeightMap::Row& row = map.sampled.emplace_back();
    row.index = i;
    const std::vector<double> shares = head.search(std::ssize(map.sampled) - 1);
    row.explained = !shares.empty();
    if (shares.empty()) continue;
    row.shares.assign(usize((s.keys + map.key_step - 1) / map.key_step), 0);
    for (Index j = 0; j < head.keys(); ++j) {
      double& cell = row.shares[usize((head.first_key() + j) / map.key_step)];
      const double share = shares[usize(j)];
      if (std::fabs(share) < least_share) continue;
      any = true;
      if (std::fabs(share) > std::fabs(cell)) cell = share;
    }
  }
  if (!any) return std::nullopt;
  return map;
}

}  // namespace assay
