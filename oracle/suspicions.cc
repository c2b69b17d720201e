#include "oracle/suspicions.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// Roundings to 16 bits move a mean by half an ulp of bf16 at most, those to 8 bits a row by half an
// ulp of E4M3: less is no factor. Few columns would follow any factor.
constexpr double least_factor = 0x1p-9, least_factor_of_row = 0x1p-4;
constexpr Index fewest_columns = 8;
// Factors are read from so many rows, and lanes from so many products of numbers.
constexpr std::size_t most_rows = 16;
constexpr double lane_budget = 0x1p27;

constexpr std::string_view names[] = {"output-factor",
                                      "output-columns-factor",
                                      "output-columns-zero",
                                      "output-halves-exchanged",
                                      "output-columns-misplaced",
                                      "output-rows-misplaced",
                                      "scale-factor",
                                      "lanes-left-out",
                                      "key-left-out",
                                      "key-twice",
                                      "keys-misweighted",
                                      "values-misweighted",
                                      "rows-of-v-exchanged",
                                      "lane-left-out",
                                      "lane-twice",
                                      "lane-negated",
                                      "lanes-exchanged"};

Suspicion of_output(std::string_view name, std::string words,
                    std::function<void(const RowPlace&, Eigen::Ref<Eigen::RowVectorXd>)> change) {
  return {name, std::move(words), [change = std::move(change)](Alteration& a) {
            a.of_lse = false;
            a.change = [change](const RowPlace& at, bool, Eigen::Ref<Eigen::RowVectorXd> o,
                                double&) { change(at, o); };
            return true;
          }};
}

// The factors with the least squares of errors: one of all rows, and one of each row.
void suspect_factors(const ComparedRows& x, std::vector<Suspicion>& all) {
  const double factor = x.got.cwiseProduct(x.exact).sum() / x.exact.squaredNorm();
  if (std::isfinite(factor) && std::fabs(factor - 1) > least_factor)
    all.push_back(
        of_output("output-factor", fmt::format("O is {:.4g} times what it should be", factor),
                  [=](const RowPlace&, Eigen::Ref<Eigen::RowVectorXd> o) { o *= factor; }));
  std::map<RowPlace, double> own;
  double low = inf, high = -inf, furthest = 0;
  for (Index r = 0; r < x.got.rows(); ++r) {
    const double of_row = x.got.row(r).dot(x.exact.row(r)) / x.exact.row(r).squaredNorm();
    if (!(std::fabs(of_row - 1) > least_factor) || !std::isfinite(of_row)) continue;
    own[x.places[usize(r)]] = of_row;
    low = std::min(low, of_row);
    high = std::max(high, of_row);
    furthest = std::max(furthest, std::fabs(of_row - 1));
  }
  if (!(furthest > least_factor_of_row) || x.got.cols() < fewest_columns) return;
  const bool zero = std::max(std::fabs(low), std::fabs(high)) < least_factor;
  all.push_back(of_output(
      "output-factor",
      zero ? "O of the wrong rows is 0"
           : fmt::format("wrong rows of O are right but for a factor of their own, from {:.3g} to "
                         "{:.3g}",
                         low, high),
      [own = std::move(own)](const RowPlace& at, Eigen::Ref<Eigen::RowVectorXd> o) {
        if (const auto found = own.find(at); found != own.end()) o *= found->second;
      }));
}

