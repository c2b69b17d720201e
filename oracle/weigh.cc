#include "oracle/weigh.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "oracle/filters.h"

namespace assay {

namespace {

double median(std::vector<double>& numbers) {
  const auto middle = numbers.begin() + std::ssize(numbers) / 2;
  std::ranges::nth_element(numbers, middle);
  return *middle;
}

}  // namespace

void RowScores::add(double s, double limit, Index b, Index h, Index row) {
  if (all_.empty() || !(s * worst_.limit <= worst_.s * limit))
    worst_ = {.s = s, .limit = limit, .b = b, .h = h, .row = row};
  all_.push_back(s);
}

Atypical RowScores::finish() {
  const auto median_of_inexact = [](std::vector<double>& all) {
    std::erase(all, 0);
    return all.empty() ? 0 : median(all);
  };
  worst_.median = median(all_);
  worst_.median_of_inexact = median_of_inexact(all_);
  worst_.least_replicate = std::numeric_limits<double>::infinity();
  for (std::vector<double>& all : replicates_)
    worst_.least_replicate = std::min(worst_.least_replicate, median_of_inexact(all));
  return worst_;
}

Evidence not_asked(const char* why) {
  Evidence e;
  e.not_asked = why;
  return e;
}

void add(Evidence& forward, const Evidence& gradients) {
  if (gradients.arithmetic.empty()) {
    if (!forward.arithmetic.empty()) forward.not_asked = "of gradients: " + gradients.not_asked;
    return;
  }
  if (forward.arithmetic.empty()) {
    forward = gradients;
    return;
  }
  if (forward.arithmetic != gradients.arithmetic)
    forward.arithmetic += "; gradients: " + gradients.arithmetic;
  forward.fits = forward.fits && gradients.fits;
  if (forward.reason.empty()) forward.reason = gradients.reason;
  forward.rows.insert(gradients.rows.begin(), gradients.rows.end());
  forward.questions += gradients.questions;
  forward.rows_asked += gradients.rows_asked;
  FilterAnswers all{forward.filters, 0};
  all.most_significant.insert(all.most_significant.end(), gradients.filters.begin(),
                              gradients.filters.end());
  all.keep_most_significant();
  forward.filters = std::move(all.most_significant);
}

double excess(const Evidence& e) {
  double worst = 0;
  for (const auto& [output, row] : e.rows) worst = std::max(worst, row.s / row.limit);
  for (const FilterAnswer& f : e.filters) worst = std::max(worst, f.significance() / e.z_limit);
  return worst;
}

namespace {

// The fault whose share is this one; a negative share is one of the opposite.
std::string fault_of_share(std::string fault, double share) {
  if (share >= 0) return fault;
  constexpr std::pair<std::string_view, std::string_view> opposites[] = {
      {"too large", "too small"},
      {"is missing", "counts too much"},
      {"are missing", "count too much"}};
  for (const auto& [words, opposite] : opposites)
    if (const std::size_t at = fault.find(words); at != std::string::npos)
      fault.replace(at, words.size(), opposite);
  return fault;
}

}  // namespace

std::string sentence_on(const Evidence& e) {
  const auto beyond = [](const auto& a, const auto& b) {
    return a.second.s / a.second.limit < b.second.s / b.second.limit;
  };
  const auto row = std::ranges::max_element(e.rows, beyond);
  const FilterAnswer* filter = e.filters.empty() ? nullptr : &e.filters.front();
  const double of_row = row == e.rows.end() ? 0 : row->second.s / row->second.limit;
  if (filter && filter->significance() / e.z_limit > of_row)
    return fmt::format(
        "by evidence: inside every bound, but no arithmetic makes such errors: {}, by {:.3g} of "
        "it (z = {:.3g}, limit {:.3g}, {} questions)",
        fault_of_share(filter->fault, filter->share), std::fabs(filter->share),
        std::fabs(filter->z), e.z_limit, e.questions);
  if (row->first == Output::c)
    return fmt::format(
        "by evidence: inside every bound, but no arithmetic makes such errors: those of {} {} of C "
        "are {:.3g} times the typical ones (limit {:.3g}, median {:.2g})",
        row->second.of_column ? "column" : "row", row->second.row, row->second.s, row->second.limit,
        row->second.median);
  const bool key = row->first == Output::dk || row->first == Output::dv;
  return fmt::format(
      "by evidence: inside every bound, but no arithmetic makes such errors: those of {}[b={}, "
      "h={}, {}={}] are {:.3g} times the typical ones (limit {:.3g}, median of {} rows {:.2g})",
      name_of(row->first), row->second.b, row->second.h, key ? "key" : "row", row->second.row,
      row->second.s, row->second.limit, e.rows_asked, row->second.median);
}

void take_evidence(Verdict& v, Evidence e, EvidenceRule rule) {
  v.evidence = std::move(e);
  if (v.evidence.fits) return;
  if (rule == EvidenceRule::warn) {
    v.reason += "; but " + v.evidence.reason;
    return;
  }
  v.outcome = Outcome::fail;
  v.by_evidence = true;
  v.reason = v.evidence.reason;
}

namespace {

void score_rows(const EvidenceRows& rows, const Replicates& typical, Evidence& e) {
  RowScores o, lse;
  const double columns = std::sqrt(static_cast<double>(rows.exact.cols()));
  const double limit = row_limit_of(rows.out_dtype, rows.exact.cols());
  for (const EvidenceHead& head : rows.heads)
    for (Index r = 0; r < head.rows(); ++r) {
      const Index at = head.first + r, i = head.block.row(r).index;
      if (!typical.usable[usize(at)]) continue;
      ++e.rows_asked;
      const double error = rows.error.row(at).norm() / columns;
      const auto s_of = [](double of_row, double sigma) {
        return of_row == 0 ? 0 : of_row / sigma;
      };
      o.add(s_of(error, typical.sigma(at)), limit, head.block.b, head.block.h, i);
      for (std::size_t k = 0; k < typical.error.size(); ++k)
        o.add_replicate(k, s_of(typical.error[k].row(at).norm() / columns, typical.sigma(at)));
      const double lse_sigma = typical.lse_sigma(at);
      if (!rows.lse_asked[usize(at)] || !std::isfinite(lse_sigma)) continue;
      lse.add(std::fabs(rows.lse_error(at)) / lse_sigma, lse_limit, head.block.b, head.block.h, i);
      for (std::size_t k = 0; k < typical.lse_error.size(); ++k)
        lse.add_replicate(k, std::fabs(typical.lse_error[k](at)) / lse_sigma);
    }
  if (!o.empty()) e.rows[Output::o] = o.finish();
  if (!lse.empty()) e.rows[Output::lse] = lse.finish();
}

}  // namespace

Evidence weigh(const ProjectedAttention& problem, const AttentionOutput& out,
               const Contract& strict, std::span<const Contract> contracts,
               const std::vector<SuspectRow>& suspects, const JudgeOptions& options) {
  if (problem.projection) return not_asked("K and V are products that the kernel computes");
  if (problem.q.dtype == Dtype::f64 || out.o.dtype == Dtype::f64)
    return not_asked("replicates compute in binary32");
  // Codes times scales: kernels multiply by the scale before or after the sums.
  if (problem.k.dtype == Dtype::f64 || problem.v.dtype == Dtype::f64)
    return not_asked("stored K or V are no numbers of binary32");
  if (!std::ranges::all_of(contracts, [](const Contract& c) { return is_emulated(c); }))
    return not_asked("no run of attention has such roundings");
  const AttentionShape& s = problem.shape;
  if (s.batch == 0 || s.rows == 0) return not_asked("there is no row");
  const double budget = evidence_budget / static_cast<double>(s.dim + s.value_dim);
  const EvidenceRows rows = gather_evidence(problem, out, strict, suspects, budget, options);
  if (rows.asked_rows() == 0)
    return not_asked(
        "every row has outputs that are not finite, no bound, or weights that underflow");
  return best_fit(contracts, rows.out_dtype, options, [&](const Contract& contract, Evidence& e) {
    const Replicates typical =
        replicate(rows, contract, replicate_count, options.seed, options.threads);
    score_rows(rows, typical, e);
    if (e.rows_asked * rows.exact.cols() < least_elements) return FilterAnswers{};
    return ask_filters(rows, typical, problem, contract.dot_roundoff);
  });
}

}  // namespace assay
