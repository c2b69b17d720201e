#include <Eigen/Core>
#include <cmath>
#include <vector>

#include "bench/blocks.h"
#include "bench/peers.h"

namespace assay::bench {

namespace {
template <class T>
using Rows = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
}

void eigen_attention(const PlainAttention& p, const float* q, const float* k, const float* v,
                     double* o, double* lse, int threads) {
  constexpr Index block_rows = 64;
  using Map = Eigen::Map<const Rows<float>>;
  std::vector<Rows<double>> keys(usize(p.heads)), values(usize(p.heads));
  parallel_for(p.heads, threads, [&](Index h) {
    keys[usize(h)] = Map(k + h * p.keys * p.dim, p.keys, p.dim).cast<double>();
    values[usize(h)] = Map(v + h * p.keys * p.value_dim, p.keys, p.value_dim).cast<double>();
  });
  std::vector<Rows<double>> scores(usize(threads));
  for_each_block(p, block_rows, threads, [&](Index worker, const RowBlock& b) {
    const Index row0 = b.head * p.rows + b.begin, count = b.end - b.begin;
    const auto h = usize(b.head);
    Rows<double>& s = scores[usize(worker)];
    s.resize(count, b.keys);
    const Rows<double> scaled =
        static_cast<double>(p.scale) * Map(q + row0 * p.dim, count, p.dim).cast<double>();
    s.noalias() = scaled * keys[h].topRows(b.keys).transpose();
    for (Index i = 0; i < count; ++i) {
      const Index visible = p.keys_before(b.begin + i + 1);
      auto row = s.row(i).head(visible).array();
      const double max = row.maxCoeff();
      row = (row - max).exp();
      const double sum = row.sum();
      row *= 1 / sum;
      s.row(i).tail(b.keys - visible).setZero();
      lse[row0 + i] = max + std::log(sum);
    }
    Eigen::Map<Rows<double>>(o + row0 * p.value_dim, count, p.value_dim).noalias() =
        s * values[h].topRows(b.keys);
  });
}

void eigen_backward(const PlainAttention& p, const float* q, const float* k, const float* v,
                    const double* o, const double* lse, const float* d_o, double* dq, double* dk,
                    double* dv, int threads) {
  constexpr Index block_rows = 64;
  using Map = Eigen::Map<const Rows<float>>;
  using Out = Eigen::Map<Rows<double>>;
  for_each_block(p, p.rows, threads, [&](Index, const RowBlock& head) {
    const Index row_base = head.head * p.rows, key_base = head.head * p.keys;
    const Rows<double> keys = Map(k + key_base * p.dim, p.keys, p.dim).cast<double>();
    const Rows<double> values = Map(v + key_base * p.value_dim, p.keys, p.value_dim).cast<double>();
    Out key_gradient(dk + key_base * p.dim, p.keys, p.dim),
        value_gradient(dv + key_base * p.value_dim, p.keys, p.value_dim);
    key_gradient.setZero();
    value_gradient.setZero();
    Rows<double> weight, d_score;
    for (Index begin = 0; begin < p.rows; begin += block_rows) {
      const Index end = std::min(p.rows, begin + block_rows), count = end - begin,
                  row0 = row_base + begin, seen = p.keys_before(end);
      const Rows<double> scaled =
          static_cast<double>(p.scale) * Map(q + row0 * p.dim, count, p.dim).cast<double>();
      const Rows<double> d_out = Map(d_o + row0 * p.value_dim, count, p.value_dim).cast<double>();
      weight.noalias() = scaled * keys.topRows(seen).transpose();
      d_score.noalias() = d_out * values.topRows(seen).transpose();
      for (Index i = 0; i < count; ++i) {
        const Index visible = p.keys_before(begin + i + 1);
        const double mean = d_out.row(i).dot(
            Eigen::Map<const Eigen::RowVectorXd>(o + (row0 + i) * p.value_dim, p.value_dim));
        auto row = weight.row(i).head(visible).array();
        row = (row - lse[row0 + i]).exp();
        weight.row(i).tail(seen - visible).setZero();
        d_score.row(i).array() = weight.row(i).array() * (d_score.row(i).array() - mean);
      }
      value_gradient.topRows(seen).noalias() += weight.transpose() * d_out;
      key_gradient.topRows(seen).noalias() += d_score.transpose() * scaled;
      Out(dq + row0 * p.dim, count, p.dim).noalias() =
          static_cast<double>(p.scale) * (d_score * keys.topRows(seen));
    }
  });
}

}  // namespace assay::bench
