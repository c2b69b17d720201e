// An arithmetic that errs in every step by all that its contract allows, in the direction that
// takes the result furthest from its exact value. No kernel rounds like this. But every kernel that
// keeps its contract might do so in one of its steps, so a bound has to hold for it.
#pragma once

#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

namespace assay {

class Adversary {
 public:
  // Returns a computed number of which the contract says only that it is within `allowance` of x.
  double err(double x, double allowance) {
    const std::size_t at = next_++;
    if (at == signs_.size()) signs_.push_back(0);
    return x + signs_[at] * allowance;
  }

  // The result of a computation, as far from its exact value as single steps can take it. Each step
  // has the sign that alone moves the result up. The opposite signs are tried as well.
  double furthest(const std::function<double(Adversary&)>& compute) {
    signs_.clear();
    const double exact = run(compute);
    std::vector<double> up(signs_.size());
    for (std::size_t at = 0; at < up.size(); ++at) {
      signs_[at] = most;
      up[at] = run(compute) >= exact ? most : -most;
      signs_[at] = 0;
    }
    signs_ = up;
    const double above = run(compute);
    for (double& sign : signs_) sign = -sign;
    const double below = run(compute);
    return std::fabs(above - exact) >= std::fabs(below - exact) ? above : below;
  }

 private:
  double run(const std::function<double(Adversary&)>& compute) {
    next_ = 0;
    return compute(*this);
  }

  // The emulation computes in binary64. Its own errors are taken from the allowance.
  static constexpr double most = 1 - 1e-6;
  std::vector<double> signs_;
  std::size_t next_ = 0;
};

}  // namespace assay
