#include "oracle/evidence_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "oracle/row_sample.h"
#include "oracle/shares.h"
#include "problem/parallel.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

// No more K and V than this are kept at the same time.
constexpr Index most_key_bytes = Index{1} << 29;
constexpr Index most_heads = 24;

}  // namespace

// Spreads rows over the heads: the heads are evenly spaced, and each of them gives one row of every
// equal stretch.
RowsOfHeads choose_rows(const AttentionShape& s, const std::vector<SuspectRow>& suspects,
                        double budget, const JudgeOptions& options) {
  RowsOfHeads chosen;
  const Index heads = s.batch * s.query_heads;
  const Index head_bytes = 24 * std::max<Index>(s.keys, 1) * (s.dim + s.value_dim);
  const Index affordable = std::clamp<Index>(most_key_bytes / head_bytes, 1, most_heads);
  const double rows = std::max(8.0, budget / static_cast<double>(std::max<Index>(s.keys, 1)));
  const Index spread = std::min({heads, affordable, static_cast<Index>(std::ceil(rows / 4))});
  const Index of_a_head =
      std::clamp<Index>(static_cast<Index>(rows / static_cast<double>(spread)), 1, s.rows);
  for (Index k = 0; k < spread; ++k) {
    const Index head =
        k * heads / spread +
        (spread < heads ? static_cast<Index>(options.seed % usize(heads / spread)) : 0);
    const std::vector<Index> list = rows_to_judge(s.rows, of_a_head, options.seed + usize(head));
    chosen[{head / s.query_heads, head % s.query_heads}].insert(list.begin(), list.end());
  }
  for (const SuspectRow& suspect : suspects) {
    const std::pair head{suspect.b, suspect.h};
    if (chosen.contains(head) || std::ssize(chosen) < affordable) chosen[head].insert(suspect.row);
  }
  return chosen;
}

namespace {

// Whether the weights of a row, or their products with V, may underflow.
bool may_underflow(const EvidenceHead& head, Index r, Index value_dim) {
  const Block& k = head.block;
  const auto values = head.kv->values.middleRows(k.key0, k.count).leftCols(value_dim);
  double weights = 0;
  Eigen::RowVectorXd products = Eigen::RowVectorXd::Zero(value_dim);
  for (Index j = 0; j < k.count; ++j) {
    const auto pair = k.pair(r, j);
    const double p = k.weight[pair];
    if (!(p > 0) || (!k.kept.empty() && !k.kept[pair])) continue;
    weights += p;
    products += p * values.row(j).cwiseAbs();
  }
  const double largest = value_dim == 0 ? 0 : products.maxCoeff();
  return underflows(weights) || underflows(largest);
}

// Copies the exact O and LSE of a head and their bounds, below those of the heads before.
void take_head(const EvidenceHead& head, EvidenceRows& all) {
  const Block& k = head.block;
  const Index dv = all.exact.cols();
  for (Index r = 0; r < k.row_count(); ++r) {
    const BlockRow& row = k.row(r);
    const Index at = head.first + r;
    for (Index c = 0; c < dv; ++c) {
      const BlockElement& o = k.element(r, c);
      all.exact(at, c) = o.value;
      const double bound = o.bound + half_ulp(all.out_dtype, o.value);
      all.bound(at) += bound * bound / static_cast<double>(dv);
    }
    all.bound(at) = std::sqrt(all.bound(at));
    if (row.lse.kind != Kind::finite) continue;
    all.lse(at) = row.lse.value;
    all.lse_bound(at) = row.lse.bound;
  }
}

// Compares the candidate's rows of a head with the exact ones. Fully masked rows that
// are not 0 by convention have no replicates.
void compare_head(const EvidenceHead& head, const AttentionOutput& out,
                  const Conventions& conventions, EvidenceRows& all) {
  const bool masked_are_zero = conventions.of<MaskedRows>() == MaskedRows::zero;
  const Block& k = head.block;
  const Index dv = all.exact.cols();
  for (Index r = 0; r < k.row_count(); ++r) {
    const BlockRow& row = k.row(r);
    const Index at = head.first + r, i = row.index;
    bool asked = (row.domain == Domain::bounded || row.domain == Domain::vacuous) &&
                 !may_underflow(head, r, dv) && (!row.fully_masked || masked_are_zero);
    for (Index c = 0; c < dv; ++c) {
      const BlockElement& o = k.element(r, c);
      const double got = load(out.o, out.o.at(k.b, k.h, i, c));
      asked = asked && o.kind == Kind::finite && std::isfinite(got) && !o.value_overflow;
      all.error(at, c) = (got - o.value) - o.low;
    }
    all.asked[usize(at)] = asked;
    if (!out.lse || row.lse.kind != Kind::finite) continue;
    const double got = load(out.lse, out.lse.at(k.b, k.h, i, 0));
    all.lse_error(at) = (got - row.lse.value) - row.lse.low;
    all.lse_asked[usize(at)] = asked && std::isfinite(got);
  }
}

}  // namespace