void suspect_columns(const ComparedRows& x, std::vector<Suspicion>& all) {
  const Misplaced m = misplaced_columns(x.got, x.exact);
  if (m.wrong.empty()) return;
  const Index columns = x.got.cols();
  if (m.all_found) {
    bool halves = columns % 2 == 0;
    for (Index c = 0; c < columns; ++c)
      halves = halves && m.from[usize(c)] == (c + columns / 2) % columns;
    all.push_back(of_output(
        halves ? "output-halves-exchanged" : "output-columns-misplaced",
        halves ? "the halves of the columns of O are exchanged" : words_of(m, "column", "O"),
        [m](const RowPlace&, Eigen::Ref<Eigen::RowVectorXd> o) {
          const Eigen::RowVectorXd before = o;
          for (Index c = 0; c < o.size(); ++c) o(c) = before(m.from[usize(c)]);
        }));
  }
  double low = inf, high = -inf;
  for (const Index c : m.wrong) {
    low = std::min(low, m.factor[usize(c)]);
    high = std::max(high, m.factor[usize(c)]);
  }
  if (std::ssize(m.wrong) == columns || !std::isfinite(high - low)) return;
  const bool zero = std::max(std::fabs(low), std::fabs(high)) < least_factor;
  const bool tail = m.wrong.front() == columns - std::ssize(m.wrong);
  const std::string which = list_of("column", m.wrong);
  std::string words;
  if (zero)
    words = tail ? fmt::format("O of column {} and on is 0", m.wrong.front())
                 : fmt::format("O is 0 in {}", which);
  else if (high - low < least_factor)
    words = fmt::format("O is {:.4g} times what it should be in {}", (low + high) / 2, which);
  else words = fmt::format("O is {:.3g} to {:.3g} times what it should be in {}", low, high, which);
  std::map<Index, double> factor;
  for (const Index c : m.wrong)
    factor[c] = zero ? 0 : high - low < least_factor ? (low + high) / 2 : m.factor[usize(c)];
  all.push_back(
      of_output(zero ? "output-columns-zero" : "output-columns-factor", std::move(words),
                [factor = std::move(factor)](const RowPlace&, Eigen::Ref<Eigen::RowVectorXd> o) {
                  for (const auto& [c, times] : factor) o(c) = times == 0 ? 0 : times * o(c);
                }));
}

// Rows of O that hold other ones, of any head that is compared; with their LSE, or without it.
void suspect_rows(const ComparedRows& x, std::vector<Suspicion>& all) {
  const Misplaced m = misplaced_columns(x.got.transpose(), x.exact.transpose());
  if (m.wrong.empty() || !m.all_found || x.got.cols() < fewest_columns) return;
  std::map<RowPlace, RowPlace> from;
  for (const Index r : m.wrong) from[x.places[usize(r)]] = x.places[usize(m.from[usize(r)])];
  const auto told = [](const RowPlace& at) {
    return fmt::format("O[b={}, h={}, row={}]", at.b, at.h, at.row);
  };
  const auto& [to, first] = *from.begin();
  std::string words = fmt::format("{} is that of {}", told(to), told(first));
  if (from.size() > 1)
    words += fmt::format(", and so on: {} rows are in wrong places", from.size());
  for (const bool with_lse : {true, false})
    all.push_back({"output-rows-misplaced", words, [=](Alteration& a) {
                     a.of_lse = with_lse;
                     a.source = [from](const RowPlace& at) {
                       const auto found = from.find(at);
                       return found == from.end() ? at : found->second;
                     };
                     return true;
                   }});
}

// A wrong row, and what is known of its keys.
struct WrongRow {
  const EvidenceHead& head;
  Index r;  // in the head
  Eigen::RowVectorXd o, error;
  const Block& block() const { return head.block; }
  double weight(Index j) const { return head.block.weight[head.block.pair(r, j)]; }
  auto value(Index j) const { return head.kv->values.row(block().key0 + j).head(o.size()); }
  bool keeps(Index j) const { return block().kept.empty() || block().kept[block().pair(r, j)]; }
};

// Those that see keys and whose errors are numbers, the furthest from typical first.
std::vector<WrongRow> wrong_rows(const ComparedRows& x) {
  std::vector<WrongRow> all;
  for (const Index at : x.failing) {
    const Index from = x.taken[usize(at)];
    if (from < 0 || all.size() == most_rows) continue;
    const Eigen::RowVectorXd o = x.exact.row(at), error = x.got.row(at) - o;
    if (!error.allFinite() || !(error.squaredNorm() > 0)) continue;
    const auto head = std::ranges::find_if(x.rows.heads, [&](const EvidenceHead& h) {
      return from >= h.first && from < h.first + h.rows();
    });
    if (head->block.count > 0) all.push_back({*head, from - head->first, o, error});
  }
  return all;
}

