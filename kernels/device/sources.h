// The sources of the OpenCL kernels, compiled into the library as text.
#pragma once

#include <string_view>

namespace assay::kernels {

// attention.cl and product.cl with what they include, put there by the build.
extern const std::string_view attention_source, product_source;

}  // namespace assay::kernels