// The rms of the output rounding is half an ulp / sqrt(3) for the largest element of a row, and
// less for smaller ones. Even if all replicates are exact by chance, typical errors are not 0.
double floor_of_row(Dtype out, double largest) { return half_ulp(out, largest) / 3; }
double floor_of_lse(double lse) { return half_ulp(Dtype::f32, std::max(std::fabs(lse), 1.0)) / 2; }

EmulatedRows emulated_inputs(const ProjectedAttention& p, const KeyValues& kv, const Block& block) {
  EmulatedRows in;
  in.kv = &kv;
  in.key0 = block.key0;
  in.count = block.count;
  in.scale = p.scale;
  in.softcap = p.softcap;
  in.has_sink = !p.sink.empty();
  if (in.has_sink) in.sink = p.sink[usize(block.h)];
  in.q.resize(block.row_count(), p.shape.dim);
  in.bias = RowMajorSingle::Zero(block.row_count(), block.count);
  if (!block.kept.empty()) in.kept.resize(block.row_count(), block.count);
  std::vector<double> row;
  RowVisibility seen;
  bool any_bias = false;
  for (Index r = 0; r < block.row_count(); ++r) {
    const Index i = block.row(r).index;
    load_row(p.q, block.b, block.h, i, row);
    for (Index d = 0; d < p.shape.dim; ++d) in.q(r, d) = static_cast<float>(row[usize(d)]);
    evaluate_visibility(p, block.b, block.h, i, seen);
    for (Index j = 0; j < block.count; ++j) {
      const std::size_t pair = block.pair(r, j);
      const double bias = block.visible[pair] ? seen.bias[usize(block.key0 + j)] : -inf;
      in.bias(r, j) = static_cast<float>(bias);
      any_bias = any_bias || bias != 0;
      in.only_masks = in.only_masks && (bias == 0 || bias == -inf);
      if (!block.kept.empty()) in.kept(r, j) = static_cast<float>(block.kept[pair]);
    }
  }
  if (!any_bias) in.bias.resize(0, 0);
  return in;
}

Index EvidenceRows::asked_rows() const { return std::count(asked.begin(), asked.end(), 1); }

EvidenceRows evaluate_rows(const ProjectedAttention& problem, const RowsOfHeads& chosen, Dtype out,
                           const Contract& contract, int threads, const LoadHead& load) {
  const AttentionShape& s = problem.shape;
  EvidenceRows all;
  all.out_dtype = out;
  std::vector<std::pair<std::pair<Index, Index>, std::vector<Index>>> lists;
  Index rows = 0;
  for (const auto& [head, list] : chosen) {
    all.heads.emplace_back().first = rows;
    lists.emplace_back(head, std::vector<Index>(list.begin(), list.end()));
    rows += std::ssize(list);
  }
  all.exact = all.error = RowMajor::Zero(rows, s.value_dim);
  all.lse = all.lse_error = all.bound = all.lse_bound = Eigen::VectorXd::Zero(rows);
  all.asked.assign(usize(rows), 0);
  all.lse_asked = all.asked;
  const Reference reference(problem, contract);
  parallel_for(std::ssize(all.heads), threads, [&](Index n) {
    EvidenceHead& head = all.heads[usize(n)];
    const auto& [place, list] = lists[usize(n)];
    head.kv = load(reference, place.first, place.second);
    head.block = reference.evaluate(*head.kv, place.second, list, Keep::scores);
    head.in = emulated_inputs(problem, *head.kv, head.block);
    take_head(head, all);
  });
  return all;
}

EvidenceRows gather_evidence(const ProjectedAttention& problem, const AttentionOutput& out,
                             const Contract& contract, const std::vector<SuspectRow>& suspects,
                             double budget, const JudgeOptions& options) {
  const Index group = problem.shape.group();
  EvidenceRows all =
      evaluate_rows(problem, choose_rows(problem.shape, suspects, budget, options), out.o.dtype,
                    contract, options.threads, [=](const Reference& reference, Index b, Index h) {
                      return std::shared_ptr<const KeyValues>(reference.load_head(b, h / group));
                    });
  for (const EvidenceHead& head : all.heads) compare_head(head, out, options.conventions, all);
  return all;
}