// Keys that a fault may treat alike.
struct KeyGroup {
  enum class Kind : std::uint8_t { single, tile, residue, tail } kind;
  Index at,
      width;  // tile `at` of `width` keys; keys that are `at` modulo `width`; keys from `at` on

  bool holds(Index key) const {
    switch (kind) {
      case Kind::single: return key == at;
      case Kind::tile: return key / width == at;
      case Kind::residue: return key % width == at;
      case Kind::tail: return key >= at;
    }
    return false;
  }
  std::string words(Index keys) const {
    switch (kind) {
      case Kind::single: return fmt::format("key {}", at);
      case Kind::tile:
        return fmt::format("keys {} to {}", at * width, std::min((at + 1) * width, keys) - 1);
      case Kind::residue: return fmt::format("every key {} modulo {}", at, width);
      case Kind::tail: return fmt::format("keys from {} on", at);
    }
    return {};
  }
};

std::vector<KeyGroup> key_groups(Index keys) {
  using enum KeyGroup::Kind;
  std::vector<KeyGroup> all;
  for (Index j = 0; j < keys; ++j) all.push_back({single, j, 1});
  for (Index width = 2; width <= 512 && width < keys; width *= 2) {
    for (Index t = 0; t * width < keys; ++t) all.push_back({tile, t, width});
    if (width > 128) continue;
    for (Index r = 0; r < width; ++r) all.push_back({residue, r, width});
  }
  for (Index j = 1; j < keys; ++j) all.push_back({tail, j, 0});
  return all;
}

// What a row would lose without the keys of a group: their weights, and sum p v.
struct Part {
  double mass = 0;
  Eigen::RowVectorXd values;
};

// The sums of all groups of a row, each in time proportional to its columns.
class PartsOfRow {
 public:
  explicit PartsOfRow(const WrongRow& row)
      : key0_(row.block().key0), count_(row.block().count), columns_(row.o.size()) {
    mass_ = Eigen::VectorXd::Zero(count_ + 1);
    values_ = RowMajor::Zero(count_ + 1, columns_);
    for (Index j = 0; j < count_; ++j) {
      const double p = row.weight(j);
      mass_(j + 1) = mass_(j) + p;
      values_.row(j + 1) = values_.row(j);
      if (row.keeps(j)) values_.row(j + 1) += p * row.value(j);
    }
  }

  Part of(const KeyGroup& g) const {
    switch (g.kind) {
      case KeyGroup::Kind::single: return between(g.at, g.at + 1);
      case KeyGroup::Kind::tile: return between(g.at * g.width, (g.at + 1) * g.width);
      case KeyGroup::Kind::tail: return between(g.at, key0_ + count_);
      case KeyGroup::Kind::residue: break;
    }
    Part all{0, Eigen::RowVectorXd::Zero(columns_)};
    const Index before = key0_ / g.width * g.width + g.at;
    for (Index j = before < key0_ ? before + g.width : before; j < key0_ + count_; j += g.width) {
      const Part one = between(j, j + 1);
      all.mass += one.mass;
      all.values += one.values;
    }
    return all;
  }

 private:
  Part between(Index begin, Index end) const {
    begin = std::clamp<Index>(begin - key0_, 0, count_);
    end = std::clamp<Index>(end - key0_, begin, count_);
    return {mass_(end) - mass_(begin), values_.row(end) - values_.row(begin)};
  }

  Index key0_, count_, columns_;
  Eigen::VectorXd mass_;  // sums over the keys before each
  RowMajor values_;
};

// One factor f of the weights of a group, in all rows.
struct Misweighted {
  KeyGroup group;
  double factor = 1;
  double rest = inf;  // the part of the squares of the errors that it leaves, a mean over the rows
};

