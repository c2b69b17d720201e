#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/blocks.h"
#include "bench/peers.h"
#include "bench/row_softmax.h"

namespace assay::bench {

namespace {

class OpenblasAttention final : public AttentionPeer {
 public:
  OpenblasAttention(const PlainAttention& problem, int threads)
      : p_(problem),
        threads_(threads),
        // Blocks are smaller under a causal mask, because half of the block on the diagonal is
        // thrown away.
        block_rows_(std::min<Index>(
            problem.rows, problem.causal ? std::clamp<Index>(problem.rows / 8, 64, 192) : 256)),
        // Rows whose distance is a power of two would share their cache sets.
        row_stride_(problem.keys + 16),
        scores_(usize(threads), std::vector<float>(usize(block_rows_ * row_stride_))) {}

  void run(const float* q, const float* k, const float* v, float* o, float* lse) override {
    openblas_set_num_threads(1);  // for each call; the calls themselves come from several threads
    for_each_block(p_, block_rows_, threads_, [&](Index worker, const RowBlock& b) {
      float* const s = scores_[usize(worker)].data();
      const Index row0 = b.head * p_.rows + b.begin, count = b.end - b.begin;
      const auto m = static_cast<blasint>(count), n = static_cast<blasint>(b.keys),
                 ld = static_cast<blasint>(row_stride_);
      const auto d = static_cast<blasint>(p_.dim), dv = static_cast<blasint>(p_.value_dim);
      float* const out = o + row0 * p_.value_dim;
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, d, p_.scale, q + row0 * p_.dim, d,
                  k + b.head * p_.keys * p_.dim, d, 0, s, ld);
      for (Index i = 0; i < count; ++i) {
        float* const row = s + i * row_stride_;
        const Index visible = p_.keys_before(b.begin + i + 1);
        const float max = row_max(row, visible), sum = exponentiate_row(row, visible, max);
        std::fill(row + visible, row + b.keys, 0.0f);
        lse[row0 + i] = max + std::log(sum);
        // lies in the padding: the weights stay unnormalised, because O has fewer columns
        row[b.keys] = 1 / sum;
      }
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, dv, n, 1, s, ld,
                  v + b.head * p_.keys * p_.value_dim, dv, 0, out, dv);
      for (Index i = 0; i < count; ++i)
        for (Index c = 0; c < p_.value_dim; ++c)
          out[i * p_.value_dim + c] *= s[i * row_stride_ + b.keys];
    });
  }

 private:
  PlainAttention p_;
  int threads_;
  Index block_rows_, row_stride_;
  std::vector<std::vector<float>> scores_;
};

class OpenblasBackward final : public BackwardPeer {
 public:
  OpenblasBackward(const PlainAttention& problem, int threads)
      : p_(problem),
        threads_(threads),
        block_rows_(std::min<Index>(problem.rows, problem.causal ? 64 : 128)),
        row_stride_(problem.keys + 16),
        scores_(usize(threads), std::vector<float>(usize(2 * block_rows_ * row_stride_))) {}

  void run(const float* q, const float* k, const float* v, const float* o, const float* lse,
           const float* d_o, float* dq, float* dk, float* dv) override {
    openblas_set_num_threads(1);
    const auto ld = static_cast<blasint>(row_stride_), d = static_cast<blasint>(p_.dim),
               e = static_cast<blasint>(p_.value_dim);
    for_each_block(p_, p_.rows, threads_, [&](Index worker, const RowBlock& head) {
      float* const weight = scores_[usize(worker)].data();
      float* const d_score = weight + block_rows_ * row_stride_;
      const Index key0 = head.head * p_.keys;
      const float *const keys = k + key0 * p_.dim, *const values = v + key0 * p_.value_dim;
      std::fill_n(dk + key0 * p_.dim, p_.keys * p_.dim, 0.0f);
      std::fill_n(dv + key0 * p_.value_dim, p_.keys * p_.value_dim, 0.0f);
      for (Index begin = 0; begin < p_.rows; begin += block_rows_) {
        const Index end = std::min(p_.rows, begin + block_rows_),
                    row0 = head.head * p_.rows + begin, seen = p_.keys_before(end);
        const auto m = static_cast<blasint>(end - begin), n = static_cast<blasint>(seen);
        const float *const rows = q + row0 * p_.dim, *const d_out = d_o + row0 * p_.value_dim;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, d, p_.scale, rows, d, keys, d, 0,
                    weight, ld);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, e, 1, d_out, e, values, e, 0,
                    d_score, ld);
        for (Index i = 0; i < end - begin; ++i) {
          const Index visible = p_.keys_before(begin + i + 1), at = (row0 + i) * p_.value_dim;
          softmax_gradient(weight + i * row_stride_, d_score + i * row_stride_, visible,
                           lse[row0 + i], dot(o + at, d_o + at, p_.value_dim), p_.scale);
          std::fill(weight + i * row_stride_ + visible, weight + i * row_stride_ + seen, 0.0f);
          std::fill(d_score + i * row_stride_ + visible, d_score + i * row_stride_ + seen, 0.0f);
        }
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, e, m, 1, weight, ld, d_out, e, 1,
                    dv + key0 * p_.value_dim, e);
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, d, m, 1, d_score, ld, rows, d, 1,
                    dk + key0 * p_.dim, d);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, d, n, 1, d_score, ld, keys, d, 0,
                    dq + row0 * p_.dim, d);
      }
    });
  }

 private:
  PlainAttention p_;
  int threads_;
  Index block_rows_, row_stride_;
  std::vector<std::vector<float>> scores_;
};

}  // namespace

std::unique_ptr<BackwardPeer> make_openblas_backward(const PlainAttention& problem, int threads) {
  return std::make_unique<OpenblasBackward>(problem, threads);
}

std::unique_ptr<AttentionPeer> make_openblas_attention(const PlainAttention& problem, int threads) {
  return std::make_unique<OpenblasAttention>(problem, threads);
}

}  // namespace assay::bench
