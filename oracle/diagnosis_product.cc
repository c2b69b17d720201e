// The known faults of products, as other readings of the codes and scales.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "oracle/alteration.h"
#include "oracle/diagnosis.h"
#include "oracle/explain.h"
#include "oracle/low_bit_operands.h"
#include "oracle/product_sample.h"
#include "oracle/suspicions.h"

namespace assay {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// All of W is decoded, because a faulty kernel may read other columns than it should.
constexpr Index most_weights = Index{1} << 22;

// W as it is stored, and what a kernel makes of it. Indices k and n, and t of a group.
struct ProductReading {
  explicit ProductReading(const Product& p)
      : product(p), traits_of(traits(p.w.format)), w(p.w, 0, p.w.n) {}

  double code(Index k, Index n) const { return w.code_at(k, n); }
  double scale(Index t, Index n) const { return w.scale_at(t, n); }
  Index group_of(Index k) const { return k / w.step; }
  bool has_scales() const { return product.w.group > 0; }

  const Product& product;
  const LowBitTraits& traits_of;
  ProductColumns w;
};

// One reading of the product. An empty function stands for the right reading.
struct AlteredProduct {
  std::function<double(const ProductReading&, Index k, Index n)> code;
  std::function<double(const ProductReading&, Index t, Index n)> scale;
  std::function<double(const ProductReading&, double x, Index m, Index n)> output;
  double (*activation)(double) = nullptr;  // what is read of an element of A
  double tensor_scale = 1;                 // a factor
  double factor = 1;                       // of C
  Index k_end;                             // terms from here on are left out
  Index term = -1;                         // is counted so many times
  double times = 1;
  std::optional<Dtype> total;  // the sum over groups is rounded to it after each group
};

struct ProductHypothesis {
  std::string_view name;
  std::string_view words;
  bool (*alter)(AlteredProduct& a, const ProductReading& r, Index parameter);
  std::span<const Index> parameters = {};
};

constexpr Index widths[] = {8, 16, 32, 64, 128};

bool round_totals(AlteredProduct& a, const ProductReading& r, Dtype total) {
  a.total = total;
  return r.has_scales();
}

bool is_fp4(const ProductReading& r) { return !r.traits_of.integer && r.traits_of.bits == 4; }

bool replaces_half(AlteredProduct& a, const ProductReading& r, double factor) {
  a.code = [=](const ProductReading& of, Index k, Index n) {
    const double x = of.code(k, n);
    return std::fabs(x) == 0.5 ? factor * x : x;
  };
  return is_fp4(r);
}

bool shift_codes(AlteredProduct& a, const ProductReading& r, double by) {
  a.code = [=](const ProductReading& of, Index k, Index n) { return of.code(k, n) + by; };
  return r.traits_of.integer;
}

constexpr ProductHypothesis hypotheses[] = {
    // Scales.
    {"scale-of-group-before", "the last, shorter group has the scale of the one before",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         return of.scale(t > 0 && t + 1 == of.w.groups ? t - 1 : t, n);
       };
       return r.has_scales() && r.product.k % r.w.step != 0 && r.w.groups > 1;
     }},
    {"scale-of-next-group", "every group has the scale of the next one",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         return of.scale(std::min(t + 1, of.w.groups - 1), n);
       };
       return r.has_scales();
     }},
    {"scale-by-tile", "groups of scales are counted in tiles of {}",
     [](AlteredProduct& a, const ProductReading& r, Index tile) {
       a.scale = [=](const ProductReading& of, Index t, Index n) {
         const Index k = t * of.w.step, first = k / tile * tile;
         return of.scale(first / of.w.step + (k - first) / of.w.step, n);
       };
       return r.has_scales();
     },
     widths},
    {"scales-transposed", "scales are read as [N][groups]",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         const Index flat = n * of.w.groups + t;
         return of.scale(flat / of.w.count, flat % of.w.count);
       };
       return r.has_scales();
     }},
    {"scale-of-column-before", "the last column has the scales of the one before",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         return of.scale(t, n + 1 == of.w.count ? n - 1 : n);
       };
       return r.has_scales() && r.w.count > 1;
     }},
    {"scale-ignored", "scales are taken to be 1",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading&, Index, Index) { return 1.0; };
       return r.has_scales();
     }},
    {"product-scale-twice", "every scale is applied twice",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         return of.scale(t, n) * of.scale(t, n);
       };
       return r.has_scales();
     }},
    {"scale-in-bf16", "scales are rounded to bf16",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         return round_to(Dtype::bf16, of.scale(t, n));
       };
       return r.has_scales();
     }},
    {"smallest-scale-zero", "the smallest scale of the format is read as 0",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         const Dtype d = of.traits_of.scale;
         const double least = d == Dtype::e8m0 ? 0x1p-127 : d == Dtype::f16 ? 0x1p-24 : 0x1p-9;
         return of.scale(t, n) <= least ? 0 : of.scale(t, n);
       };
       return r.has_scales();
     }},
    {"nan-scale-zero", "a scale that is NaN is read as 0",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         return std::isnan(of.scale(t, n)) ? 0 : of.scale(t, n);
       };
       return r.has_scales();
     }},
    {"tensor-scale-ignored", "the tensor scale is not applied",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.tensor_scale = 1 / static_cast<double>(r.product.w.tensor_scale);
       return std::isfinite(a.tensor_scale) && a.tensor_scale != 1;
     }},
    {"tensor-scale-twice", "the tensor scale is applied twice",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.tensor_scale = static_cast<double>(r.product.w.tensor_scale);
       return a.tensor_scale != 1;
     }},

    // Codes.
    {"nibble-order", "the high nibble of a byte is read first",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         return of.code((k ^ 1) < of.product.k ? k ^ 1 : k, n);
       };
       return r.traits_of.bits == 4;
     }},
    {"half-as-quarter", "the subnormal of E2M1, 0.5, is read as 0.25",
     [](AlteredProduct& a, const ProductReading& r, Index) { return replaces_half(a, r, 0.5); }},
    {"half-as-zero", "the subnormal of E2M1, 0.5, is read as 0",
     [](AlteredProduct& a, const ProductReading& r, Index) { return replaces_half(a, r, 0); }},
    {"offset-code", "codes 8 + round(2 x) are read as E2M1",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         const double code = std::clamp(std::nearbyint(2 * of.code(k, n)) + 8, 0.0, 15.0);
         return decode(Dtype::f4e2m1, static_cast<std::uint64_t>(code));
       };
       return is_fp4(r);
     }},
    {"kept-mirrored", "positions of 2:4 metadata are counted from the far end",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         const Index other = k / 4 * 4 + 3 - k % 4;
         return other < of.product.k ? of.code(other, n) : 0;
       };
       return r.product.w.format == LowBit::fp4_sparse;
     }},
    {"nan-code-number", "the NaN of E4M3 is read as 480, that of E5M2 as infinity",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         if (!std::isnan(of.code(k, n))) return of.code(k, n);
         return of.product.w.format == LowBit::f8e4m3 ? 480
                                                      : std::numeric_limits<double>::infinity();
       };
       return r.traits_of.bits == 8 && !r.traits_of.integer;
     }},
    {"zero-point-large", "zero points are one too large",
     [](AlteredProduct& a, const ProductReading& r, Index) { return shift_codes(a, r, -1); }},
    {"zero-point-small", "zero points are one too small",
     [](AlteredProduct& a, const ProductReading& r, Index) { return shift_codes(a, r, 1); }},
    {"zero-point-wraps", "a zero point of 0 is read as 16",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         const std::byte zero = of.product.w.extra[of.group_of(k) * of.w.count + n];
         return of.code(k, n) - (zero == std::byte{} ? 16 : 0);
       };
       return r.product.w.format == LowBit::int4;
     }},
    {"difference-saturates", "code minus zero point is kept in eight bits",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         return std::clamp(of.code(k, n), -128.0, 127.0);
       };
       return r.product.w.format == LowBit::int8;
     }},

    // Terms, rows and columns.
    {"depth-tail-dropped", "K is rounded down to a multiple of {}",
     [](AlteredProduct& a, const ProductReading& r, Index width) {
       a.k_end = r.product.k / width * width;
       return a.k_end < r.product.k;
     },
     widths},
    {"last-term-dropped", "the last term of each sum is dropped",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.k_end = r.product.k - 1;
       return true;
     }},
    {"columns-repeated", "the first {} columns of every 32 stand in the others as well",
     [](AlteredProduct& a, const ProductReading& r, Index width) {
       const auto column = [=](const ProductReading& of, Index n) {
         const Index first = n / 32 * 32, other = first + n % 32 % width;
         return other < of.w.count ? other : n;
       };
       a.code = [=](const ProductReading& of, Index k, Index n) {
         return of.code(k, column(of, n));
       };
       return r.w.count > width;
     },
     widths},
    {"upper-rows-zero", "the second half of every {} rows is 0",
     [](AlteredProduct& a, const ProductReading& r, Index rows) {
       a.output = [=](const ProductReading&, double x, Index m, Index) {
         return m % rows >= rows / 2 ? 0 : x;
       };
       return r.product.m > rows / 2;
     },
     widths},
    {"last-columns-unwritten", "columns behind a multiple of {} are not written",
     [](AlteredProduct& a, const ProductReading& r, Index width) {
       a.output = [=](const ProductReading& of, double x, Index, Index n) {
         return n >= of.w.count / width * width ? nan : x;
       };
       return r.w.count % width != 0;
     },
     widths},
    {"totals-in-half", "the sum over groups is kept in f16",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       return round_totals(a, r, Dtype::f16);
     }},
    {"totals-in-bf16", "the sum over groups is kept in bf16",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       return round_totals(a, r, Dtype::bf16);
     }},
    {"product-nan", "every element is NaN",
     [](AlteredProduct& a, const ProductReading&, Index) {
       a.output = [](const ProductReading&, double, Index, Index) { return nan; };
       return true;
     }},
};

