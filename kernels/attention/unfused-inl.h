// Inside kernels/attention/: unfused attention. The file is compiled once for each SIMD target,
// hence the guard.
//
// Every sum is fp32, in an order that depends on the target alone: q.k and the row sum in vector
// lanes, P V key by key.
#include <cstdint>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention/dropout.h"
#include "kernels/attention/element_bias-inl.h"
#include "kernels/simd/register_block-inl.h"
#include "kernels/attention/stages.h"
#include "problem/parallel.h"

#if defined(ASSAY_KERNELS_UNFUSED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ASSAY_KERNELS_UNFUSED_INL_H_
#undef ASSAY_KERNELS_UNFUSED_INL_H_
#else
#define ASSAY_KERNELS_UNFUSED_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace assay::kernels::HWY_NAMESPACE {

inline Index whole_vectors(Index n) {
  return (n + panel_alignment - 1) / panel_alignment * panel_alignment;
}

// A few rows that read the same key/value head. Each key and each value is converted once for all
// of them.
class UnfusedRows {
 public:
  static constexpr Index most = 8;

  explicit UnfusedRows(const Attention& p)
      : p_(p),
        dim_(whole_vectors(p.shape.dim)),
        value_dim_(whole_vectors(p.shape.value_dim)),
        keys_(whole_vectors(p.shape.keys)),
        q_(allocate_floats(most * dim_)),
        row_(allocate_floats(std::max(dim_, value_dim_))),
        scores_(allocate_floats(most * keys_)),
        bias_row_(allocate_floats(keys_)),
        out_(allocate_floats(most * value_dim_)) {}

  // Computes the rows [first, first + count) of the key/value head g. Its query heads come one
  // after the other.
  void run(const AttentionOutput& out, Index b, Index g, Index first, Index count) {
    const AttentionShape& s = p_.shape;
    Index begin = s.keys, end = 0;
    for (Index r = 0; r < count; ++r) {
      Row& row = rows_[r];
      row = {g * s.group() + (first + r) / s.rows, (first + r) % s.rows};
      const KeyRange range = visible_keys(p_, b, row.i);
      row.begin = range.begin;
      row.end = range.end;
      if (range.begin < range.end) {
        begin = std::min(begin, range.begin);
        end = std::max(end, range.end);
      }
      std::fill_n(q_.get() + r * dim_, dim_, 0.0f);
      load_row(p_.q, b, row.head, row.i, s.dim, q_.get() + r * dim_);
    }
    score(b, g, begin, end, count);
    for (Index r = 0; r < count; ++r) softmax(b, r);
    apply_to_values(b, g, begin, end, count);
    for (Index r = 0; r < count; ++r) store(out, b, r);
  }

 private:
  struct Row {
    Index head = 0, i = 0;
    Index begin = 0, end = 0;  // the keys that the intervals of the problem leave
    bool sees_a_key = false;
    float max = 0, sum = 0;
  };

  float* scores_of(Index r) const { return scores_.get() + r * keys_; }

