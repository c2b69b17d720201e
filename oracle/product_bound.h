// The bound of low-bit products, for one row of A against some columns of W. Derivation:
// docs/bounds_product.md.
#pragma once

#include <vector>

#include "oracle/low_bit_operands.h"
#include "oracle/product.h"
#include "oracle/product_terms.h"

namespace assay {

// Of one element, from its sum to the output.
struct ProductElementBound {
  double bound = 0, reach = 0;  // as in ProductBounds
  bool may_overflow = false;
  const ProductTerms* terms = nullptr;

  // Multiplies by a tensor scale g; `size` is the modulus of the exact value after it.
  void scale_by(double g, double size, const ProductContract& contract);
};

class ProductBounds {
 public:
  // `terms` are those of the bound that count: all of them, but in the test of the terms.
  explicit ProductBounds(const ProductTerms& terms = {}) : terms_(terms) {}

  // The first `length` terms of a row of A against every column of `w`.
  void compute(const ProductRow& row, const ProductColumns& w, const ProductContract& c,
               Index length);
  ProductElementBound of_element(std::size_t column) const;

 private:
  // A group of the row and of W: terms [begin, end).
  struct Group {
    Index index, begin, end;
    double terms() const { return static_cast<double>(end - begin); }
  };
  void start(std::size_t columns, const ProductContract& c);
  void sum_group(const Group& group, const ProductRow& row, const ProductColumns& w,
                 const ProductContract& c);
  // Whether no sum of multiples of 2^quantum, whose moduli sum to `sum`, is ever rounded.
  bool holds(double sum, int quantum) const;
  double group_error(std::size_t i, const Group& group, bool exact, const ProductContract& c) const;
  void add_group(std::size_t i, const Group& group, const ProductRow& row, const ProductColumns& w,
                 const ProductContract& c);
  void add_scaled_group(std::size_t i, double scale, double error, const ProductContract& c);
  double bound_of_groups(std::size_t i, double steps, double groups,
                         const ProductContract& c) const;
  double bound_of_any_order(std::size_t i, double steps, double largest,
                            const ProductContract& c) const;

  ProductTerms terms_;
  double quanta_ = 0;          // 1 / u: an accumulator holds all integers up to it
  int least_bit_ = 0;          // of the smallest subnormal
  double largest_weight_ = 0;  // dequantized weights from here on are infinite
  // Of each column, in the document's letters.
  std::vector<double> sum_, magnitude_, error_;  // S_t, sum |a c| and E of the group
  std::vector<double> total_, total_error_;      // T and E between groups
  std::vector<double> gauge_;                    // sum |a w|
  std::vector<double> reach_;                    // that no partial sum exceeds, roundings included
  std::vector<double> bound_;                    // before tensor scales and output rounding
  std::vector<int> quantum_;                     // that divides all terms
  std::vector<char> rounded_;                    // some group sum may be
  std::vector<char> may_overflow_;
};

}  // namespace assay
