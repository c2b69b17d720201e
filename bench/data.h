// The tensors of the benchmarks: contiguous, and filled from a seed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

#include "bench/rounds.h"
#include "kernels/attention/attention.h"
#include "problem/parallel.h"
#include "problem/random.h"

namespace assay::bench {

inline Tensor contiguous(Dtype dtype, const Extents& e) {
  return Tensor(dtype, e, {{e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}, 0, element_count(e)});
}

// Fills a tensor in f32, f16 or bf16 with independent uniform numbers of mean 0 and variance 1.
inline Tensor uniform(Dtype dtype, const Extents& extents, std::uint64_t seed, int threads = 0) {
  Tensor t = contiguous(dtype, extents);
  const Index row = extents[3];
  parallel_for(element_count(extents) / row, threads, [&](Index r) {
    for (Index at = r * row; at < (r + 1) * row; ++at) {
      const std::uint64_t x = SplitMix64::number(seed << 48, static_cast<std::uint64_t>(at));
      const float value = (static_cast<float>(x >> 40) * 0x1p-23f - 1) * 1.7320508f;
      if (dtype == Dtype::f32) std::memcpy(t.bytes() + at * 4, &value, 4);
      else store(t.view(), at, static_cast<double>(value));
    }
  });
  return t;
}

// All tensors that candidates read and write for one problem in one dtype, including gradients if
// they are asked for.
struct Data {
  Data(const AttentionShape& s, Dtype dtype, bool causal, bool backward, int threads = 0) {
    const auto make = [&](Index heads, Index length, Index width) {
      return contiguous(dtype, {s.batch, heads, length, width});
    };
    q = uniform(dtype, s.q_extents(), 1, threads);
    k = uniform(dtype, s.k_extents(), 2, threads);
    v = uniform(dtype, s.v_extents(), 3, threads);
    o = make(s.query_heads, s.rows, s.value_dim);
    lse = contiguous(Dtype::f32, s.lse_extents());
    problem.shape = s;
    problem.scale = default_scale(s.dim);
    problem.causal = causal;
    problem.q = q.view(), problem.k = k.view(), problem.v = v.view();
    if (!backward) return;
    d_o = uniform(dtype, s.o_extents(), 4, threads);
    dq = make(s.query_heads, s.rows, s.dim);
    dk = make(s.kv_heads, s.keys, s.dim);
    dv = make(s.kv_heads, s.keys, s.value_dim);
  }

  AttentionOutput out() const { return {o.view(), lse.view()}; }
  AttentionBackwardInput backward_in() const { return {o.view(), lse.view(), d_o.view()}; }
  AttentionGradients gradients() const { return {dq.view(), dk.view(), dv.view(), {}, {}}; }

  Tensor q, k, v, o, lse;
  Tensor d_o, dq, dk, dv;
  Attention problem;
};

inline float* floats(const Tensor& t) { return reinterpret_cast<float*>(t.bytes()); }

// Throws an exception for a status that is a failure.
inline void expect_success(const char* call, const kernels::Status& status) {
  if (!status.ok())
    throw std::runtime_error(
        fmt::format("{}: {} ({})", call, kernels::message_of(status.code), status.detail));
}

}  // namespace assay::bench
