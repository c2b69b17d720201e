#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "oracle/backward.h"
#include "oracle/evidence_gradients.h"
#include "oracle/shares.h"
#include "oracle/stored_forward.h"
#include "oracle/weigh.h"
#include "problem/parallel.h"

namespace assay {
namespace {

// The groups that are asked: the one of the worst element, and others at even distances.
std::vector<std::pair<Index, Index>> choose_groups(const AttentionShape& s, const Verdict& v,
                                                   double budget) {
  const Index groups = s.batch * s.kv_heads;
  const double pairs = static_cast<double>(s.group() * s.rows * s.keys);
  const Index count = std::clamp<Index>(static_cast<Index>(budget / std::max(pairs, 1.0)), 1,
                                        std::min<Index>(groups, 8));
  std::set<Index> chosen;
  const Element* worst = nullptr;
  for (const auto& [output, compared] : v.outputs) {
    const bool gradient = output == Output::dq || output == Output::dk || output == Output::dv;
    if (gradient && compared.worst.bound > 0 && (!worst || compared.worst.ratio > worst->ratio))
      worst = &compared.worst;
  }
  if (worst)
    chosen.insert(worst->b * s.kv_heads +
                  (worst->output == Output::dq ? worst->h / s.group() : worst->h));
  for (Index k = 0; std::ssize(chosen) < count; ++k)
    chosen.insert(k * groups / count % groups), chosen.insert(k);
  std::vector<std::pair<Index, Index>> list;
  for (Index group : chosen) list.emplace_back(group / s.kv_heads, group % s.kv_heads);
  return list;
}

RowMajorSingle single_rows(const TensorView& t, Index b, Index h) {
  RowMajorSingle m(t.shape[2], t.shape[3]);
  std::vector<double> row;
  for (Index i = 0; i < t.shape[2]; ++i) {
    load_row(t, b, h, i, row);
    for (Index d = 0; d < t.shape[3]; ++d) m(i, d) = static_cast<float>(row[usize(d)]);
  }
  return m;
}

// Sums of the sizes that the numbers of a row are made of, one after the other.
using Gauges = std::vector<Eigen::VectorXd>;

// Puts a gradient beside what is exact; `at` is the first row of this part.
void compare_gradient(const Gradient& exact, const TensorView& out, Index b, Index h, Index at,
                      const Gauges& gauges, GradientRows& rows) {
  for (Index r = 0; r < exact.rows; ++r) {
    const auto vanishes = [&](const Eigen::VectorXd& gauge) { return underflows(gauge(r)); };
    bool asked = exact.touched[usize(r)] != 0 && std::ranges::none_of(gauges, vanishes);
    for (Index d = 0; d < exact.columns; ++d) {
      const auto e = usize(r * exact.columns + d);
      const double got = load(out, out.at(b, h, r, d));
      asked =
          asked && exact.taint[e] == Taint::none && std::isfinite(got) && !exact.may_overflow[e];
      rows.exact(at + r, d) = exact.value[e];
      rows.error(at + r, d) = got - exact.value[e];
      const double bound = exact.bound[e] + half_ulp(rows.dtype, exact.value[e]);
      rows.bound(at + r) += bound * bound / static_cast<double>(exact.columns);
    }
    rows.bound(at + r) = std::sqrt(rows.bound(at + r));
    rows.asked[usize(at + r)] = asked;
  }
}

GradientRows empty_rows(Output output, const TensorView& out, Index rows) {
  GradientRows g;
  g.output = output;
  g.dtype = out.dtype;
  g.exact = g.error = RowMajor::Zero(rows, out.shape[3]);
  g.bound = Eigen::VectorXd::Zero(rows);
  g.asked.assign(usize(rows), 0);
  return g;
}

// The weight of each pair of a row and a key, times the largest |dO| of the row.
RowMajor weigh_by_gradient(const Block& block, const RowMajorSingle& d_o, Index keys) {
  RowMajor gauge = RowMajor::Zero(block.row_count(), keys);
  for (Index r = 0; r < block.row_count(); ++r) {
    const double largest = static_cast<double>(d_o.row(r).cwiseAbs().maxCoeff());
    for (Index j = 0; j < block.count; ++j)
      gauge(r, block.key0 + j) = block.weight[block.pair(r, j)] * largest;
  }
  return gauge;
}

}  // namespace

EvidenceGroup gather_group(const Attention& p, const AttentionBackwardInput& input,
                           const AttentionGradients& out, const Contract& contract, Index b,
                           Index g) {
  const AttentionShape& s = p.shape;
  EvidenceGroup group;
  group.b = b, group.g = g;
  const ProjectedAttention problem(p);
  const Reference forward(problem, contract);
  const AttentionGradients three{out.dq, out.dk, out.dv, {}, {}};
  const BackwardReference reference(p, input, three, contract);
  std::vector<Index> rows(usize(s.rows));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<Index>(i);
  SharedGradients none = reference.no_shared_gradients();
  const GroupGradients exact = reference.evaluate(b, g, rows, none, true);
  group.kv = forward.load_head(b, g);
  group.gradients.push_back(empty_rows(Output::dq, out.dq, s.group() * s.rows));
  group.gradients.push_back(empty_rows(Output::dk, out.dk, s.keys));
  group.gradients.push_back(empty_rows(Output::dv, out.dv, s.keys));
  // Of weights times |dO|, of |dS|, and of |dS| times the largest element of Q. Those of a row of
  // dQ have K in the place of Q.
  Gauges of_keys(3, Eigen::VectorXd::Zero(s.keys));
  const double largest_key =
      group.kv->keys_transposed_absolute.size() ? group.kv->keys_transposed_absolute.maxCoeff() : 0;
  for (Index k = 0; k < s.group(); ++k) {
    const Index h = g * s.group() + k;
    const Block block = forward.evaluate(*group.kv, h, rows);
    EmulatedBackward head;
    head.in = emulated_inputs(problem, *group.kv, block);
    head.o = single_rows(input.o, b, h);
    head.d_o = single_rows(input.d_o, b, h);
    head.lse.resize(input.lse ? s.rows : 0);
    head.d_lse.resize(s.rows);
    for (Index i = 0; i < s.rows; ++i)
      head.d_lse(i) = static_cast<float>(lse_gradient_of_row(input, b, h, i));
    for (Index i = 0; i < head.lse.size(); ++i)
      head.lse(i) = static_cast<float>(load(input.lse, input.lse.at(b, h, i, 0)));
    if (p.dropout > 0) head.keep_scale = 1 / (1 - p.dropout);
    const RowMajor gauge = weigh_by_gradient(block, head.d_o, s.keys);
    using Pairs = Eigen::Map<const RowMajorSingle>;
    group.score_part.push_back(
        Pairs(exact.score_part[usize(k)].data(), s.rows, s.keys).cast<double>());
    const RowMajor ds = group.score_part.back().cwiseAbs();
    const double scale = std::fabs(static_cast<double>(p.scale));
    const Eigen::VectorXd largest_query = head.in.q.cwiseAbs().rowwise().maxCoeff().cast<double>();
    const Eigen::VectorXd of_scores = ds.rowwise().sum();
    compare_gradient(exact.dq[usize(k)], out.dq, b, h, k * s.rows,
                     {gauge.rowwise().sum(), of_scores, scale * largest_key * of_scores},
                     group.gradients[0]);
    of_keys[0] += gauge.colwise().sum().transpose();
    of_keys[1] += ds.colwise().sum().transpose();
    of_keys[2] += scale * ds.transpose() * largest_query;
    group.heads.push_back(std::move(head));
    group.weight_part.push_back(
        Pairs(exact.weight_part[usize(k)].data(), s.rows, s.keys).cast<double>());
  }
  compare_gradient(exact.dk, out.dk, b, g, 0, of_keys, group.gradients[1]);
  compare_gradient(exact.dv, out.dv, b, g, 0, {of_keys[0]}, group.gradients[2]);
  return group;
}

namespace {

// One replicate of all gradients of a group.
std::vector<RowMajorSingle> replicate_group(const EvidenceGroup& group, const Contract& c,
                                            std::uint64_t seed, Index serial) {
  std::vector<RowMajorSingle> sums;
  for (const GradientRows& g : group.gradients)
    sums.push_back(RowMajorSingle::Zero(g.exact.rows(), g.exact.cols()));
  Index first = 0;
  for (const EmulatedBackward& head : group.heads) {
    const Index rows = head.in.q.rows();
    if (head.in.count > 0) {
      SplitMix64 random(SplitMix64::number(seed, usize(serial)));
      const Schedule how = draw_schedule(c, head.in.count, random, serial);
      const Schedule forward = draw_schedule(c, head.in.count, random, serial);
      EmulatedGradients part = emulate_backward(c, how, forward, head);
      if (c.head_gradient_dtype)
        for (RowMajorSingle* m : {&part.dk, &part.dv}) round_all(*c.head_gradient_dtype, *m);
      sums[0].middleRows(first, rows) = part.dq;
      sums[1].middleRows(head.in.key0, head.in.count) += part.dk;
      sums[2].middleRows(head.in.key0, head.in.count) += part.dv;
      // Half of the kernels that store the heads also add them in that dtype.
      if (c.head_gradient_dtype && serial % 2 != 0)
        for (std::size_t k : {1, 2}) round_all(*c.head_gradient_dtype, sums[k]);
    }
    first += rows;
  }
  for (std::size_t k = 0; k < sums.size(); ++k) round_all(group.gradients[k].dtype, sums[k]);
  return sums;
}

}  // namespace

GroupReplicates replicate(const EvidenceGroup& group, const Contract& c, int count,
                          std::uint64_t seed, int threads) {
  GroupReplicates all;
  for (const GradientRows& g : group.gradients) {
    all.error.emplace_back(usize(count), RowMajor());
    all.sigma.push_back(Eigen::VectorXd::Zero(g.exact.rows()));
    all.usable.push_back(g.asked);
  }
  parallel_for(count, threads, [&](Index k) {
    const std::vector<RowMajorSingle> sums = replicate_group(group, c, seed, k);
    for (std::size_t n = 0; n < sums.size(); ++n)
      all.error[n][usize(k)] = sums[n].cast<double>() - group.gradients[n].exact;
  });
  for (std::size_t n = 0; n < all.error.size(); ++n) {
    const GradientRows& g = group.gradients[n];
    for (Index r = 0; r < g.exact.rows(); ++r) {
      if (!g.asked[usize(r)]) continue;
      const double floor = half_ulp(g.dtype, g.exact.row(r).cwiseAbs().maxCoeff()) / 3;
      all.sigma[n](r) = typical_of_row(all.error[n], r, floor, g.bound(r));
      if (!std::isfinite(all.sigma[n](r))) all.usable[n][usize(r)] = 0;
    }
    raise_by_bounds(all.sigma[n], g.bound, all.usable[n], 0.5);
  }
  return all;
}

namespace {

// Matched filters of one group. Each replicate's errors go through the same sums as the
// candidate's.
class GradientFilters {
 public:
  GradientFilters(const Attention& p, int replicates, double roundoff)
      : s_(p.shape),
        count_(replicates),
        scale_(static_cast<double>(p.scale)),
        roundoff_(roundoff),
        factors_(3, Shares(1, replicates, least_spread)),
        rows_(2, Shares(s_.rows, replicates, least_spread)),
        heads_(2, Shares(s_.group(), replicates, least_spread)),
        keys_(s_.keys, replicates, least_spread) {}

