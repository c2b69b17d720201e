// The sources of the device's kernels.
#pragma once

#include <string_view>

namespace assay::kernels {

// attention.cl and product.cl with the files that they include. The build puts them there.
extern const std::string_view attention_source, product_source;

}  // namespace assay::kernels