Replicates replicate(const EvidenceRows& rows, const Contract& contract, int count,
                     std::uint64_t seed, int threads) {
  const Index dv = rows.exact.cols(), n = rows.rows();
  Replicates all;
  all.error.assign(usize(count), RowMajor::Zero(n, dv));
  all.lse_error.assign(usize(count), Eigen::VectorXd::Zero(n));
  all.sigma = all.lse_sigma = Eigen::VectorXd::Zero(n);
  all.usable = rows.asked;
  parallel_for(std::ssize(rows.heads) * count, threads, [&](Index task) {
    const Index k = task % count;
    const EvidenceHead& head = rows.heads[usize(task / count)];
    if (head.in.count == 0) return;
    SplitMix64 random(SplitMix64::number(seed, usize(k)));
    EmulatedOutputs out =
        emulate(contract, draw_schedule(contract, head.in.count, random, k), head.in);
    round_all(rows.out_dtype, out.o);
    const auto at = std::pair(head.first, head.rows());
    all.error[usize(k)].middleRows(at.first, at.second) =
        out.o.leftCols(dv).cast<double>() - rows.exact.middleRows(at.first, at.second);
    all.lse_error[usize(k)].segment(at.first, at.second) =
        out.lse.cast<double>() - rows.lse.segment(at.first, at.second);
  });
  for (Index r = 0; r < n; ++r) {
    if (!rows.asked[usize(r)]) continue;
    double lse_square = 0;
    for (const Eigen::VectorXd& error : all.lse_error) lse_square += error(r) * error(r);
    all.sigma(r) = typical_of_row(
        all.error, r, floor_of_row(rows.out_dtype, rows.exact.row(r).cwiseAbs().maxCoeff()),
        rows.bound(r));
    if (!std::isfinite(all.sigma(r))) all.usable[usize(r)] = 0;
    const double lse_sigma = std::sqrt(lse_square / static_cast<double>(count));
    all.lse_sigma(r) =
        std::isfinite(lse_sigma) ? std::max(lse_sigma, floor_of_lse(rows.lse(r))) : inf;
  }
  raise_by_bounds(all.sigma, rows.bound, all.usable, 0.5);
  raise_by_bounds(all.lse_sigma, rows.lse_bound, rows.lse_asked, 1);
  return all;
}

double typical_of_row(const std::vector<RowMajor>& errors, Index row, double floor, double bound) {
  const auto count = std::ssize(errors), columns = errors.front().cols();
  Eigen::MatrixXd rows(columns, count);
  for (Index k = 0; k < count; ++k) rows.col(k) = errors[usize(k)].row(row).transpose();
  const Eigen::MatrixXd products = rows.transpose() * rows;
  const double square = products.trace();
  if (!std::isfinite(square)) return inf;
  const double rms = std::sqrt(
      typical_squares(products.diagonal().array().transpose() / static_cast<double>(columns))(0));
  // The replicates are nearly exact here, by chance. A right kernel need not be.
  constexpr double exact_by_luck = 0x1p-12, typical_of_bound = 0x1p-4;
  if (!(rms > exact_by_luck * bound) && std::isfinite(bound))
    return std::max(4 * std::max(rms, floor), typical_of_bound * bound);
  // 1 if the errors of all replicates have one direction; up to their number if all differ.
  const double directions = square * square / products.squaredNorm();
  const double caution = 1 + 3 / (directions * std::sqrt(directions));
  return caution * std::max(rms, floor);
}

void raise_by_bounds(Eigen::VectorXd& sigma, const Eigen::VectorXd& bound,
                     const std::vector<char>& usable, double part) {
  std::vector<double> ratios;
  const auto counts = [&](Index r) {
    return usable[usize(r)] && bound(r) > 0 && std::isfinite(bound(r));
  };
  for (Index r = 0; r < sigma.size(); ++r)
    if (counts(r)) ratios.push_back(sigma(r) / bound(r));
  if (ratios.empty()) return;
  const auto middle = ratios.begin() + std::ssize(ratios) / 2;
  std::ranges::nth_element(ratios, middle);
  for (Index r = 0; r < sigma.size(); ++r)
    if (counts(r)) sigma(r) = std::max(sigma(r), part * *middle * bound(r));
}

}  // namespace assay