  void add(const EvidenceGroup& group, const GroupReplicates& typical) {
    for (std::size_t n = 0; n < dtypes_.size(); ++n) dtypes_[n] = group.gradients[n].dtype;
    for (std::size_t n = 0; n < factors_.size(); ++n) add_factor(group, typical, n);
    add_rows(group, typical, 1);
    add_rows(group, typical, 2);
    add_keys(group, typical);
  }

  FilterAnswers finish() {
    constexpr const char* names[] = {"dQ", "dK", "dV"};
    for (std::size_t n = 0; n < factors_.size(); ++n)
      factors_[n].answer(answers_, 2 * least_factor(roundoff_, dtypes_[n]), [=](Index) {
        return std::string(names[n]) + " is too large by a factor";
      });
    for (std::size_t n = 0; n < rows_.size(); ++n) {
      const std::string of = names[n + 1];
      rows_[n].answer(answers_, least_share_of_part,
                      [&](Index i) { return "row " + std::to_string(i) + " is missing in " + of; });
      if (s_.group() > 1)
        heads_[n].answer(answers_, least_share_of_part, [&](Index k) {
          return "head " + std::to_string(k) + " of each group is missing in " + of;
        });
      ask_tiles(rows_[n], "rows", of);
    }
    keys_.answer(answers_, least_share_of_part,
                 [](Index j) { return "key " + std::to_string(j) + " is missing in dQ"; });
    ask_tiles(keys_, "keys", "dQ");
    answers_.keep_most_significant();
    return std::move(answers_);
  }

