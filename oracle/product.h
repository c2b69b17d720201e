// The verdict on a low-bit product C = A W: every element against its exact value. Every number
// that codes, scales and f32 mean is dyadic, so the sum is computed in integers: 64 or 128 bits
// where they hold it, big ones elsewhere. Bound: docs/bounds_product.md.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "oracle/contract.h"
#include "oracle/verdict.h"
#include "problem/low_bit.h"

namespace assay {

// The dtype of A; f32 if A is low-bit.
inline Dtype dtype_of_a(const Product& p) { return p.a_low ? Dtype::f32 : p.a.dtype; }

// The contracts that are tried for a kernel that declares none, the strictest first.
std::vector<ProductContract> product_ladder(const Product& p);

// The exact C[m, n] differs from the sum of two doubles by at most `radius`. NaN and infinities
// follow the extended reals.
struct ExactSum {
  double high = 0, low = 0, radius = 0;
  // The width of the integers that the sum needed; 0: big integers, or none where the sum is not
  // finite.
  int bits = 64;
};
ExactSum exact_product(const Product& p, Index m, Index n);

// `c` is [1, 1, M, N]. The options that count are threads, sample_rows, seed, power and untouched.
// For the power certificate, a pair is a term of a sum, and its tile is a group of W (128 terms
// where there are no groups). For the change `exchanged`, the weights of k and k + 1 change places
// (for the last k, those of k and k - 1).
Verdict judge_product(const Product& p, const TensorView& c, const ProductContract& contract,
                      const JudgeOptions& options = {});
Verdict judge_product_by_ladder(const Product& p, const TensorView& c,
                                const JudgeOptions& options = {});

// The error of quantization alone, which no kernel changes: the root mean square error divided by
// the root mean square, for W and for A W.
struct QuantizationError {
  double weights = 0, products = 0;
};
QuantizationError quantization_error(const Product& p,
                                     const std::function<double(Index k, Index n)>& original);

// The values that the bytes mean, as [k][n] or, for A, as [m][k]. They include scales and the
// tensor scale; f64 holds all of them exactly.
std::vector<double> decode_weights(const LowBitView& w);
std::vector<double> decode_activations(const Product& p);

}  // namespace assay
