// Inside oracle/: which of many predictions fit what a kernel gave. docs/evidence.md, 5.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "oracle/diagnosis.h"
#include "oracle/weigh.h"

namespace assay {

// Infinite where one of the two is a number and the other is not, or where infinities differ.
inline double error_of(double got, double exact) {
  if (std::isfinite(got) && std::isfinite(exact)) return std::fabs(got - exact);
  const bool alike = std::isnan(got) ? std::isnan(exact) : got == exact;
  return alike ? 0 : std::numeric_limits<double>::infinity();
}
template <class Got, class Exact>
double rms_error(const Got& got, const Exact& exact) {
  double square = 0;
  for (Index c = 0; c < got.size(); ++c) {
    const double error = error_of(got(c), exact(c));
    square += error * error;
  }
  return std::sqrt(square / static_cast<double>(std::max<Index>(got.size(), 1)));
}

// Whether two sets of exact numbers differ by no more than their rounding.
template <class Matrix>
bool same_numbers(const Matrix& a, const Matrix& b) {
  constexpr double rounding = 0x1p-36, part_of_largest = 0x1p-20;
  double largest = 0;
  for (Index k = 0; k < a.size(); ++k)
    for (const double x : {a.data()[k], b.data()[k]})
      if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
  for (Index k = 0; k < a.size(); ++k) {
    const double x = a.data()[k], y = b.data()[k], error = error_of(x, y);
    const double size = std::max({part_of_largest * largest, std::fabs(x), std::fabs(y)});
    if (!std::isfinite(error) || error > rounding * size) return false;
  }
  return true;
}

// The s of rows against their limits. Numbers of rows with other limits are told in units of the
// limit of the row that is furthest.
class Fit {
 public:
  // `error` is that of a row, `typical` the typical one, infinite where the row cannot be asked.
  void add(double error, double typical, double limit) {
    if (typical == std::numeric_limits<double>::infinity()) return;
    const double ratio = error == 0 ? 0 : error / typical / limit;
    ratios_.push_back(ratio);
    if (ratios_.size() == 1 || !(ratio <= excess_)) excess_ = ratio, limit_ = limit;
  }
  bool empty() const { return ratios_.empty(); }
  double excess() const { return excess_; }
  double limit() const { return limit_; }
  double largest() const { return excess_ * limit_; }
  double median() const {
    std::vector<double> sorted = ratios_;
    const auto middle = sorted.begin() + std::ssize(sorted) / 2;
    std::ranges::nth_element(sorted, middle);
    return *middle * limit_;
  }

 private:
  std::vector<double> ratios_;
  double excess_ = 0, limit_ = 1;
};

// The s of what a kernel gave against a prediction, and against what is right, in the same rows and
// in units of what is typical of the prediction.
struct Fits {
  Fit given, right;

  void add(double error, double from_right, double typical, double limit) {
    given.add(error, typical, limit);
    right.add(from_right, typical, limit);
  }
  // Adds a row: its errors against the right outputs, and the step from these to the prediction.
  template <class Error, class Step>
  void add_share(const Error& error, const Step& step, double typical) {
    if (!(typical > 0) || !std::isfinite(typical) || !step.allFinite() || !error.allFinite())
      return;
    along_ += error.dot(step) / typical / typical;
    step_ += step.squaredNorm() / typical / typical;
  }
  // The errors against the prediction are typical. The errors against the right outputs are not, by
  // twice as much at least; or, over all rows together, they follow the steps to the prediction.
  bool explains() const {
    return !given.empty() && given.excess() <= 1 && (leaves_half() || are_the_steps());
  }
  // Of a fault that may lie in any part of the output, more is asked: the errors are the step to
  // the prediction, neither a part of it nor more.
  bool explains_a_part() const {
    return explains() && leaves_half() &&
           (step_ == 0 || std::fabs(along_ / step_ - 1) <= off_the_step);
  }
  // The errors are as large as those of a coarser arithmetic: typical in every row, and not small.
  // The errors of the next format are eight times as large, or twice as large for eight bits. A
  // kernel that rounds only once has smaller errors than is typical.
  bool has_the_size() const {
    constexpr double least = 0.25, most = 2;
    return !given.empty() && given.excess() <= 1 && given.median() >= least &&
           given.median() <= most;
  }