 private:
  static constexpr double least_spread = 1;

  double weight(const GroupReplicates& typical, std::size_t n, Index r) const {
    const double sigma = typical.sigma[n](r);
    return typical.usable[n][usize(r)] && sigma > 0 ? 1 / (sigma * sigma) : 0;
  }
  // Calls visit(k, errors) for the candidate (k = 0) and for the replicates.
  template <class Visit>
  void for_errors(const EvidenceGroup& group, const GroupReplicates& typical, std::size_t n,
                  const Visit& visit) const {
    visit(std::size_t{0}, group.gradients[n].error);
    for (std::size_t k = 0; k < typical.error[n].size(); ++k) visit(k + 1, typical.error[n][k]);
  }

  void add_factor(const EvidenceGroup& group, const GroupReplicates& typical, std::size_t n) {
    const RowMajor& exact = group.gradients[n].exact;
    std::vector<double> products(usize(count_) + 1, 0);
    double square = 0;
    for (Index r = 0; r < exact.rows(); ++r) {
      const double w = weight(typical, n, r);
      if (w == 0) continue;
      square += w * exact.row(r).squaredNorm();
      for_errors(group, typical, n, [&](std::size_t k, const RowMajor& error) {
        products[k] += w * error.row(r).dot(exact.row(r));
      });
    }
    factors_[n].add(0, products[0], square, products.data() + 1);
  }

