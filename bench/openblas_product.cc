#include <cblas.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bench/peers.h"
#include "kernels/product/product.h"
#include "problem/parallel.h"

namespace assay::bench {
namespace {

class OpenblasProduct final : public ProductPeer {
 public:
  OpenblasProduct(const PlainProduct& problem, int threads) : p_(problem), threads_(threads) {}

  void run() override {
    openblas_set_num_threads(1);  // for each call; the calls themselves come from several threads
    const Index blocks = (p_.n + columns - 1) / columns;
    parallel_for(blocks, threads_, [&](Index block) {
      thread_local std::vector<float> weights;  // [column][k]
      weights.resize(usize(columns * p_.k));
      const Index first = block * columns, count = std::min(columns, p_.n - first);
      for (Index n = 0; n < count; ++n) decode(first + n, weights.data() + n * p_.k);
      const auto m = static_cast<blasint>(p_.m), n = static_cast<blasint>(count),
                 k = static_cast<blasint>(p_.k);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, p_.a, k, weights.data(), k,
                  0, p_.c + first, static_cast<blasint>(p_.n));
    });
  }

 private:
  static constexpr Index columns = 128;

  void decode(Index n, float* to) const {
    static constexpr float values[] = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                       -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const auto* codes =
        reinterpret_cast<const std::uint8_t*>(p_.mxfp4->codes.data()) + n * ((p_.k + 1) / 2);
    const auto* scales =
        reinterpret_cast<const std::uint8_t*>(p_.mxfp4->scales.data()) + n * ((p_.k + 31) / 32);
    for (Index k = 0; k < p_.k; k += 32) {
      const float scale = decode_scale(scales[k / 32]);
      for (Index i = k; i < std::min(k + 32, p_.k); ++i)
        to[i] = values[codes[i / 2] >> (i % 2 * 4) & 0xF] * scale;
    }
  }
  static float decode_scale(std::uint8_t code) {
    return static_cast<float>(assay::decode(Dtype::e8m0, code));
  }

  PlainProduct p_;
  int threads_;
};

}  // namespace

std::unique_ptr<ProductPeer> make_openblas_product(const PlainProduct& problem, int threads) {
  return std::make_unique<OpenblasProduct>(problem, threads);
}

}  // namespace assay::bench
