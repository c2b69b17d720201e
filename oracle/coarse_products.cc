// Products of numbers in fewer bits than f32 has.
#include <bit>
#include <cstdint>

#include "oracle/alteration.h"

namespace assay {
namespace {

// The bits of x in binary32 that the mask has.
double with_bits(double x, std::uint32_t mask) {
  const auto bits = std::bit_cast<std::uint32_t>(static_cast<float>(x));
  return static_cast<double>(std::bit_cast<float>(bits & mask));
}

double rounded_to_tf32(double x) { return truncated_to_tf32(x + (x - truncated_to_tf32(x))); }

constexpr CoarseProducts products[] = {
    // f16 has as many bits as TF32 wherever weights matter.
    {"tf32-products", "products are those of TF32 numbers, which are truncated", &truncated_to_tf32,
     Dtype::f16},
    {"tf32-products", "products are those of TF32 numbers, which are rounded", &rounded_to_tf32,
     Dtype::f16},
    {"bf16-products", "Q, K, V and the weights are rounded to bf16",
     [](double x) { return round_to(Dtype::bf16, x); }, Dtype::bf16},
    {"f16-products", "Q, K, V and the weights are rounded to f16",
     [](double x) { return round_to(Dtype::f16, x); }, Dtype::f16},
};

}  // namespace

bool round_inputs(Alteration& a, double (*rounded)(double)) {
  ProjectedAttention& p = a.problem;
  if (p.projection || p.q.dtype != Dtype::f32) return false;
  for (TensorView* t : {&p.q, &p.k, &p.v}) {
    const TensorView from = *t;
    const bool fits = replace(a, *t, from.shape, [&](Index b, Index h, Index i, Index d) {
      return rounded(load(from, from.at(b, h, i, d)));
    });
    if (!fits) return false;
  }
  return true;
}

double truncated_to_tf32(double x) { return with_bits(x, 0xFFFFE000u); }
double truncated_to_bf16(double x) { return with_bits(x, 0xFFFF0000u); }

std::span<const CoarseProducts> coarse_products() { return products; }

}  // namespace assay