// Weights f p of the keys of a group G, with x = f - 1, move O by
//   x (sum_G p v - P O) / (1 + x P),  P = sum_G p,
// and if only their products with V are multiplied, by x sum_G p v. A row's x follows from the
// error along that direction: a / (1 - a P), or a.
Misweighted misweighted(const KeyGroup& g, std::span<const WrongRow> rows,
                        std::span<const PartsOfRow> parts, bool values_alone) {
  Misweighted m{g};
  double sum = 0, weights = 0;
  std::vector<std::pair<Eigen::RowVectorXd, double>> steps;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const Part part = parts[k].of(g);
    const Eigen::RowVectorXd step =
        values_alone ? part.values : Eigen::RowVectorXd(part.values - part.mass * rows[k].o);
    const double square = step.squaredNorm(), of_error = rows[k].error.squaredNorm();
    steps.emplace_back(step, part.mass);
    if (!(square > 0)) return m;
    const double a = rows[k].error.dot(step) / square;
    const double x = values_alone ? a : a / (1 - a * part.mass);
    if (!std::isfinite(x)) return m;
    sum += x * square / of_error;
    weights += square / of_error;
  }
  const double x = sum / weights;
  m.factor = 1 + x;
  m.rest = 0;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const double moved = values_alone ? x : x / (1 + x * steps[k].second);
    m.rest += (rows[k].error - moved * steps[k].first).squaredNorm() / rows[k].error.squaredNorm();
  }
  m.rest /= static_cast<double>(rows.size());
  return m;
}

bool weigh_keys(Alteration& a, const KeyGroup& g, double factor) {
  const double bias = factor > 0 ? std::log(factor) : -inf;
  return add_to_scores(a, [=](Index j) { return g.holds(j) ? bias : 0; });
}
bool weigh_values(Alteration& a, const KeyGroup& g, double factor) {
  TensorView& v = a.problem.v;
  const TensorView from = v;
  return !a.problem.projection &&
         replace(a, v, from.shape, [&](Index b, Index h, Index j, Index c) {
           const double x = load(from, from.at(b, h, j, c));
           return !g.holds(j) ? x : factor == 0 ? 0 : factor * x;
         });
}

// For each kind of group, the one whose factor leaves the least of the errors.
void suspect_keys(const ProjectedAttention& p, std::span<const WrongRow> rows,
                  std::vector<Suspicion>& all) {
  constexpr double most_left = 0.1;
  // A factor that is as near as this to 0 or 2 is that.
  constexpr double nearest = 0x1p-5;
  const std::vector<PartsOfRow> parts(rows.begin(), rows.end());
  const std::vector<KeyGroup> groups = key_groups(p.shape.keys);
  for (const bool values_alone : {false, true}) {
    std::map<KeyGroup::Kind, Misweighted> best;
    for (const KeyGroup& g : groups) {
      const Misweighted m = misweighted(g, rows, parts, values_alone);
      const auto [at, first] = best.try_emplace(g.kind, m);
      if (!first && m.rest < at->second.rest) at->second = m;
    }
    for (auto& [kind, m] : best) {
      if (!(m.rest < most_left)) continue;
      for (const double whole : {0.0, 2.0})
        if (std::fabs(m.factor - whole) < nearest) m.factor = whole;
      if (m.factor < 0 && !values_alone) continue;
      const bool single = kind == KeyGroup::Kind::single && !values_alone;
      const std::string keys = m.group.words(p.shape.keys);
      const std::string_view are = kind == KeyGroup::Kind::single ? "is" : "are";
      const auto alter = [g = m.group, factor = m.factor, values_alone](Alteration& a) {
        return values_alone ? weigh_values(a, g, factor) : weigh_keys(a, g, factor);
      };
      if (single && m.factor == 0) all.push_back({"key-left-out", keys + " is left out", alter});
      else if (single && m.factor == 2)
        all.push_back({"key-twice", keys + " is counted twice", alter});
      else if (values_alone)
        all.push_back({"values-misweighted",
                       m.factor == 0
                           ? fmt::format("V of {} is left out of P V", keys)
                           : fmt::format("V of {} is multiplied by {:.3g}", keys, m.factor),
                       alter});
      else
        all.push_back({"keys-misweighted",
                       m.factor == 0
                           ? fmt::format("{} {} left out", keys, are)
                           : fmt::format("weights of {} are multiplied by {:.3g}", keys, m.factor),
                       alter});
    }
  }
}