bool shift_columns(AlteredProduct& a, const ProductReading& r, Index by) {
  const auto column = [=](const ProductReading& of, Index n) {
    return (n + by + of.w.count) % of.w.count;
  };
  a.code = [=](const ProductReading& of, Index k, Index n) { return of.code(k, column(of, n)); };
  a.scale = [=](const ProductReading& of, Index t, Index n) { return of.scale(t, column(of, n)); };
  return r.w.count > 1;
}

constexpr Index depths[] = {8, 16, 32, 64, 128};

// These are rarer, and are tried where none of those above fits.
constexpr ProductHypothesis rarer_hypotheses[] = {
    {"scale-of-group-behind",
     "every group has the scale of the one before, the first that of the last",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.scale = [](const ProductReading& of, Index t, Index n) {
         return of.scale((t + of.w.groups - 1) % of.w.groups, n);
       };
       return r.has_scales() && r.w.groups > 1;
     }},
    {"zero-point-ignored", "zero points are taken to be 0",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         const LowBitView& w = of.product.w;
         const auto byte = static_cast<std::uint8_t>(w.extra[of.group_of(k) * of.w.count + n]);
         return of.code(k, n) + (w.format == LowBit::int8 ? static_cast<std::int8_t>(byte) : byte);
       };
       return r.traits_of.integer;
     }},
    {"least-code-clamped", "the code -128 is read as -127",
     [](AlteredProduct& a, const ProductReading& r, Index) {
       a.code = [](const ProductReading& of, Index k, Index n) {
         const LowBitView& w = of.product.w;
         const auto zero = static_cast<std::int8_t>(w.extra[of.group_of(k) * of.w.count + n]);
         const double x = of.code(k, n);
         return x + zero == -128 ? x + 1 : x;
       };
       return r.product.w.format == LowBit::int8;
     }},
    {"columns-shifted", "every column holds the one before, the first the last",
     [](AlteredProduct& a, const ProductReading& r, Index) { return shift_columns(a, r, -1); }},
    {"columns-shifted", "every column holds the next one, the last the first",
     [](AlteredProduct& a, const ProductReading& r, Index) { return shift_columns(a, r, 1); }},
    {"last-terms-dropped", "the last {} terms of each sum are dropped",
     [](AlteredProduct& a, const ProductReading&, Index count) {
       a.k_end -= count;
       return a.k_end > 0;
     },
     depths},
    {"activations-in-bf16", "A is rounded to bf16",
     [](AlteredProduct& a, const ProductReading&, Index) {
       a.activation = [](double x) { return round_to(Dtype::bf16, x); };
       return true;
     }},
    {"activations-in-bf16", "A is cast to bf16 by truncation",
     [](AlteredProduct& a, const ProductReading&, Index) {
       return a.activation = &truncated_to_bf16, true;
     }},
    {"activations-in-half", "A is rounded to f16",
     [](AlteredProduct& a, const ProductReading&, Index) {
       a.activation = [](double x) { return round_to(Dtype::f16, x); };
       return true;
     }},
    {"activations-in-tf32", "A is truncated to TF32",
     [](AlteredProduct& a, const ProductReading&, Index) {
       return a.activation = &truncated_to_tf32, true;
     }},
};

