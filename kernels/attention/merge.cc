#include "kernels/attention/merge.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/simd/convert.h"
#include "kernels/simd/scratch.h"
#include "problem/parallel.h"

namespace assay::kernels {
namespace {

constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

std::string refusal_of(const TensorView& t, const std::string& name, const Extents& shape,
                       bool lse) {
  if (t.shape != shape)
    return fmt::format("{} has shape [{}], not [{}]", name, fmt::join(t.shape, ", "),
                       fmt::join(shape, ", "));
  const bool known =
      t.dtype == Dtype::f32 || (!lse && (t.dtype == Dtype::f16 || t.dtype == Dtype::bf16));
  if (!known)
    return fmt::format("{} is {}; it must be {}", name, format(t.dtype).name,
                       lse ? "f32" : "f32, f16 or bf16");
  if (!t && element_count(shape) > 0) return fmt::format("{} is null", name);
  return "";
}

double element(const TensorView& t, Index position) {
  if (t.dtype == Dtype::f32) return static_cast<const float*>(t.data)[position];
  const std::uint16_t code = static_cast<const std::uint16_t*>(t.data)[position];
  return t.dtype == Dtype::bf16 ? from_bf16(code) : from_f16(code);
}

// Returns the float that rounds to a narrower dtype as `value` would: `value` truncated, with the
// last bit set unless it is exact.
float round_to_odd(double value) {
  float nearest = static_cast<float>(value);
  if (std::isnan(value) || std::isinf(nearest) || static_cast<double>(nearest) == value)
    return nearest;
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value))
    nearest = std::nextafter(nearest, 0.0f);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(nearest) | 1);
}

void write(const TensorView& t, Index position, double value) {
  if (t.dtype == Dtype::f32) static_cast<float*>(t.data)[position] = static_cast<float>(value);
  else
    static_cast<std::uint16_t*>(t.data)[position] =
        t.dtype == Dtype::bf16 ? to_bf16(round_to_odd(value)) : to_f16(round_to_odd(value));
}

struct OfParts {
  std::vector<double> lse, weights;
};

void merge_row(std::span<const AttentionOutput> parts, LogBase base, const AttentionOutput& out,
               Index b, Index h, Index i, OfParts& scratch) {
  auto& [lse, weights] = scratch;
  double m = minus_infinity, sum = 0;
  for (std::size_t s = 0; s < parts.size(); ++s) {
    lse[s] = element(parts[s].lse, parts[s].lse.at(b, h, i, 0));
    m = m < lse[s] ? lse[s] : m;
  }
  for (std::size_t s = 0; s < parts.size(); ++s) {
    weights[s] = lse[s] == minus_infinity   ? 0
                 : base == LogBase::natural ? std::exp(lse[s] - m)
                                            : std::exp2(lse[s] - m);
    sum += weights[s];
  }
  for (Index c = 0; c < out.o.shape[3]; ++c) {
    double o = 0;
    for (std::size_t s = 0; s < parts.size(); ++s)
      if (lse[s] != minus_infinity)
        o = std::fma(weights[s] / sum, element(parts[s].o, parts[s].o.at(b, h, i, c)), o);
    write(out.o, out.o.at(b, h, i, c), o);
  }
  if (out.lse)
    write(out.lse, out.lse.at(b, h, i, 0),
          sum == 0 ? minus_infinity
                   : m + (base == LogBase::natural ? std::log(sum) : std::log2(sum)));
}

}  // namespace

Status attention_merge(std::span<const AttentionOutput> parts, LogBase base,
                       const AttentionOutput& out, int threads) {
  const Extents& shape = out.o.shape;
  const Extents lse_shape{shape[0], shape[1], shape[2], 1};
  for (Index extent : shape)
    if (extent < 0)
      return {StatusCode::invalid_arguments,
              fmt::format("o has shape [{}]", fmt::join(shape, ", "))};
  std::string refusal = refusal_of(out.o, "o", shape, false);
  if (refusal.empty() && out.lse) refusal = refusal_of(out.lse, "lse", lse_shape, true);
  for (std::size_t s = 0; s < parts.size() && refusal.empty(); ++s) {
    refusal = refusal_of(parts[s].o, fmt::format("parts[{}].o", s), shape, false);
    if (refusal.empty())
      refusal = refusal_of(parts[s].lse, fmt::format("parts[{}].lse", s), lse_shape, true);
  }
  if (!refusal.empty()) return {StatusCode::invalid_arguments, refusal};
  try {
    const Index rows = shape[0] * shape[1] * shape[2];
    ScratchPool<OfParts> pool(rows, threads, [&] {
      return std::make_unique<OfParts>(
          OfParts{std::vector<double>(parts.size()), std::vector<double>(parts.size())});
    });
    parallel_for(rows, threads, [&](Index row) {
      merge_row(parts, base, out, row / (shape[1] * shape[2]), row / shape[2] % shape[1],
                row % shape[2], *pool.take());
    });
  } catch (const std::bad_alloc&) {
    return out_of_memory("the weights of {} parts", parts.size());
  }
  return {};
}

}  // namespace assay::kernels