  void score(Index b, Index g, Index begin, Index end, Index count) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    std::fill_n(row_.get(), dim_, 0.0f);
    for (Index j = begin; j < end; ++j) {
      load_row(p_.k, b, g, j, p_.shape.dim, row_.get());
      for (Index r = 0; r < count; ++r) {
        const float* q = q_.get() + r * dim_;
        Vector even = hn::Zero(d), odd = hn::Zero(d);
        for (Index c = 0; c < dim_; c += 2 * n) {
          even = hn::MulAdd(hn::Load(d, q + c), hn::Load(d, row_.get() + c), even);
          odd = hn::MulAdd(hn::Load(d, q + c + n), hn::Load(d, row_.get() + c + n), odd);
        }
        scores_of(r)[j] = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd))) * p_.scale;
      }
    }
  }

  // Turns scores into weights that are not yet divided by their sum. The weight of a masked key is
  // -1, which no other weight is.
  void softmax(Index b, Index r) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    Row& row = rows_[r];
    float* s = scores_of(r);
    // Whole vectors are computed around the keys of the row; the places that are no keys of the row
    // get a score of -inf.
    const Index first = row.begin / n * n, last = std::max(first, (row.end + n - 1) / n * n);
    if (p_.softcap > 0) {
      const Vector cap = hn::Set(d, p_.softcap);
      for (Index j = first; j < last; j += n)
        hn::Store(hn::Mul(cap, tanh_of(d, hn::Div(hn::Load(d, s + j), cap))), d, s + j);
    }
    std::fill(s + first, s + row.begin, minus_infinity);
    std::fill(s + row.end, s + last, minus_infinity);
    const ElementBias biases(p_);
    float* bias = bias_row_.get();
    row.sees_a_key = row.begin < row.end;
    if (biases.active() && row.sees_a_key) {
      biases.row(b, row.head, row.i, row.begin, row.end - row.begin, bias + row.begin);
      row.sees_a_key = false;
      for (Index j = row.begin; j < row.end; ++j) {
        row.sees_a_key |= bias[j] != minus_infinity;
        s[j] = bias[j] == minus_infinity ? minus_infinity : s[j] + bias[j];
      }
    }
    Vector largest = hn::Set(d, p_.sink.empty() ? minus_infinity : p_.sink[row.head]);
    for (Index j = first; j < last; j += n) largest = hn::Max(largest, hn::Load(d, s + j));
    row.max = hn::GetLane(hn::MaxOfLanes(d, largest));
    // Where no score is finite, any finite reference will do: the weights are then 0, where
    // e^(-inf - -inf) would be NaN.
    const Vector reference = hn::Set(d, row.max == minus_infinity ? 0.0f : row.max);
    Vector total = hn::Zero(d);
    for (Index j = first; j < last; j += n) {
      const Vector w = exp_of_nonpositive(d, hn::Sub(hn::Load(d, s + j), reference));
      hn::Store(w, d, s + j);
      total = hn::Add(total, w);
    }
    row.sum = hn::GetLane(hn::SumOfLanes(d, total));
    if (!p_.sink.empty())
      row.sum +=
          hn::GetLane(exp_of_nonpositive(d, hn::Sub(hn::Set(d, p_.sink[row.head]), reference)));
    if (p_.dropout > 0) drop_weights(b, row, s);
    if (biases.active())
      for (Index j = row.begin; j < row.end; ++j)
        if (bias[j] == minus_infinity) s[j] = -1;
  }

  // Applies dropout after the row sums, because the normaliser is computed before dropout.
  void drop_weights(Index b, const Row& row, float* weights) const {
    const float keep_scale = 1.0f / (1.0f - p_.dropout);
    const std::uint64_t threshold = dropout_threshold(p_.dropout);
    for (Index j = row.begin; j < row.end; ++j)
      weights[j] = dropout_word(p_.dropout_seed, b, row.head, row.i, j) >= threshold
                       ? weights[j] * keep_scale
                       : weights[j] * 0.0f;
  }

  void apply_to_values(Index b, Index g, Index begin, Index end, Index count) {
    const Lanes d;
    const Index n = static_cast<Index>(hn::Lanes(d));
    std::fill_n(out_.get(), count * value_dim_, 0.0f);
    std::fill_n(row_.get(), value_dim_, 0.0f);
    for (Index j = begin; j < end; ++j) {
      load_row(p_.v, b, g, j, p_.shape.value_dim, row_.get());
      for (Index r = 0; r < count; ++r) {
        // A masked key is skipped, whatever its value holds, because 0 * NaN would show.
        if (j < rows_[r].begin || j >= rows_[r].end || scores_of(r)[j] < 0) continue;
        const Vector w = hn::Set(d, scores_of(r)[j]);
        float* o = out_.get() + r * value_dim_;
        for (Index c = 0; c < value_dim_; c += n)
          hn::Store(hn::MulAdd(w, hn::Load(d, row_.get() + c), hn::Load(d, o + c)), d, o + c);
      }
    }
  }

  void store(const AttentionOutput& out, Index b, Index r) {
    const Row& row = rows_[r];
    float* o = out_.get() + r * value_dim_;
    // A sum of 0 means 0/0 if the row sees a key, and a fully masked row if it sees none.
    if (row.sum != 0)
      for (Index c = 0; c < p_.shape.value_dim; ++c) o[c] /= row.sum;
    else
      std::fill_n(o, p_.shape.value_dim,
                  row.sees_a_key ? std::numeric_limits<float>::quiet_NaN() : 0.0f);
    store_row(out.o, b, row.head, row.i, p_.shape.value_dim, o);
    if (!out.lse) return;
    const float lse = row.sum == 0 ? minus_infinity
                                   : static_cast<float>(static_cast<double>(row.max) +
                                                        std::log(static_cast<double>(row.sum)));
    store_row(out.lse, b, row.head, row.i, 1, &lse);
  }

  const Attention& p_;
  const Index dim_, value_dim_, keys_;  // rounded up to whole vectors
  hwy::AlignedFreeUniquePtr<float[]> q_, row_, scores_, bias_row_, out_;
  Row rows_[most];
};

inline void unfused(const Attention& p, const AttentionOutput& out, int threads) {
  const AttentionShape& s = p.shape;
  const Index rows = s.group() * s.rows,
              blocks = (rows + UnfusedRows::most - 1) / UnfusedRows::most,
              tasks = s.batch * s.kv_heads * blocks;
  ScratchPool<UnfusedRows> scratch(tasks, threads,
                                   [&] { return std::make_unique<UnfusedRows>(p); });
  parallel_for(tasks, threads, [&](Index task) {
    const auto mine = scratch.take();
    const Index group = task / blocks, first = task % blocks * UnfusedRows::most;
    mine->run(out, group / s.kv_heads, group % s.kv_heads, first,
              std::min(UnfusedRows::most, rows - first));
  });
}

}  // namespace assay::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