// C in the rows and columns of the sample.
RowMajor product_of(const ProductReading& r, const AlteredProduct& a, const ProductSample& s) {
  const Index columns = std::ssize(s.columns);
  RowMajor w(a.k_end, columns);
  const double factor = static_cast<double>(r.product.w.tensor_scale) * a.tensor_scale;
  for (Index j = 0; j < columns; ++j) {
    const Index n = s.columns[usize(j)];
    for (Index k = 0; k < a.k_end; ++k) {
      const Index t = r.group_of(k);
      w(k, j) = (a.code ? a.code(r, k, n) : r.code(k, n)) *
                (a.scale ? a.scale(r, t, n) : r.scale(t, n)) * factor;
    }
  }
  if (a.term >= 0) w.row(a.term) *= a.times;
  RowMajor read;
  if (a.activation) read = s.a.unaryExpr(a.activation);
  const RowMajor& activations = a.activation ? read : s.a;
  // Sums that are not rounded can be added up in any order.
  const Index step = a.total ? r.w.step : a.k_end;
  RowMajor c = RowMajor::Zero(s.a.rows(), columns);
  for (Index k = 0, count; k < a.k_end; k += count) {
    count = std::min(step, a.k_end - k);
    c += activations.middleCols(k, count) * w.middleRows(k, count);
    if (a.total) c = c.unaryExpr([&](double x) { return factor * round_to(*a.total, x / factor); });
  }
  c *= a.factor;
  for (double& x : std::span(c.data(), usize(c.size())))
    if (std::fabs(x) >= overflow_threshold(s.out))
      x = std::copysign(std::numeric_limits<double>::infinity(), x);
  if (a.output)
    for (Index i = 0; i < c.rows(); ++i)
      for (Index j = 0; j < columns; ++j)
        c(i, j) = a.output(r, c(i, j), s.rows[usize(i)], s.columns[usize(j)]);
  return c;
}