// Two rows v_j and v_k of V that change places move each O by (p_k - p_j) (v_j - v_k): all errors
// of a kv head lie along one direction, which is found by a few steps of the power method.
void suspect_exchanged_values(const ProjectedAttention& p, std::span<const WrongRow> rows,
                              std::vector<Suspicion>& all) {
  constexpr int steps = 30;
  constexpr double least_along = 0.9, least_cosine = 0.98;
  constexpr Index most_keys = 4096;
  const Block& first = rows.front().block();
  const Index g = first.h / p.shape.group();
  RowMajor errors(0, rows.front().o.size());
  std::set<Index> seen;
  for (const WrongRow& row : rows) {
    if (row.block().b != first.b || row.block().h / p.shape.group() != g) continue;
    errors.conservativeResize(errors.rows() + 1, Eigen::NoChange);
    errors.bottomRows(1) = row.error;
    for (Index j = 0; j < row.block().count; ++j)
      if (row.weight(j) > 0) seen.insert(row.block().key0 + j);
  }
  if (std::ssize(seen) > most_keys || errors.cols() < fewest_columns) return;
  Eigen::RowVectorXd along = errors.row(0).normalized();
  for (int k = 0; k < steps; ++k)
    along = ((errors * along.transpose()).transpose() * errors).normalized();
  if (!((errors * along.transpose()).squaredNorm() >= least_along * errors.squaredNorm())) return;
  const std::vector<Index> keys(seen.begin(), seen.end());
  RowMajor v(std::ssize(keys), along.size());
  for (std::size_t k = 0; k < keys.size(); ++k)
    v.row(static_cast<Index>(k)) = rows.front().head.kv->values.row(keys[k]).head(along.size());
  const Eigen::VectorXd projected = v * along.transpose(), norm = v.rowwise().squaredNorm();
  const RowMajor gram = v * v.transpose();
  double most = least_cosine * least_cosine;
  std::optional<std::pair<Index, Index>> pair;
  for (Index j = 0; j < v.rows(); ++j)
    for (Index k = 0; k < j; ++k) {
      const double moved = projected(j) - projected(k);
      const double cosine = moved * moved / (norm(j) + norm(k) - 2 * gram(j, k));
      if (cosine > most) most = cosine, pair = {keys[usize(k)], keys[usize(j)]};
    }
  if (!pair) return;
  for (const bool everywhere : {true, false})
    all.push_back(
        {"rows-of-v-exchanged",
         fmt::format(
             "rows {} and {} of V, or of K, are exchanged{}", pair->first, pair->second,
             everywhere ? "" : fmt::format(" in kv head {} of batch element {}", g, first.b)),
         [=, two = *pair, batch = first.b](Alteration& a) {
           TensorView& t = a.problem.v;
           const TensorView from = t;
           return !a.problem.projection &&
                  replace(a, t, from.shape, [&](Index b, Index h, Index j, Index c) {
                    const bool here = everywhere || (b == batch && h == g);
                    const Index other = !here             ? j
                                        : j == two.first  ? two.second
                                        : j == two.second ? two.first
                                                          : j;
                    return load(from, from.at(b, h, other, c));
                  });
         }});
}