 private:
  bool leaves_half() const {
    return !(right.excess() <= 1) && !(given.excess() > right.excess() / 2);
  }
  bool are_the_steps() const {
    constexpr double least_z = 8;
    return along_ > least_z * std::sqrt(step_) && std::fabs(along_ / step_ - 1) <= off_the_step;
  }
  static constexpr double off_the_step = 0.25;
  double along_ = 0, step_ = 0;
};

void add_gradient_hypotheses(std::vector<std::string_view>& names);
void add_product_hypotheses(std::vector<std::string_view>& names);
void add_shared_hypotheses(std::vector<std::string_view>& names);

// Diagnoses dBias and dSink.
Diagnosis diagnose_shared(const Attention& problem, const AttentionBackwardInput& input,
                          const AttentionGradients& out, const Contract& contract);

inline Diagnosis undiagnosed(const char* why) {
  Diagnosis d;
  d.not_asked = why;
  return d;
}

inline Explanation explanation_of(std::string_view hypothesis, std::string words,
                                  std::vector<std::string> same, std::string arithmetic,
                                  const Fits& fits) {
  return {std::string(hypothesis), std::move(words),     std::move(same),   std::move(arithmetic),
          fits.given.median(),     fits.given.largest(), fits.given.limit()};
}
// What an explanation leaves, in units of the limit.
inline double excess_of(const Explanation& e) { return e.limit > 0 ? e.largest / e.limit : 0; }
// Whether no other explanation has to be looked for: what this one leaves is far inside the limit.
inline bool is_clear(const Diagnosis& d) {
  constexpr double far_inside = 0.5;
  return !d.explanations.empty() && excess_of(d.explanations.front()) <= far_inside;
}
// Adds what was tried next. Rarer explanations, some of which have a number that was read from the
// errors, count only if they leave less than half.
inline void add_rarer(Diagnosis& d, Diagnosis found) {
  d.tried += found.tried;
  if (found.explanations.empty()) return;
  if (d.explanations.empty() ||
      excess_of(found.explanations.front()) < excess_of(d.explanations.front()) / 2)
    d.explanations = std::move(found.explanations);
}
// Puts the coarser arithmetic first whose typical errors are nearest to those that were given.
inline void sort_by_size(std::vector<Explanation>& explanations) {
  std::ranges::stable_sort(explanations, {},
                           [](const Explanation& e) { return std::fabs(std::log(e.median)); });
}

template <class Visit>
void for_each_parameter(std::span<const Index> parameters, const Visit& visit) {
  if (parameters.empty()) return visit(Index{0});
  for (const Index parameter : parameters) visit(parameter);
}

// The hypotheses that were tried on a case.
template <class Prediction>
class Trials {
 public:
  struct Trial {
    std::string_view name;
    std::string words;
    double distance;  // how far what was given is from the prediction, in units of bounds
    Prediction prediction;
    bool of_a_part = false;  // the fault lies in a part of the output alone
  };
  void add(Trial trial) {
    ++tried_;
    if (!std::isfinite(trial.distance)) return;
    // Equal predictions keep their order, even if their sums were rounded differently.
    trial.distance = static_cast<double>(static_cast<float>(trial.distance));
    trials_.push_back(std::move(trial));
    if (trials_.size() > 2 * most_kept) keep_nearest();
  }

  // Examines the nearest predictions. `same(a, b)` says whether two predictions are the same.
  // `ask(prediction, take)` calls take(arithmetic, fits) for one arithmetic after the other, until
  // take() returns true, which means that the prediction fits.
  template <class Same, class Ask>
  Diagnosis explain(Index rows, const Same& same, const Ask& ask) {
    Diagnosis d;
    d.tried = tried_;
    d.rows_asked = rows;
    keep_nearest();
    std::vector<std::pair<Trial*, std::vector<std::string>>> nearest = merge(same);
    std::vector<std::pair<double, Explanation>> found;
    for (auto& [trial, others] : nearest) {
      ask(trial->prediction, [&](const std::string& arithmetic, const Fits& fits) {
        if (!(trial->of_a_part ? fits.explains_a_part() : fits.explains())) return false;
        found.push_back({fits.given.excess(),
                         explanation_of(trial->name, trial->words, others, arithmetic, fits)});
        return true;
      });
    }
    std::ranges::stable_sort(found, {}, [](const auto& x) { return x.first; });
    for (auto& [excess, explanation] : found)
      if (d.explanations.size() < most_explanations)
        d.explanations.push_back(std::move(explanation));
    return d;
  }

 private:
  static constexpr std::size_t most_kept = 24, most_asked = 8, most_explanations = 5;

  void keep_nearest() {
    std::ranges::stable_sort(trials_, {}, &Trial::distance);
    if (trials_.size() > most_kept) trials_.erase(trials_.begin() + most_kept, trials_.end());
  }

  // The nearest trials with the names of those that predict the same.
  template <class Same>
  std::vector<std::pair<Trial*, std::vector<std::string>>> merge(const Same& same) {
    std::vector<std::pair<Trial*, std::vector<std::string>>> kept;
    for (Trial& t : trials_) {
      const auto twin = std::ranges::find_if(
          kept, [&](const auto& k) { return same(k.first->prediction, t.prediction); });
      if (twin == kept.end()) {
        if (kept.size() < most_asked) kept.emplace_back(&t, std::vector<std::string>());
        continue;
      }
      std::vector<std::string>& others = twin->second;
      if (t.name != twin->first->name && std::ranges::find(others, t.name) == others.end())
        others.emplace_back(t.name);
    }
    return kept;
  }

  std::vector<Trial> trials_;
  Index tried_ = 0;
};

}  // namespace assay
