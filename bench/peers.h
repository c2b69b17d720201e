// Attention forward as one writes it on top of a linear-algebra library: two matrix products and a softmax, a
// block of query rows at a time so that the scores stay in cache. The bar that a fused kernel has to clear.
#pragma once

#include <memory>

#include "problem/low_bit.h"

namespace assay::kernels {
struct LowBitBytes;
}

namespace assay::bench {

// Q [heads, rows, dim], K [heads, keys, dim], V [heads, keys, value_dim], all f32 and contiguous; no extent is 0.
// causal is top-left: key j is visible to row i iff j <= i. Heads count batches too.
struct PlainAttention {
  Index heads = 8, rows = 512, keys = 512, dim = 64, value_dim = 64;
  bool causal = false;
  float scale = 1;

  // Keys that rows before `row_end` see.
  Index keys_before(Index row_end) const { return causal && row_end < keys ? row_end : keys; }
  // Query-key pairs that are visible: the useful work.
  double pairs() const {
    const auto r = static_cast<double>(rows), n = static_cast<double>(keys), h = static_cast<double>(heads);
    return h * (!causal ? r * n : r <= n ? r * (r + 1) / 2 : n * (n + 1) / 2 + (r - n) * n);
  }
  // Of the two products of the forward pass, and of the five of the backward pass: Q K^T again, dO V^T; dS K, dS^T Q, P^T dO.
  double flops() const { return pairs() * 2.0 * static_cast<double>(dim + value_dim); }
  double backward_flops() const { return pairs() * 2.0 * static_cast<double>(3 * dim + 2 * value_dim); }
};

// One problem on one peer: workspace and whatever the library wants prepared are made once, at construction.
// Parallelism is across heads and row blocks on threads of ours, each calling the library single-threaded. On blocks
// of this size that is a tenth to two thirds faster than the libraries' own threads, keeps them to the count asked
// for, and leaves no OpenMP workers spinning into whoever is timed next.
class AttentionPeer {
 public:
  virtual ~AttentionPeer() = default;
  // O [heads, rows, value_dim], LSE [heads, rows].
  virtual void run(const float* q, const float* k, const float* v, float* o, float* lse) = 0;
};

// The backward pass likewise: the scores again, the weights from LSE, and five products. Parallelism is across heads, each
// of which sums its own dK and dV.
class BackwardPeer {
 public:
  virtual ~BackwardPeer() = default;
  // O, dO [heads, rows, value_dim]; gradients have the shapes of Q, K and V.
  virtual void run(const float* q, const float* k, const float* v, const float* o, const float* lse, const float* d_o, float* dq, float* dk, float* dv) = 0;
};

// Only those that the build found: ASSAY_BENCH_OPENBLAS, ASSAY_BENCH_ONEDNN.
std::unique_ptr<AttentionPeer> make_openblas_attention(const PlainAttention& problem, int threads);
std::unique_ptr<BackwardPeer> make_openblas_backward(const PlainAttention& problem, int threads);
std::unique_ptr<AttentionPeer> make_onednn_attention(const PlainAttention& problem, int threads);

// C [m, n] = A [m, k] W [k, n], all f32 and contiguous but for W, which is MXFP4 bytes; `plain` is what those were made from.
struct PlainProduct {
  Index m, n, k;
  const float* a;
  float* c;
  const kernels::LowBitBytes* mxfp4;
  const float* plain;
};
class ProductPeer {
 public:
  virtual ~ProductPeer() = default;
  virtual void run() = 0;
};
// Decodes the bytes a block of columns at a time and multiplies with sgemm, in every run.
std::unique_ptr<ProductPeer> make_openblas_product(const PlainProduct& problem, int threads);
// fp32 weights, decoded once: what a product costs whose weights take four bytes.
std::unique_ptr<ProductPeer> make_onednn_product(const PlainProduct& problem, int threads);
// ggml's own MXFP4 of the plain weights, whose activations it rounds to eight bits. Where a checkout is given: ASSAY_GGML.
std::unique_ptr<ProductPeer> make_ggml_product(const PlainProduct& problem, int threads);

// Eigen in double on the same inputs: what a plain fp64 reference costs, and right to about 1e-13.
void eigen_attention(const PlainAttention& problem, const float* q, const float* k, const float* v, double* o, double* lse, int threads);
// Its gradients, from O and LSE as eigen_attention() left them.
void eigen_backward(const PlainAttention& problem, const float* q, const float* k, const float* v, const double* o, const double* lse, const float* d_o,
                    double* dq, double* dk, double* dv, int threads);

}  // namespace assay::bench