struct ProductPrediction {
  RowMajor exact;
};
bool same(const ProductPrediction& a, const ProductPrediction& b) {
  return same_numbers(a.exact, b.exact);
}

// The s of the rows of the sample. An element that is larger than right has larger typical errors.
Fits fits_of(const ProductSample& s, const RowMajor& got, const RowMajor& right,
             const RowMajor& typical_square, const RowMajor& exact) {
  Fits fits;
  const double limit = row_limit_of(s.out, exact.cols());
  for (Index i = 0; i < exact.rows(); ++i) {
    double square = 0, from_right = 0, typical = 0;
    for (Index j = 0; j < exact.cols(); ++j) {
      const double error = error_of(got(i, j), exact(i, j)), x = exact(i, j);
      const double other = error_of(got(i, j), right(i, j));
      square += error * error;
      from_right += other * other;
      if (!std::isfinite(x)) continue;
      const double grown = right(i, j) != 0 && std::isfinite(right(i, j))
                               ? std::max(1.0, std::fabs(x / right(i, j)))
                               : 1;
      const double floor = half_ulp(s.out, x) / 2;
      typical += std::max(std::min(grown * grown, 0x1p40) * typical_square(i, j), floor * floor);
    }
    fits.add(std::sqrt(square), std::sqrt(from_right), std::sqrt(typical), limit);
    fits.add_share(Eigen::RowVectorXd(got.row(i) - right.row(i)),
                   Eigen::RowVectorXd(exact.row(i) - right.row(i)),
                   std::sqrt(typical / static_cast<double>(exact.cols())));
  }
  return fits;
}