  // What row i gives to dK_j is part(i, j) q_i, to dV_j part(i, j) dO_i; leaving it out moves them
  // the other way.
  void add_rows(const EvidenceGroup& group, const GroupReplicates& typical, std::size_t n) {
    const GradientRows& g = group.gradients[n];
    Eigen::VectorXd w(g.exact.rows());
    for (Index j = 0; j < w.size(); ++j) w(j) = weight(typical, n, j);
    for (std::size_t h = 0; h < group.heads.size(); ++h) {
      const RowMajor& part = n == 1 ? group.score_part[h] : group.weight_part[h];
      const RowMajor given = (n == 1 ? group.heads[h].in.q : group.heads[h].d_o).cast<double>();
      const double scale = n == 1 ? scale_ : 1;
      std::vector<Eigen::VectorXd> products;
      for_errors(group, typical, n, [&](std::size_t, const RowMajor& error) {
        // Rows without weight may hold anything.
        RowMajor weighted = RowMajor::Zero(error.rows(), error.cols());
        for (Index j = 0; j < w.size(); ++j)
          if (w(j) > 0) weighted.row(j) = w(j) * error.row(j);
        products.push_back(-scale * (part * weighted).cwiseProduct(given).rowwise().sum());
      });
      const Eigen::VectorXd square =
          scale * scale * (part.cwiseAbs2() * w).cwiseProduct(given.rowwise().squaredNorm());
      std::vector<double> shares(products.size());
      for (Index i = 0; i < s_.rows; ++i) {
        for (std::size_t k = 0; k < shares.size(); ++k) shares[k] = products[k](i);
        rows_[n - 1].add(i, shares[0], square(i), shares.data() + 1);
        heads_[n - 1].add(static_cast<Index>(h), shares[0], square(i), shares.data() + 1);
      }
    }
  }

  void add_keys(const EvidenceGroup& group, const GroupReplicates& typical) {
    const RowMajor keys = group.kv->keys_transposed.leftCols(s_.keys).transpose();
    for (std::size_t h = 0; h < group.heads.size(); ++h) {
      const RowMajor& part = group.score_part[h];
      const Index first = static_cast<Index>(h) * s_.rows;
      Eigen::VectorXd w(s_.rows);
      for (Index i = 0; i < s_.rows; ++i) w(i) = weight(typical, 0, first + i);
      std::vector<Eigen::VectorXd> products;
      for_errors(group, typical, 0, [&](std::size_t, const RowMajor& error) {
        RowMajor weighted = RowMajor::Zero(s_.rows, error.cols());
        for (Index i = 0; i < s_.rows; ++i)
          if (w(i) > 0) weighted.row(i) = w(i) * error.row(first + i);
        products.push_back(-scale_ *
                           (part.transpose() * weighted).cwiseProduct(keys).rowwise().sum());
      });
      const Eigen::VectorXd square =
          scale_ * scale_ *
          (part.cwiseAbs2().transpose() * w).cwiseProduct(keys.rowwise().squaredNorm());
      std::vector<double> shares(products.size());
      for (Index j = 0; j < s_.keys; ++j) {
        for (std::size_t k = 0; k < shares.size(); ++k) shares[k] = products[k](j);
        keys_.add(j, shares[0], square(j), shares.data() + 1);
      }
    }
  }

