// The terms of the forward bound, each with its name (see oracle/terms.h). Derivation:
// docs/bounds.md.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "oracle/terms.h"

namespace assay {

// X(name, section of docs/bounds.md)
#define ASSAY_BOUND_TERMS(X)                                                \
  X(dot_any_order, 1)          /* gamma_N a_j */                            \
  X(dot_in_order, 1)           /* eps sum |S_k| */                          \
  X(dot_second_order, 1)       /* eps^2 N^2 a_j */                          \
  X(dot_products, 1)           /* products rounded before they are added */ \
  X(dot_blocks, 1)             /* blocks of products that are aligned */    \
  X(projected_keys, 1)         /* elements of K that are sums themselves */ \
  X(dot_underflow, 1)          /* (2 D + 2) phi */                          \
  X(dot_operands, 1)           /* elements of Q and K that are read as 0 */ \
  X(query_prescale, 1)         /* a query rounded after scaling */          \
  X(query_prescale_product, 1) /* its product with the scale */             \
  X(query_underflow, 1)        /* half its least subnormal times |k| */     \
  X(score_scale, 1)            /* the product of a score with the scale */  \
  X(stored_parts, 1)           /* q.k and its product with the scale */     \
  X(softcap_argument, 1)       /* t / c, rounded twice */                   \
  X(softcap_constant, 1)       /* a constant folded into t / c */           \
  X(softcap_tanh, 1)           /* tanh itself */                            \
  X(softcap_product, 1)        /* the product with c */                     \
  X(softcap_underflow, 1)      /* of the argument and of the product */     \
  X(alibi_product, 1)          /* slope times distance, and the distance */ \
  X(bias_first, 1)             /* all additions of biases but the last */   \
  X(bias_last, 1)              /* the last addition */                      \
  X(bias_growth, 1)            /* additions of what errs already */         \
  X(stored_score, 1)           /* scores stored in a dtype */               \
  X(stored_score_underflow, 1) /* half its least subnormal */               \
  X(argument, 2)               /* kappa u X_j */                            \
  X(exp, 2)                    /* the exponential of the weight */          \
  X(exp_per_unit, 2)           /* its error that grows with the argument */ \
  X(corrections, 2)            /* R_j exponentials of later corrections */  \
  X(folded_constant, 2)        /* scale_error |t_j - t_*| */                \
  X(fused_argument, 2)         /* fma(S, c, -m c) */                        \
  X(lse_argument, 2)           /* kappa u (L - M), of weights from LSE */   \
  X(sink, 2)                   /* the sink's own weight, against |O| */     \
  X(exp_underflow, 3)          /* omega_j */                                \
  X(weight_cast, 3)            /* rho_j */                                  \
  X(weight_cast_underflow, 3)  /* half the least subnormal in rho_j */      \
  X(values_any_order, 3)       /* gamma_N (p_j + rho_j) |v_j| */            \
  X(values_in_order, 3)        /* eps sum |A_k| */                          \
  X(tile_ends, 3)              /* u |A| where a tile ends */                \
  X(split_merges, 3)           /* max(u, eps) (|B| + |A_s| + |B + A_s|) */  \
  X(perturbed_sums, 3)         /* sum X_k: what perturbations meet */       \
  X(value_products, 3)         /* p_j v_j rounded before it is added */     \
  X(value_blocks, 3)           /* blocks of such products */                \
  X(masked_in_blocks, 3)       /* masked keys that take part in blocks */   \
  X(projected_values, 3)       /* elements of V that are sums themselves */ \
  X(corrections_in_sums, 3)    /* R_j in gamma_N and gamma_L */             \
  X(row_sum, 3)                /* gamma_L */                                \
  X(sink_merge, 3)             /* the correction of O for a sink */         \
  X(dropout_scale, 3)          /* 1 / (1 - p) and the product with it */    \
  X(dropped_keys, 3)           /* against |O| */                            \
  X(denominator, 3)            /* 1 - defect */                             \
  X(hull, 3)                   /* what lies outside the hull of V */        \
  X(value_underflow, 3)        /* of the products with V */                 \
  X(value_operands, 3)         /* elements of V that are read as 0 */       \
  X(division, 3)               /* by the row sum */                         \
  X(divided_weights, 3)        /* of every weight before P V */             \
  X(divided_underflow, 3)      /* of that division */                       \
  X(weights_from_lse, 3)       /* e^B_L, common to a row's weights */       \
  X(lse_weights, 4)            /* -log1p(-defect) */                        \
  X(log, 4)                    /* log_ulp */                                \
  X(log_near_one, 4)           /* an ulp of 1/2 near l = 1 */               \
  X(lse_sum, 4)                /* m + log l */                              \
  X(lse_underflow, 4)          /* of log l */

enum class BoundTerm : std::uint8_t {
#define ASSAY_TERM(name, section) name,
  ASSAY_BOUND_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
};

struct BoundTermInfo {
  std::string_view name;
  int section;
};
inline constexpr auto bound_terms = std::to_array<BoundTermInfo>({
#define ASSAY_TERM(name, section) {#name, section},
    ASSAY_BOUND_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
});

using BoundTerms = Terms<BoundTerm, bound_terms.size()>;

}  // namespace assay