// The share of each term a_k w_k in the errors e, by least squares: (sum e a_k w_k) / (sum (a_k
// w_k)^2) over the sample. Returns the term whose share explains most of the errors, and the share.
std::optional<std::pair<Index, double>> term_of_errors(const ProductSample& s,
                                                       const RowMajor& errors) {
  if (!errors.allFinite()) return std::nullopt;
  std::optional<std::pair<Index, double>> found;
  double most = 0;
  for (Index k = 0; k < s.a.cols(); ++k) {
    const RowMajor term = s.a.col(k) * s.w.row(k);
    const double along = errors.cwiseProduct(term).sum(), square = term.squaredNorm();
    if (!(along * along / square > most)) continue;
    most = along * along / square;
    found = {k, along / square};
  }
  return found;
}

// The rows and columns of the sample that are wrong.
struct WrongPart {
  std::vector<char> row, column;
  std::vector<Index> rows, columns;  // their numbers in C

  bool is_all() const { return rows.size() == row.size() && columns.size() == column.size(); }
  // "columns 4 and 5"
  std::string words() const {
    std::string of_rows = rows.size() == row.size() ? "" : list_of("row", rows);
    std::string of_columns = columns.size() == column.size() ? "" : list_of("column", columns);
    return of_rows + (of_rows.empty() || of_columns.empty() ? "" : ", ") + of_columns;
  }
  // The wrong part of x, and the rest of `right`.
  RowMajor mixed(const RowMajor& x, const RowMajor& right) const {
    RowMajor y = right;
    for (Index i = 0; i < y.rows(); ++i)
      for (Index j = 0; j < y.cols(); ++j)
        if (row[usize(i)] && column[usize(j)]) y(i, j) = x(i, j);
    return y;
  }
};

// Where the errors of no row, or of no column, are too large as a whole, all of them count as
// wrong.
WrongPart wrong_part(const ProductSample& s, const RowMajor& got, const RowMajor& right,
                     const RowMajor& typical_square) {
  RowMajor square(got.rows(), got.cols());
  for (Index k = 0; k < square.size(); ++k)
    square.data()[k] = std::pow(error_of(got.data()[k], right.data()[k]), 2);
  const auto find = [&](Index count, Index numbers, const std::vector<Index>& of, const auto& line,
                        std::vector<char>& wrong, std::vector<Index>& found) {
    const double limit = row_limit_of(s.out, numbers);
    for (Index k = 0; k < count; ++k)
      wrong.push_back(!(line(square, k).sum() <= limit * limit * line(typical_square, k).sum()));
    if (std::ranges::find(wrong, char{1}) == wrong.end()) std::ranges::fill(wrong, char{1});
    for (Index k = 0; k < count; ++k)
      if (wrong[usize(k)]) found.push_back(of[usize(k)]);
  };
  WrongPart x;
  find(
      got.rows(), got.cols(), s.rows, [](const RowMajor& m, Index i) { return m.row(i); }, x.row,
      x.rows);
  find(
      got.cols(), got.rows(), s.columns, [](const RowMajor& m, Index j) { return m.col(j); },
      x.column, x.columns);
  return x;
}