  void ask_tiles(const Shares& single, const char* what, const std::string& of) {
    for (const Index width : {16, 32, 64, 128}) {
      if (width >= 2 * single.size()) break;
      Shares lanes(width, count_, least_spread),
          tiles((single.size() + width - 1) / width, count_, least_spread);
      for (Index at = 0; at < single.size(); ++at) {
        lanes.add(at % width, single, at);
        tiles.add(at / width, single, at);
      }
      lanes.answer(answers_, least_share_of_part, [&](Index lane) {
        return std::string("every one of the ") + what + " of lane " + std::to_string(lane) +
               " of " + std::to_string(width) + " is missing in " + of;
      });
      tiles.answer(answers_, least_share_of_part, [&](Index t) {
        return std::string(what) + " " + std::to_string(t * width) + " to " +
               std::to_string((t + 1) * width - 1) + " are missing in " + of;
      });
    }
  }

  const AttentionShape& s_;
  const int count_;
  const double scale_, roundoff_;
  std::array<Dtype, 3> dtypes_{};
  FilterAnswers answers_;
  std::vector<Shares> factors_, rows_, heads_;
  Shares keys_;
};

}  // namespace

Evidence weigh_backward(const Attention& problem, const AttentionBackwardInput& input,
                        const AttentionGradients& out, const Contract& strict,
                        std::span<const Contract> contracts, const Verdict& bounds,
                        const JudgeOptions& options) {
  const AttentionShape& s = problem.shape;
  if (problem.q.dtype == Dtype::f64) return not_asked("replicates compute in binary32");
  if (bounds.rows_judged < bounds.rows_total) return not_asked("only some rows were judged");
  if (s.group() * s.rows * s.keys > most_gradient_pairs)
    return not_asked("a group has too many pairs");
  if (s.batch == 0 || s.rows == 0 || s.keys == 0) return not_asked("there is no gradient");
  if (!std::ranges::all_of(contracts, [](const Contract& c) { return is_emulated(c); }))
    return not_asked("no run of attention has such roundings");
  std::vector<EvidenceGroup> groups;
  const double budget = evidence_budget / static_cast<double>(s.dim + s.value_dim);
  for (const auto& [b, g] : choose_groups(s, bounds, budget))
    groups.push_back(gather_group(problem, input, out, strict, b, g));
  return best_fit(
      contracts, groups.front().gradients.front().dtype, options,
      [&](const Contract& c, Evidence& e) {
        std::map<Output, RowScores> scores;
        GradientFilters filters(problem, replicate_count, c.dot_roundoff);
        for (const EvidenceGroup& group : groups) {
          const GroupReplicates typical =
              replicate(group, c, replicate_count, options.seed, options.threads);
          for (std::size_t n = 0; n < group.gradients.size(); ++n) {
            const GradientRows& g = group.gradients[n];
            const double columns = std::sqrt(static_cast<double>(g.exact.cols()));
            const double limit = gradient_leeway * row_limit_of(g.dtype, g.exact.cols());
            for (Index r = 0; r < g.exact.rows(); ++r) {
              if (!typical.usable[n][usize(r)]) continue;
              ++e.rows_asked;
              const double error = g.error.row(r).norm() / columns;
              const bool queries = g.output == Output::dq;
              const auto s_of = [&](double of_row) {
                return of_row == 0 ? 0 : of_row / typical.sigma[n](r);
              };
              RowScores& rows = scores[g.output];
              rows.add(s_of(error), limit, group.b,
                       queries ? group.g * s.group() + r / s.rows : group.g,
                       queries ? r % s.rows : r);
              for (std::size_t k = 0; k < replicate_count; ++k)
                rows.add_replicate(k, s_of(typical.error[n][k].row(r).norm() / columns));
            }
          }
          filters.add(group, typical);
        }
        for (auto& [output, list] : scores) e.rows[output] = list.finish();
        if (e.rows_asked * std::min(s.dim, s.value_dim) < least_elements) return FilterAnswers{};
        return filters.finish();
      });
}

}  // namespace assay