// All scores are multiplied by a factor: the one of a fine grid, and then of a finer one around it,
// under which the errors of the row that is furthest from typical are least.
void suspect_scale(const ProjectedAttention& p, const WrongRow& row, std::vector<Suspicion>& all) {
  if (p.softcap > 0 || p.bias || !p.alibi_slopes.empty() || !p.sink.empty() || p.projection) return;
  const Block& k = row.block();
  Eigen::ArrayXd score = Eigen::ArrayXd::Constant(k.count, -inf);
  RowMajor values = RowMajor::Zero(k.count, row.o.size());
  for (Index j = 0; j < k.count; ++j) {
    const std::size_t at = k.pair(row.r, j);
    if (k.visible[at]) score(j) = static_cast<double>(p.scale) * k.dot[at];
    if (row.keeps(j)) values.row(j) = row.value(j);
  }
  const Eigen::RowVectorXd got = row.o + row.error;
  const auto error = [&](double factor) {
    Eigen::ArrayXd s = (score == -inf).select(-inf, factor * score);
    s = (s - s.maxCoeff()).exp();
    return (s.matrix().transpose() * values / s.sum() - got).squaredNorm();
  };
  double best = 1;
  const auto search = [&](double from, double step, int steps) {
    for (int n = -steps; n <= steps; ++n)
      for (const double sign : {1.0, -1.0})
        if (const double f = sign * from * std::exp(step * n); error(f) < error(best)) best = f;
  };
  search(1, 0x1p-5, 320);
  for (double step = 0x1p-9; step > 0x1p-40; step /= 16) search(std::fabs(best), step, 16);
  if (!(error(best) < 0x1p-10 * row.error.squaredNorm())) return;
  all.push_back({"scale-factor",
                 fmt::format("scores are multiplied by {:.3g} times the scale", best),
                 [best](Alteration& a) {
                   a.problem.scale *= static_cast<float>(best);
                   return true;
                 }});
}

// If lane d counts f times in q.k, scores move by (f - 1) scale q_d k_jd, and O by that times
// A e_d q_d, A = sum_j p_j (v_j - O) k_j^T, to first order. If lanes d and e of K change places, by
// -(q_d - q_e) A (e_d - e_e).
void suspect_lanes(const ProjectedAttention& p, std::span<const WrongRow> rows,
                   std::vector<Suspicion>& all) {
  const Index dim = p.shape.dim;
  if (p.projection || dim < 2) return;
  const double each = static_cast<double>(p.shape.keys * (dim + p.shape.value_dim) * dim);
  const auto count = std::min(rows.size(), usize(static_cast<Index>(lane_budget / each)));
  // The squares and products of errors and first-order steps, of each lane and of each pair.
  Eigen::VectorXd along = Eigen::VectorXd::Zero(dim), square = along;
  Eigen::VectorXd tail_along = along, tail_square = along;  // of all lanes from one on
  Eigen::MatrixXd pair_along = Eigen::MatrixXd::Zero(dim, dim), pair_square = pair_along;
  const auto scale = static_cast<double>(p.scale);
  for (const WrongRow& row : rows.first(count)) {
    const Block& k = row.block();
    const auto keys = row.head.kv->keys_transposed.block(0, k.key0, dim, k.count);
    RowMajor moved(k.count, row.o.size());
    for (Index j = 0; j < k.count; ++j) moved.row(j) = row.weight(j) * (row.value(j) - row.o);
    const RowMajor a = scale * (keys * moved);  // row d is A e_d
    const Eigen::VectorXd of_error = a * row.error.transpose() / row.error.norm();
    const Eigen::MatrixXd gram = a * a.transpose();
    const Index i = k.row(row.r).index;
    Eigen::VectorXd q(dim);
    for (Index d = 0; d < dim; ++d) q(d) = load(p.q, p.q.at(k.b, k.h, i, d));
    along += of_error.cwiseProduct(q);
    square += gram.diagonal().cwiseProduct(q.cwiseAbs2());
    Eigen::RowVectorXd tail = Eigen::RowVectorXd::Zero(row.o.size());
    double of_tail = 0;
    for (Index d = dim; d-- > 0;) {
      tail += q(d) * a.row(d);
      of_tail += q(d) * of_error(d);
      tail_along(d) += of_tail;
      tail_square(d) += tail.squaredNorm();
    }
    for (Index d = 0; d < dim; ++d)
      for (Index e = 0; e < d; ++e) {
        const double by = q(e) - q(d);
        pair_along(d, e) += by * (of_error(d) - of_error(e));
        pair_square(d, e) += by * by * (gram(d, d) + gram(e, e) - 2 * gram(d, e));
      }
  }
  const auto most_of = [](const auto& products, const auto& squares) {
    Index at = 0;
    double most = -inf;
    for (Index k = 0; k < products.size(); ++k) {
      const double x = products.data()[k], n = squares.data()[k];
      if (n > 0 && x * std::fabs(x) / n > most) most = x * std::fabs(x) / n, at = k;
    }
    return at;
  };
  const auto tell = [&](std::string_view name, std::string words, auto element) {
    all.push_back({name, std::move(words), [element](Alteration& a) {
                     TensorView& q = a.problem.q;
                     const TensorView from = q;
                     return replace(a, q, from.shape, [&](Index b, Index h, Index i, Index d) {
                       return element(from, b, h, i, d);
                     });
                   }});
  };
  const auto times = [](Index lane, double factor) {
    return [=](const TensorView& q, Index b, Index h, Index i, Index d) {
      return d == lane ? factor * load(q, q.at(b, h, i, d)) : load(q, q.at(b, h, i, d));
    };
  };
  const Index twice = most_of(along, square), less = most_of(Eigen::VectorXd(-along), square);
  tell("lane-left-out", fmt::format("column {} of Q and K is left out of q.k", less),
       times(less, 0));
  tell("lane-negated", fmt::format("column {} of Q or K has the wrong sign", less),
       times(less, -1));
  tell("lane-twice", fmt::format("column {} of Q and K counts twice in q.k", twice),
       times(twice, 2));
  const Index first = most_of(Eigen::VectorXd(-tail_along), tail_square);
  if (first > 0 && first < dim - 1)
    tell("lanes-left-out", fmt::format("columns of Q and K from {} on are left out of q.k", first),
         [first](const TensorView& q, Index b, Index h, Index i, Index d) {
           return d >= first ? 0 : load(q, q.at(b, h, i, d));
         });
  const Index pair = most_of(pair_along, pair_square), d = pair % dim, e = pair / dim;
  if (d != e)
    tell("lanes-exchanged", fmt::format("columns {} and {} of Q, or of K, are exchanged", e, d),
         [=](const TensorView& q, Index b, Index h, Index i, Index column) {
           return load(q, q.at(b, h, i, column == d ? e : column == e ? d : column));
         });
}

