// The parameters of a device's kernels, as their sources read them, the order of their arguments,
// and their tiles.
#pragma once

#include <cstdint>

#include "kernels/device/attention_parameters.h"
#include "kernels/device/product_parameters.h"

namespace assay::kernels {

#define ASSAY_WHOLE(name) std::int64_t name;
#define ASSAY_REAL(name) float name;
struct AttentionParameters {
  ASSAY_ATTENTION_PARAMETERS(ASSAY_WHOLE, ASSAY_REAL)
};
struct ProductParameters {
  ASSAY_PRODUCT_PARAMETERS(ASSAY_WHOLE, ASSAY_REAL)
};
#undef ASSAY_WHOLE
#undef ASSAY_REAL

enum AttentionArgument {
  query,
  key,
  value,
  bias,
  keep,
  limits,
  slopes,
  sinks,
  query_segment,
  key_segment,
  parameters,
  output,
  lse,
  attention_arguments
};
enum ProductArgument {
  product_a,
  product_codes,
  product_scales,
  product_parameters,
  product_c,
  product_arguments
};

// attention.cl
inline constexpr std::int64_t device_lanes = 16, device_tile_keys = 64, device_tile_rows = 16;

}  // namespace assay::kernels
