// The terms of the backward bound, each with its name (see oracle/terms.h). Derivation:
// docs/bounds_backward.md.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "oracle/terms.h"

namespace assay {

// X(name, section of docs/bounds_backward.md)
#define ASSAY_BACKWARD_TERMS(X)                                                                 \
  X(stored_output, 1)            /* of D, what the stored O is off */                           \
  X(delta_sum, 1)                /* of D, the roundings of its sum */                           \
  X(delta_underflow, 1)          /* of D, products that underflow */                            \
  X(delta_operands, 1)           /* of D, operands that are read as 0 */                        \
  X(lse_gradient, 1)             /* of D - dLSE, the roundings that dLSE adds */                \
  X(stored_lse, 1)               /* of L, what the stored LSE is off */                         \
  X(kept_lse, 1)                 /* of L, what the LSE is off of a kernel that keeps P */       \
  X(kept_corrections, 1)         /* of L, the corrections that it applies */                    \
  X(kept_division, 1)            /* of L, its division */                                       \
  X(kept_scale, 1)               /* of L, its folded constant */                                \
  X(kept_fused, 1)               /* of L, its fused argument */                                 \
  X(score, 2)                    /* of the score */                                             \
  X(argument, 2)                 /* of the argument of exp */                                   \
  X(exp, 2)                      /* of exp */                                                   \
  X(exp_per_unit, 2)             /* of exp, the part that grows with its argument */            \
  X(fused_argument, 2)           /* of an argument that is fused */                             \
  X(folded_scale, 2)             /* of a constant folded into such an argument */               \
  X(exp_underflow, 2)            /* of an exp that underflows */                                \
  X(keep_scale, 2)               /* of the product with 1 / (1 - dropout) */                    \
  X(keep_underflow, 2)           /* of that product where it underflows */                      \
  X(value_cast, 2)               /* of the cast of P before dV */                               \
  X(cast_underflow, 2)           /* of such a cast where it underflows */                       \
  X(rows_sum, 3)                 /* of the sums over rows and heads, dV and dK */               \
  X(keys_sum, 3)                 /* of the sum over keys, dQ */                                 \
  X(sum_blocks, 3)               /* of blocks of products that are aligned, in any such sum */  \
  X(weight_operands, 3)          /* of weights in a sum that are read as 0 */                   \
  X(input_operands, 3)           /* of inputs in a sum that are read as 0 */                    \
  X(head_cast, 3)                /* of the heads' dK and dV where these are stored and added */ \
  X(values_sum, 4)               /* of dO.v */                                                  \
  X(values_underflow, 4)         /* of its products where they underflow */                     \
  X(values_operands, 4)          /* of its operands that are read as 0 */                       \
  X(subtraction, 4)              /* of R dP - D */                                              \
  X(score_gradient, 4)           /* of P (R dP - D) */                                          \
  X(score_gradient_underflow, 4) /* of that product where it underflows */                      \
  X(score_gradient_operands, 4)  /* of operands of both that are read as 0 */                   \
  X(softcap_score, 4)            /* of the softcap's factor, by the error of the score */       \
  X(softcap_tanh, 4)             /* of the softcap's factor, by tanh and its division */        \
  X(softcap_factor, 4)           /* of the softcap's factor, by its square and difference */    \
  X(softcap_product, 4)          /* of the product with it */                                   \
  X(softcap_underflow, 4)        /* of that product where it underflows */                      \
  X(softcap_operands, 4)         /* of operands of it and of the factor that are read as 0 */   \
  X(gradient_cast, 4)            /* of the cast of dS */                                        \
  X(late_cast, 4)                /* of dS that is made from rounded weights */                  \
  X(stored_dp, 4)                /* of the cast of dP */                                        \
  X(delta_of_weights, 4)         /* of a D that is the sum of P dP */                           \
  X(stored_twice, 4)             /* of the cast of dS before it is scaled */                    \
  X(late_underflow, 4)           /* of the cast of a scaled dS where it underflows */           \
  X(scaled_underflow, 4)         /* of the product of dS with the scale where it underflows */  \
  X(saturation, 4)               /* of a cast of what is beyond the largest number */           \
  X(bias_sum, 5)                 /* of the sum of dBias */                                      \
  X(sink_argument, 5)            /* of dSink, of the argument of exp */                         \
  X(sink_exp, 5)                 /* of dSink, of exp */                                         \
  X(sink_exp_per_unit, 5)        /* of dSink, of exp, the part that grows with its argument */  \
  X(sink_fused_argument, 5)      /* of dSink, of an argument that is fused */                   \
  X(sink_folded_scale, 5)        /* of dSink, of a constant folded into such an argument */     \
  X(sink_underflow, 5)           /* of dSink, of an exp that underflows */                      \
  X(sink_product, 5)             /* of dSink, of the product with D */                          \
  X(sink_operands, 5)            /* of dSink, of operands that are read as 0 */                 \
  X(sink_sum, 5)                 /* of dSink, of its sum */                                     \
  X(scale_product, 6)            /* of the product with the scale */                            \
  X(sum_underflow, 6)            /* of the products of a sum where they underflow */

enum class BackwardTerm : std::uint8_t {
#define ASSAY_TERM(name, section) name,
  ASSAY_BACKWARD_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
};

struct BackwardTermInfo {
  std::string_view name;
  int section;
};
inline constexpr auto backward_terms = std::to_array<BackwardTermInfo>({
#define ASSAY_TERM(name, section) {#name, section},
    ASSAY_BACKWARD_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
});

using BackwardTerms = Terms<BackwardTerm, backward_terms.size()>;

}  // namespace assay
