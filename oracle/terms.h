// The terms of a bound by name, so that a test can leave out one at a time and show the arithmetic
// that needs it.
//
// A term is the factor 1 of some coefficient. Production never changes a factor, and a product with
// 1 is exact.
#pragma once

#include <array>
#include <cstddef>

namespace assay {

// Of `count` terms: 1 for each that counts, 0 for one that is left out.
template <class Term, std::size_t count>
class Terms {
 public:
  constexpr Terms() { factors_.fill(1); }
  constexpr Terms without(Term term) const {
    Terms rest = *this;
    rest.factors_[static_cast<std::size_t>(term)] = 0;
    return rest;
  }
  constexpr double operator[](Term term) const { return factors_[static_cast<std::size_t>(term)]; }

 private:
  std::array<double, count> factors_{};
};

}  // namespace assay