// The numbers of one axis of the places.
template <class Axis>
std::set<Index> numbers_of(std::span<const RowPlace> places, const Axis& axis) {
  std::set<Index> all;
  for (const RowPlace& at : places) all.insert(axis(at));
  return all;
}

std::string words_of_numbers(std::string_view noun, std::string_view nouns,
                             const std::set<Index>& wrong, const std::set<Index>& spared) {
  if (wrong.size() == 1) return fmt::format("in {} {}", noun, *wrong.begin());
  if (*wrong.begin() > *spared.rbegin())
    return fmt::format("in {} {} and on", nouns, *wrong.begin());
  if (*wrong.rbegin() < *spared.begin())
    return fmt::format("in {} up to {}", nouns, *wrong.rbegin());
  const auto all_are = [](const std::set<Index>& of, Index parity) {
    return std::ranges::all_of(of, [=](Index n) { return n % 2 == parity; });
  };
  for (const Index parity : {0, 1})
    if (all_are(wrong, parity) && all_are(spared, 1 - parity))
      return fmt::format("in {} {}", parity == 0 ? "even" : "odd", nouns);
  constexpr std::size_t most_listed = 4;
  if (wrong.size() <= most_listed) return fmt::format("in {} {}", nouns, fmt::join(wrong, ", "));
  const bool in_one_piece = std::ranges::none_of(
      spared, [&](Index n) { return n > *wrong.begin() && n < *wrong.rbegin(); });
  if (in_one_piece) return fmt::format("in {} {} to {}", nouns, *wrong.begin(), *wrong.rbegin());
  return {};
}

}  // namespace