// Columns or rows that hold other ones. Calls take(words, C).
template <class Take>
void for_each_misplaced(const ProductSample& s, const RowMajor& got, const RowMajor& right,
                        const Take& take) {
  const auto numbered = [](Misplaced m, const std::vector<Index>& numbers) {
    std::vector<Index> from(usize(numbers.back() + 1));
    for (std::size_t k = 0; k < numbers.size(); ++k)
      from[usize(numbers[k])] = numbers[usize(m.from[k])];
    m.from = std::move(from);
    for (Index& c : m.wrong) c = numbers[usize(c)];
    return m;
  };
  RowMajor moved = right;
  if (const Misplaced m = misplaced_columns(got, right); !m.wrong.empty() && m.all_found) {
    for (const Index c : m.wrong) moved.col(c) = right.col(m.from[usize(c)]);
    take(words_of(numbered(m, s.columns), "column", "C"), moved);
  }
  const Misplaced m = misplaced_columns(got.transpose(), right.transpose());
  if (m.wrong.empty() || !m.all_found) return;
  moved = right;
  for (const Index r : m.wrong) moved.row(r) = right.row(m.from[usize(r)]);
  take(words_of(numbered(m, s.rows), "row", "C"), moved);
}

// What is read from the candidate's own numbers: a factor of C, a term.
template <class Attempt>
void attempt_written(const ProductSample& s, const RowMajor& got, const RowMajor& right,
                     const AlteredProduct& unaltered, const Attempt& attempt) {
  constexpr double least = 0x1p-9;  // as of O
  AlteredProduct scaled = unaltered;
  scaled.factor = got.cwiseProduct(right).sum() / right.squaredNorm();
  if (std::isfinite(scaled.factor) && std::fabs(scaled.factor - 1) > least)
    attempt("product-factor", fmt::format("C is {:.4g} times what it should be", scaled.factor),
            scaled);
  const auto term = term_of_errors(s, got - right);
  if (!term) return;
  AlteredProduct counted = unaltered;
  counted.term = term->first;
  counted.times = term->second > 0 ? 2 : 0;
  attempt(
      "term-counted",
      fmt::format("term {} is {}", term->first, term->second > 0 ? "counted twice" : "left out"),
      counted);
}

// The attempts to explain a wrong product.
class ProductAttempts {
 public:
  ProductAttempts(const Product& p, const TensorView& c, const std::vector<ProductContract>& ladder,
                  const ProductSample& sample, const JudgeOptions& options)
      : ladder_(ladder), sample_(sample), options_(options), reading_(p), typical_(ladder.size()) {
    unaltered_.k_end = p.k;
    right_.exact = product_of(reading_, unaltered_, sample_);
    got_.resize(right_.exact.rows(), right_.exact.cols());
    for (Index i = 0; i < got_.rows(); ++i)
      for (Index j = 0; j < got_.cols(); ++j)
        got_(i, j) = load(c, c.at(0, 0, sample.rows[usize(i)], sample.columns[usize(j)]));
  }

  // The faults that any kernel may have, then the rarer ones, what may be read from the errors, and
  // what is wrong in some rows and columns alone.
  Diagnosis diagnose() {
    Diagnosis d = explain([&](Trials<ProductPrediction>& trials) {
      for (const ProductHypothesis& h : hypotheses) attempt(trials, h);
    });
    if (is_clear(d)) return d;
    add_rarer(d, explain([&](Trials<ProductPrediction>& trials) {
                for (const ProductHypothesis& h : rarer_hypotheses) attempt(trials, h);
                attempt_written(
                    sample_, got_, right_.exact, unaltered_,
                    [&](std::string_view name, std::string words, const AlteredProduct& a) {
                      add(trials, name, std::move(words), product_of(reading_, a, sample_));
                    });
                for_each_misplaced(sample_, got_, right_.exact,
                                   [&](std::string words, const RowMajor& x) {
                                     add(trials, "product-misplaced", std::move(words), x);
                                   });
                const WrongPart part = wrong_part(sample_, got_, right_.exact, typical_of(0));
                if (part.is_all()) return;
                for (const ProductHypothesis& h : hypotheses) attempt(trials, h, &part);
                for (const ProductHypothesis& h : rarer_hypotheses) attempt(trials, h, &part);
              }));
    return d;
  }

