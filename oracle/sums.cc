#include "oracle/sums.h"

#include <algorithm>
#include <cmath>

#include "oracle/lanes.h"

namespace assay {
namespace {

using safety::unit32;

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// An upper bound of the largest Euclidean norm of a row.
double largest_norm(const RowMajor& q) {
  return q.rows() == 0 ? 0 : std::sqrt(q.rowwise().squaredNorm().maxCoeff()) * (1 + safety::norm);
}

// Whether every sum of `terms` numbers, each at most `largest`, stays in the range of fp32.
bool fits_single(double terms, double largest) {
  return terms * largest < safety::largest_single_sum;
}

template <class T>
const Matrix<T>& keys_of(const KeyValues& kv) {
  if constexpr (std::is_same_v<T, float>) return kv.keys_transposed_single;
  else return kv.keys_transposed;
}
template <class T>
const Matrix<T>& values_of(const KeyValues& kv) {
  if constexpr (std::is_same_v<T, float>) return kv.values_single;
  else return kv.values;
}

// A panel of keys stays in the L1 cache while all rows use it.
template <class T>
void prefix_sums_in(const Matrix<T>& keys, const Matrix<T>& q, Index key0, double above,
                    double floor, RowMajor& out) {
  constexpr int width = lanes_of<T>, vectors = 4, panel = vectors * width;
  for (Index j = 0; j < out.cols(); j += panel)
    for (Index r = 0; r < q.rows(); ++r) {
      LanesOf<T> sum[vectors] = {}, total[vectors] = {};
      const T* column = keys.data() + key0 + j;
      const T* row = q.data() + r * q.cols();
      for (Index d = 0; d < q.cols(); ++d, column += keys.cols())
        for (int l = 0; l < vectors; ++l) {
          sum[l] = multiply_add(row[d] - LanesOf<T>{}, load_lanes(column + l * width), sum[l]);
          total[l] += absolute(sum[l]);
        }
      double* to = out.data() + r * out.cols() + j;
      for (int l = 0; l < vectors; ++l)
        for (int k = 0; k < width; ++k)
          to[l * width + k] = above * static_cast<double>(total[l][k]) + floor;
    }
}

// The state of a row between two chunks of keys.
template <class T>
struct RowState {
  std::vector<T> partial;
  std::vector<double> merged;
  bool first_split = true;
};

// A few vectors of columns of a row, beside each other.
template <class T>
struct ColumnSums {
  static constexpr int most = 4;
  LanesOf<T> centre[most] = {}, sum[most] = {}, partial[most] = {}, total[most] = {};
};

// Adds keys [begin, end) to n vectors of columns. The sums are local, so that they stay in
// registers.
template <class T, bool with_prefix, int n>
void add_keys(const T* values, Index columns, Index begin, Index end, const char* visible,
              const T* centred, const T* kept, ColumnSums<T>& of) {
  using Lanes = LanesOf<T>;
  ColumnSums<T> sums = of;
  for (Index j = begin; j < end; ++j) {
    if (visible && !visible[j]) continue;
    const T* v = values + j * columns;
    const Lanes weight = centred[j] - Lanes{};
    for (int l = 0; l < n; ++l) {
      const Lanes x = load_lanes(v + l * lanes_of<T>);
      sums.sum[l] = multiply_add(weight, absolute(x - sums.centre[l]), sums.sum[l]);
      if constexpr (with_prefix) {
        sums.partial[l] = multiply_add(kept[j] - Lanes{}, x, sums.partial[l]);
        sums.total[l] += absolute(sums.partial[l]);
      }
    }
  }
  of = sums;
}
template <class T, bool with_prefix, class... Rest>
void add_keys(int n, Rest&&... rest) {
  if (n == 4) add_keys<T, with_prefix, 4>(rest...);
  else if (n == 3) add_keys<T, with_prefix, 3>(rest...);
  else if (n == 2) add_keys<T, with_prefix, 2>(rest...);
  else add_keys<T, with_prefix, 1>(rest...);
}

template <class T, bool with_prefix>
void column_sums_in(const Matrix<T>& values, Index key0, const std::vector<SeenKeys>& seen,
                    const PartialSums& counted, const Matrix<T>& centred, const Matrix<T>& kept,
                    const RowMajor& o, RowMajor& out_centred, RowMajor& out_prefix) {
  constexpr int width = lanes_of<T>, most_vectors = ColumnSums<T>::most;
  constexpr Index longest_chunk = 128;
  const Index columns = values.cols(), count = centred.cols();
  const auto padded = usize(columns);
  std::vector<RowState<T>> states(
      seen.size(), {std::vector<T>(padded, 0), std::vector<double>(padded, 0), true});
  for (Index j0 = 0, j1; j0 < count; j0 = j1) {
    j1 = std::min({count, (key0 + j0) / counted.tile * counted.tile + counted.tile - key0,
                   j0 + longest_chunk});
    const bool tile_end = (key0 + j1) % counted.tile == 0;
    for (std::size_t r = 0; r < seen.size(); ++r) {
      const Index begin = std::max(j0, seen[r].begin), end = std::min(j1, seen[r].end);
      if (begin >= end) continue;
      RowState<T>& state = states[r];
      const char* visible = seen[r].visible;
      const auto row = static_cast<Index>(r);
      const T* centred_row = centred.data() + row * count;
      const T* kept_row = with_prefix ? kept.data() + row * count : nullptr;
      const bool last = end == seen[r].end;
      const bool merges =
          with_prefix && (counted.ends_split(key0 + end) || (last && !state.first_split));
      for (Index c = 0; c < columns; c += most_vectors * width) {
        const auto vectors = static_cast<int>(std::min<Index>(most_vectors, (columns - c) / width));
        ColumnSums<T> sums;
        for (int l = 0; l < vectors; ++l) {
          for (int k = 0; k < width; ++k)
            sums.centre[l][k] = static_cast<T>(o(row, c + l * width + k));
          if constexpr (with_prefix)
            sums.partial[l] = load_lanes(state.partial.data() + c + l * width);
        }
        add_keys<T, with_prefix>(vectors, values.data() + key0 * columns + c, columns, begin, end,
                                 visible, centred_row, kept_row, sums);
        for (int l = 0; l < vectors; ++l)
          for (int k = 0; k < width; ++k) {
            const Index column = c + l * width + k;
            out_centred(row, column) += static_cast<double>(sums.sum[l][k]);
            if constexpr (with_prefix) {
              double more = static_cast<double>(sums.total[l][k]);
              const double own = std::fabs(static_cast<double>(sums.partial[l][k]));
              if (merges) {
                double& merged = state.merged[usize(column)];
                const double before = merged;
                merged += static_cast<double>(sums.partial[l][k]);
                if (!state.first_split)
                  more += counted.merge * (std::fabs(before) + own + std::fabs(merged));
                sums.partial[l][k] = 0;
              } else if (tile_end && !last) {
                more += counted.tile_end * own;
              }
              out_prefix(row, column) += more;
            }
          }
        if constexpr (with_prefix)
          for (int l = 0; l < vectors; ++l)
            store_lanes(state.partial.data() + c + l * width, sums.partial[l]);
      }
      if (merges) state.first_split = false;
    }
  }
}

template <class T>
Matrix<T> clamped(const RowMajor& m) {
  return m.cwiseMin(safety::largest_single_weight).template cast<T>();
}

}  // namespace

// bounds.md, 9: sum |S_k| over d
void prefix_sums(const KeyValues& kv, const RowMajor& q, Index key0, Index count, RowMajor& out) {
  const double dim = static_cast<double>(q.cols());
  constexpr Index panel = 4 * lanes_of<float>;
  out.resize(q.rows(), (count + panel - 1) / panel * panel);
  if (kv.single && fits_single(dim, largest_norm(q) * kv.largest_key_norm))
    prefix_sums_in<float>(kv.keys_transposed_single, q.cast<float>(), key0,
                          1 + safety::chain_loss * (dim + 1) * unit32,
                          dim * dim * safety::single_underflow, out);
  else prefix_sums_in<double>(kv.keys_transposed, q, key0, 1, 0, out);
}

// bounds.md, 9: sum |q||k_j|
void absolute_products(const KeyValues& kv, const RowMajor& q, Index key0, Index count,
                       RowMajor& out) {
  const double dim = static_cast<double>(q.cols());
  if (kv.single && fits_single(dim, largest_norm(q) * kv.largest_key_norm)) {
    const Matrix<float> products =
        q.cast<float>().cwiseAbs() * kv.keys_transposed_single.middleCols(key0, count).cwiseAbs();
    out = products.cast<double>() * (1 + safety::one_rounding * (dim + 2) * unit32);
    out.array() += dim * safety::single_underflow;
  } else {
    out.noalias() = q.cwiseAbs() * kv.keys_transposed_absolute.middleCols(key0, count);
  }
}

// bounds.md, 9: products of weights with |v|
void absolute_values(const KeyValues& kv, const RowMajor& weights, Index key0, RowMajor& out) {
  const double n = static_cast<double>(weights.cols());
  const double heaviest = weights.size() ? weights.maxCoeff() : 0.0;
  const double factor = std::max(1.0, std::min(safety::largest_single_weight, heaviest));
  if (kv.single && n * unit32 < safety::largest_single_loss &&
      fits_single(n, kv.largest_value * factor)) {
    const Matrix<float> sums =
        clamped<float>(weights) * kv.values_single.middleRows(key0, weights.cols()).cwiseAbs();
    out = sums.cast<double>() * (1 + safety::one_rounding_twice * (n + 4) * unit32);
    out.array() += n * safety::single_underflow * (1 + kv.largest_value);
  } else {
    out.noalias() = weights * kv.values_absolute.middleRows(key0, weights.cols());
  }
}

// bounds.md, 9: centred sums, and partial sums of p v
void column_sums(const KeyValues& kv, Index key0, const std::vector<SeenKeys>& seen,
                 const PartialSums* partial_sums, const ColumnWeights& weights,
                 RowMajor& out_centred, RowMajor& out_prefix) {
  const Index columns = kv.values.cols(), count = weights.centred.cols();
  out_centred.setZero(weights.centred.rows(), columns);
  out_prefix.setZero(weights.centred.rows(), columns);
  Index chain = 0, merges = 0;
  for (const SeenKeys& s : seen) chain = std::max(chain, s.end - s.begin);
  PartialSums whole(Contract{});
  const PartialSums& counted = partial_sums ? *partial_sums : whole;
  if (counted.split > 0) {
    merges = chain / counted.split + 1;
    chain = std::min(chain, counted.split);
  }
  const double prefix_loss =
      unit32 * (safety::moduli_loss + safety::chain_loss * static_cast<double>(chain + 3 * merges));
  const double heaviest =
      count > 0 ? std::min(safety::largest_single_weight, std::max(1.0, weights.centred.maxCoeff()))
                : 1.0;
  if (kv.single && prefix_loss < safety::largest_single_loss &&
      fits_single(256, heaviest * kv.largest_value)) {
    const Matrix<float> centred = clamped<float>(weights.centred);
    if (partial_sums)
      column_sums_in<float, true>(kv.values_single, key0, seen, counted, centred,
                                  weights.kept.cast<float>(), weights.o, out_centred, out_prefix);
    else
      column_sums_in<float, false>(kv.values_single, key0, seen, counted, centred, {}, weights.o,
                                   out_centred, out_prefix);
    const double n = static_cast<double>(count),
                 floor = n * safety::single_underflow_of_centred * (1 + kv.largest_value);
    const auto centred_total = weights.centred.rowwise().sum().eval();
    out_centred =
        out_centred * (1 + safety::centred_loss * unit32) +
        (safety::centre_loss * unit32 * centred_total.asDiagonal()) * weights.o.cwiseAbs();
    out_centred.array() += floor;
    if (partial_sums) out_prefix = (out_prefix * (1 + prefix_loss)).array() + n * floor;
  } else if (partial_sums) {
    column_sums_in<double, true>(kv.values, key0, seen, counted, weights.centred, weights.kept,
                                 weights.o, out_centred, out_prefix);
  } else {
    column_sums_in<double, false>(kv.values, key0, seen, counted, weights.centred, {}, weights.o,
                                  out_centred, out_prefix);
  }
}

}  // namespace assay