std::string region_of(std::span<const RowPlace> wrong, std::span<const RowPlace> spared) {
  const auto of_axis = [&](std::string_view noun, std::string_view nouns, const auto& axis) {
    const std::set<Index> in = numbers_of(wrong, axis), out = numbers_of(spared, axis);
    const bool apart =
        std::ranges::none_of(in, [&](Index n) { return out.contains(n); }) && !out.empty();
    return apart ? words_of_numbers(noun, nouns, in, out) : std::string();
  };
  for (const std::string& words :
       {of_axis("batch element", "batch elements", [](const RowPlace& at) { return at.b; }),
        of_axis("head", "heads", [](const RowPlace& at) { return at.h; }),
        of_axis("row", "rows", [](const RowPlace& at) { return at.row; })})
    if (!words.empty()) return words;
  return fmt::format("in {} of {} rows", wrong.size(), wrong.size() + spared.size());
}

std::string list_of(std::string_view noun, std::span<const Index> numbers) {
  const std::size_t count = numbers.size();
  if (count == 1) return fmt::format("{} {}", noun, numbers.front());
  const bool in_a_row = numbers.back() - numbers.front() + 1 == static_cast<Index>(count) &&
                        std::ranges::is_sorted(numbers);
  if (in_a_row && count > 2)
    return fmt::format("{}s {} to {}", noun, numbers.front(), numbers.back());
  constexpr std::size_t most_listed = 4;
  if (count > most_listed)
    return fmt::format("{}s {} and {} others", noun,
                       fmt::join(numbers.first(most_listed - 1), ", "), count - most_listed + 1);
  return fmt::format("{}s {} and {}", noun, fmt::join(numbers.first(count - 1), ", "),
                     numbers.back());
}

Misplaced misplaced_columns(const RowMajor& got, const RowMajor& exact) {
  // Wrong is what is further from right than a rounding to bf16; a column is that of another place
  // if it is much nearer to that one.
  constexpr double least_error = 0x1p-8, nearer = 0x1p-3;
  Misplaced m;
  if (!got.allFinite() || !exact.allFinite()) return m;
  const Index columns = got.cols();
  m.from.resize(usize(columns));
  m.factor.assign(usize(columns), 1);
  m.all_found = true;
  for (Index c = 0; c < columns; ++c) {
    m.from[usize(c)] = c;
    const double error = (got.col(c) - exact.col(c)).norm();
    if (!(error > least_error * exact.col(c).norm())) continue;
    m.wrong.push_back(c);
    m.factor[usize(c)] = got.col(c).dot(exact.col(c)) / exact.col(c).squaredNorm();
    double least = nearer * error;
    for (Index other = 0; other < columns; ++other) {
      // Zeros are not those of another column.
      if (!(exact.col(other).squaredNorm() > 0)) continue;
      const double distance = (got.col(c) - exact.col(other)).norm();
      if (distance < least) least = distance, m.from[usize(c)] = other;
    }
    m.all_found = m.all_found && m.from[usize(c)] != c;
  }
  return m;
}

std::string words_of(const Misplaced& m, std::string_view noun, std::string_view output) {
  std::vector<Index> from;
  for (const Index c : m.wrong) from.push_back(m.from[usize(c)]);
  return fmt::format("{} of {} {} {}", list_of(noun, m.wrong), output,
                     m.wrong.size() == 1 ? "holds" : "hold", list_of(noun, from));
}

std::vector<Suspicion> suspicions_of(const ProjectedAttention& problem, const ComparedRows& x) {
  std::vector<Suspicion> all;
  suspect_factors(x, all);
  suspect_columns(x, all);
  suspect_rows(x, all);
  const std::vector<WrongRow> rows = wrong_rows(x);
  if (rows.empty()) return all;
  suspect_scale(problem, rows.front(), all);
  suspect_keys(problem, rows, all);
  suspect_exchanged_values(problem, rows, all);
  suspect_lanes(problem, rows, all);
  return all;
}

std::span<const std::string_view> suspicion_names() { return names; }

}  // namespace assay
