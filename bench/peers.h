// Attention forward composed from a linear-algebra library: two matrix products and a softmax, for
// one block of query rows at a time, so that the scores stay in cache. A fused kernel should be
// faster than this.
#pragma once

#include <memory>

#include "problem/low_bit.h"

namespace assay::kernels {
struct LowBitBytes;
}

namespace assay::bench {

// Q [heads, rows, dim], K [heads, keys, dim], V [heads, keys, value_dim] are all f32 and
// contiguous, and no extent is 0. causal starts at the top left: key j is visible to row i if and
// only if j <= i. The heads of all batch elements are counted together.
struct PlainAttention {
  Index heads = 8, rows = 512, keys = 512, dim = 64, value_dim = 64;
  bool causal = false;
  float scale = 1;

  // Returns how many keys the rows before `row_end` see.
  Index keys_before(Index row_end) const { return causal && row_end < keys ? row_end : keys; }
  // Returns the number of visible query-key pairs, which is the useful work.
  double pairs() const {
    const auto r = static_cast<double>(rows), n = static_cast<double>(keys),
               h = static_cast<double>(heads);
    return h * (!causal ? r * n : r <= n ? r * (r + 1) / 2 : n * (n + 1) / 2 + (r - n) * n);
  }
  // Operations of the two products of the forward pass, and of the five products of the backward
  // pass: Q K^T again, dO V^T, dS K, dS^T Q, P^T dO.
  double flops() const { return pairs() * 2.0 * static_cast<double>(dim + value_dim); }
  double backward_flops() const {
    return pairs() * 2.0 * static_cast<double>(3 * dim + 2 * value_dim);
  }
};

// One problem on one peer. Its workspace, and whatever the library wants to prepare, are made once,
// at construction. The heads and row blocks are shared among our threads, and each of these calls
// the library single-threaded. On blocks of this size that is a tenth to two thirds faster than the
// libraries' own threads. It also keeps the thread count to the given one, and leaves no OpenMP
// workers that spin while the next candidate is timed.
class AttentionPeer {
 public:
  virtual ~AttentionPeer() = default;
  // O [heads, rows, value_dim], LSE [heads, rows].
  virtual void run(const float* q, const float* k, const float* v, float* o, float* lse) = 0;
};

// The backward pass in the same way: the scores again, the weights from LSE, and five products. The
// heads are shared among the threads, and each head sums its own dK and dV.
class BackwardPeer {
 public:
  virtual ~BackwardPeer() = default;
  // O and dO are [heads, rows, value_dim]; gradients have the shapes of Q, K and V.
  virtual void run(const float* q, const float* k, const float* v, const float* o, const float* lse,
                   const float* d_o, float* dq, float* dk, float* dv) = 0;
};

// Only the peers that the build found: ASSAY_BENCH_OPENBLAS, ASSAY_BENCH_ONEDNN.
std::unique_ptr<AttentionPeer> make_openblas_attention(const PlainAttention& problem, int threads);
std::unique_ptr<BackwardPeer> make_openblas_backward(const PlainAttention& problem, int threads);
std::unique_ptr<AttentionPeer> make_onednn_attention(const PlainAttention& problem, int threads);

// Computes C [m, n] = A [m, k] W [k, n]. All are f32 and contiguous, except W, which is MXFP4
// bytes; `plain` has the numbers from which the bytes were made.
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
// Decodes the bytes in blocks of columns and multiplies with sgemm, in every run.
std::unique_ptr<ProductPeer> make_openblas_product(const PlainProduct& problem, int threads);
// Uses fp32 weights that are decoded once: this is what a product costs whose weights take four
// bytes.
std::unique_ptr<ProductPeer> make_onednn_product(const PlainProduct& problem, int threads);
// Uses ggml's own MXFP4 of the plain weights; ggml rounds activations to eight bits. Built if a
// checkout is given: ASSAY_GGML.
std::unique_ptr<ProductPeer> make_ggml_product(const PlainProduct& problem, int threads);

// Eigen in double on the same inputs: it shows what a plain fp64 reference costs, and it is right
// to about 1e-13.
void eigen_attention(const PlainAttention& problem, const float* q, const float* k, const float* v,
                     double* o, double* lse, int threads);
// Computes its gradients from the O and LSE that eigen_attention() stored.
void eigen_backward(const PlainAttention& problem, const float* q, const float* k, const float* v,
                    const double* o, const double* lse, const float* d_o, double* dq, double* dk,
                    double* dv, int threads);

}  // namespace assay::bench