 private:
  const RowMajor& typical_of(std::size_t rung) {
    RowMajor& square = typical_[rung];
    if (square.size() == 0) {
      square = replicate(sample_, ladder_[rung], options_).square;
      for (double& x : std::span(square.data(), usize(square.size())))
        if (!std::isfinite(x)) x = 0;
    }
    return square;
  }
  Fits fits(const ProductPrediction& x, std::size_t rung) {
    return fits_of(sample_, got_, right_.exact, typical_of(rung), x.exact);
  }

  void add(Trials<ProductPrediction>& trials, std::string_view name, std::string words,
           RowMajor exact, bool of_a_part = false) {
    ProductPrediction x{std::move(exact)};
    if (same(x, right_)) return;
    const double distance = fits(x, 0).given.excess();
    trials.add({name, std::move(words), distance, std::move(x), of_a_part});
  }
  // With a part, what is not in it is right.
  void attempt(Trials<ProductPrediction>& trials, const ProductHypothesis& h,
               const WrongPart* part = nullptr) {
    for_each_parameter(h.parameters, [&](Index parameter) {
      AlteredProduct a = unaltered_;
      if (!h.alter(a, reading_, parameter)) return;
      std::string words = fmt::format(fmt::runtime(h.words), parameter);
      RowMajor exact = product_of(reading_, a, sample_);
      if (part) {
        words += fmt::format(", in {} alone", part->words());
        exact = part->mixed(exact, right_.exact);
      }
      add(trials, h.name, std::move(words), std::move(exact), part != nullptr);
    });
  }
  template <class Try>
  Diagnosis explain(const Try& try_all) {
    Trials<ProductPrediction> trials;
    try_all(trials);
    return trials.explain(got_.rows(), same, [&](const ProductPrediction& x, const auto& take) {
      for (std::size_t n = 0; n < ladder_.size(); ++n)
        if (take(ladder_[n].name, fits(x, n))) return;
    });
  }

  const std::vector<ProductContract>& ladder_;
  const ProductSample& sample_;
  const JudgeOptions& options_;
  const ProductReading reading_;
  AlteredProduct unaltered_;
  ProductPrediction right_;
  RowMajor got_;
  std::vector<RowMajor> typical_;  // squares of errors on each rung, once asked
};

}  // namespace

void add_product_hypotheses(std::vector<std::string_view>& names) {
  for (const ProductHypothesis& h : hypotheses) names.push_back(h.name);
  for (const ProductHypothesis& h : rarer_hypotheses) names.push_back(h.name);
  for (const std::string_view name : {"product-factor", "term-counted", "product-misplaced"})
    names.push_back(name);
}

Diagnosis diagnose_product(const Product& p, const TensorView& c, const ProductContract* contract,
                           const Verdict& failed, const JudgeOptions& options) {
  if (p.m == 0 || p.n == 0 || p.k == 0) return undiagnosed("there is no product");
  if (p.k * p.n > most_weights) return undiagnosed("there are too many weights");
  const std::vector<ProductContract> ladder =
      contract ? std::vector<ProductContract>{*contract} : product_ladder(p);
  Verdict first = failed;
  if (failed.outside > 0) first.outputs[Output::c].worst = failed.first_failure;
  const ProductSample sample = sample_product(p, c, first, options.seed);
  return ProductAttempts(p, c, ladder, sample, options).diagnose();
}

}  // namespace assay
