// The verdict on a low-bit product C = A W: every element against its exact value. Every number
// that codes, scales and f32 mean is dyadic, so the sum is computed in integers: 64 or 128 bits
// where they hold it, big ones elsewhere. Bound: docs/bounds_product.md.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "oracle/contract.h"
#include "oracle/verdict.h"
#include "problem/low_bit.h"

namespace assay {

// How a kernel adds up.
enum class ProductOrder : std::uint8_t {
  groups_in_order,  // each group of W for itself, k ascending from 0; then group sums times their
                    // scale, ascending from 0
  groups,           // each group for itself and then the groups, in any order
  any               // dequantized weights, any order
};

struct ProductContract {
  std::string name;
  ProductOrder order = ProductOrder::any;
  double roundoff = 0x1p-24;          // of an accumulation step
  bool products_rounded = false;      // no FMA
  std::optional<Dtype> weight_dtype;  // dequantized weights are rounded to it
  double largest =
      0x1.fffffep127;  // finite limit of the sums; beyond it they are infinite, truncating ones too
  double floor = 0x1p-149;  // the smallest subnormal: no step that underflows errs by more
};

// What is tried for a kernel that declares nothing, the strictest first.
std::vector<ProductContract> product_ladder(Dtype a);

// The exact C[m, n], as the sum of two doubles and at most `radius` more. NaN and infinities follow
// the extended reals.
struct ExactSum {
  double high = 0, low = 0, radius = 0;
  int bits = 64;  // of the integers that it took; 0: big ones, or none where it is not finite
};
ExactSum exact_product(const Product& p, Index m, Index n);

// `c` is [1, 1, M, N]. Of the options, threads, sample_rows, seed, power and untouched count.
// Power: a pair is a term of a sum, its tile a group of W (128 terms where there are no groups);
// exchanged: the weights of k and k + 1 (of the last k and the one before) change places.
Verdict judge_product(const Product& p, const TensorView& c, const ProductContract& contract,
                      const JudgeOptions& options = {});
Verdict judge_product_by_ladder(const Product& p, const TensorView& c,
                                const JudgeOptions& options = {});

// What quantization did, whatever the kernel does: root mean square error over root mean square, of
// W and of A W.
struct QuantizationError {
  double weights = 0, products = 0;
};
QuantizationError quantization_error(const Product& p,
                                     const std::function<double(Index k, Index n)>& original);

// The values that the bytes mean, [k][n] or, of A, [m][k]; scales and tensor scale included (f64
// holds them all).
std::vector<double> decode_weights(const LowBitView& w);
std::vector<double> decode_activations(const Product& p);

}  // namespace assay
