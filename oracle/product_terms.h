// The terms of the bound of products, each with its name (see oracle/terms.h). Derivation:
// docs/bounds_product.md.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "oracle/terms.h"

namespace assay {

// X(name, section of docs/bounds_product.md)
#define ASSAY_PRODUCT_TERMS(X)                                                                     \
  X(group_in_order, 2)                /* of the additions of a group, in order */                  \
  X(group_products_in_order, 2)       /* of its products, where there is no FMA */                 \
  X(group_in_any_order, 2)            /* of the additions of a group, in any order */              \
  X(group_products_any_order, 2)      /* of its products, where there is no FMA */                 \
  X(group_underflow, 2)               /* of its products where they underflow */                   \
  X(group_operands, 2)                /* of its operands that are read as 0 */                     \
  X(group_in_fp64, 2)                 /* of the oracle's own sums of a group */                    \
  X(group_scale, 3)                   /* of the products with the scales, where there is no FMA */ \
  X(groups_in_order, 3)               /* of the additions of groups, in order */                   \
  X(groups_in_order_underflow, 3)     /* of the products with the scales where they underflow */   \
  X(groups_in_any_order, 3)           /* of the additions of groups, in any order */               \
  X(groups_in_any_order_underflow, 3) /* of the products with the scales where they underflow */   \
  X(groups_in_fp64, 3)                /* of the oracle's own sums of groups */                     \
  X(weight_cast, 4)                   /* of weights that are rounded */                            \
  X(weight_cast_underflow, 4)         /* of such weights where they underflow */                   \
  X(sum_in_any_order, 4)              /* of the additions of all terms */                          \
  X(sum_products, 4)                  /* of their products, where there is no FMA */               \
  X(sum_underflow, 4)                 /* of their products where they underflow */                 \
  X(sum_operands, 4)                  /* of operands that are read as 0 */                         \
  X(sum_blocks, 5)                    /* of blocks of products that are aligned */                 \
  X(scaled_weights, 5)                /* of a tensor scale that every weight is multiplied by */   \
  X(tensor_scale, 5)                  /* of the product with a tensor scale */                     \
  X(tensor_scale_underflow, 5)        /* of that product where it underflows */

enum class ProductTerm : std::uint8_t {
#define ASSAY_TERM(name, section) name,
  ASSAY_PRODUCT_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
};

struct ProductTermInfo {
  std::string_view name;
  int section;
};
inline constexpr auto product_terms = std::to_array<ProductTermInfo>({
#define ASSAY_TERM(name, section) {#name, section},
    ASSAY_PRODUCT_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
});

using ProductTerms = Terms<ProductTerm, product_terms.size()>;

}  // namespace assay
