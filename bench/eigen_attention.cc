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

void eigen_attention(const PlainAttention& p, const float* q, const float* k, const float* v, double* o, double* lse, int threads) {
  constexpr Index block_rows = 64;
  using Map = Eigen::Map<const Rows<float>>;
  std::vector<Rows<double>> keys(static_cast<std::size_t>(p.heads)), values(static_cast<std::size_t>(p.heads));
  parallel_for(p.heads, threads, [&](Index h) {
    keys[static_cast<std::size_t>(h)] = Map(k + h * p.keys * p.dim, p.keys, p.dim).cast<double>();
    values[static_cast<std::size_t>(h)] = Map(v + h * p.keys * p.value_dim, p.keys, p.value_dim).cast<double>();
  });
  std::vector<Rows<double>> scores(static_cast<std::size_t>(threads));
  for_each_block(p, block_rows, threads, [&](Index worker, const RowBlock& b) {
    const Index row0 = b.head * p.rows + b.begin, count = b.end - b.begin;
    const auto h = static_cast<std::size_t>(b.head);
    Rows<double>& s = scores[static_cast<std::size_t>(worker)];
    s.resize(count, b.keys);
    const Rows<double> scaled = static_cast<double>(p.scale) * Map(q + row0 * p.dim, count, p.dim).cast<double>();
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
    Eigen::Map<Rows<double>>(o + row0 * p.value_dim, count, p.value_dim).noalias() = s * values[h].topRows(b.keys);
  });
}

}  // namespace assay::bench
