// The bound of low-bit products, for one row of A against some columns of W. Derivation:
// docs/bounds_product.md.
#pragma once

#include <vector>

#include "oracle/low_bit_operands.h"
#include "oracle/product.h"
#include "oracle/product_terms.h"

namespace assay {

// The bound of one element, on its way from the sum to the output.
struct ProductElementBound {
  double bound = 0, reach = 0;  // as in ProductBounds
  bool may_overflow = false;
  const ProductTerms* terms = nullptr;

  // Multiplies by a tensor scale g. `size` is the absolute value of the exact result.
  void scale_by(double g, double size, bool in_weights, const ProductContract& contract);
};

class ProductBounds {
 public:
  // `terms` are the terms of the bound that count. These are all of them, except in the test that
  // leaves out one at a time.
  explicit ProductBounds(const ProductTerms& terms = {}) : terms_(terms) {}

  // Computes the bounds of the sums of the first `length` products of a row of A with every column
  // of `w`.
  void compute(const ProductRow& row, const ProductColumns& w, const ProductContract& c,
               Index length);
  ProductElementBound of_element(std::size_t column) const;

 private:
  // A group of the row and of W: the terms [begin, end).
  struct Group {
    Index index, begin, end;
    double terms() const { return static_cast<double>(end - begin); }
  };
  void start(std::size_t columns, const ProductContract& c);
  void sum_group(const Group& group, const ProductRow& row, const ProductColumns& w,
                 const ProductContract& c);
  void add_lost(Index k, const Group& group, double a, const ProductColumns& w,
                const ProductContract& c);
  // Whether every sum of multiples of 2^quantum is exact in the accumulator, if the absolute values
  // of its terms add up to `sum`.
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
  double largest_weight_ = 0;  // dequantized weights of this size or more are infinite
  // One entry for each column, named by the letters of the document.
  std::vector<double> sum_, magnitude_, error_;  // S_t, sum |a c| and E of the group
  std::vector<double> lost_;                     // sum |a c| of the group's operands read as 0
  std::vector<double> total_, total_error_;      // T and E between groups
  std::vector<double> gauge_;                    // sum |a w|
  std::vector<double> gauge_lost_;               // of the operands that are read as 0
  std::vector<double> reach_;                    // limit of all partial sums, with their roundings
  std::vector<double> bound_;                    // before tensor scales and output rounding
  std::vector<int> quantum_;                     // that divides all terms
  std::vector<char> rounded_;                    // whether some group sum may be rounded
  std::vector<char> may_overflow_;
};

}  // namespace assay
