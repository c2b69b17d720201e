// The terms of a bound, each with a name. A test can therefore leave out one term at a time, and
// show the arithmetic that needs it.
//
// A term is a factor of some coefficient, and this factor is 1. Only tests change it, and a product
// with 1 is exact.
#pragma once

#include <array>
#include <cstddef>

namespace assay {

// The factors of `count` terms: 1 for each term that counts, 0 for one that is left out.
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
