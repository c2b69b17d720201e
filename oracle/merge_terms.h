// The terms of the bound of merges, each with its name (see oracle/terms.h). Derivation:
// docs/bounds.md, section 10.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "oracle/terms.h"

namespace assay {

#define ASSAY_MERGE_TERMS(X)                                                                 \
  X(argument)           /* kappa u x */                                                      \
  X(exp)                /* the exponential of the weight */                                  \
  X(exp_per_unit)       /* its error that grows with the argument */                         \
  X(exp_underflow)      /* omega */                                                          \
  X(value_sum)          /* gamma of the products with O_s and of their sum */                \
  X(weight_quotients)   /* the one rounding more of weights that are divided by their sum */ \
  X(weight_sum)         /* gamma of the sum of weights */                                    \
  X(denominator)        /* 1 - defect */                                                     \
  X(value_underflow)    /* of the products with O_s and of the division */                   \
  X(quotient_underflow) /* of weights that are divided by their sum */                       \
  X(division)           /* by the sum of weights */                                          \
  X(lse_weights)        /* -log1p(-defect) */                                                \
  X(log)                /* log_ulp */                                                        \
  X(log_near_one)       /* an ulp of 1/2 near a sum of 1 */                                  \
  X(lse_sum)            /* M + log */                                                        \
  X(lse_base)           /* the product of the logarithm with a constant, for another base */ \
  X(lse_underflow)      /* of that product */

enum class MergeTerm : std::uint8_t {
#define ASSAY_TERM(name) name,
  ASSAY_MERGE_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
};

inline constexpr auto merge_terms = std::to_array<std::string_view>({
#define ASSAY_TERM(name) #name,
    ASSAY_MERGE_TERMS(ASSAY_TERM)
#undef ASSAY_TERM
});

using MergeTerms = Terms<MergeTerm, merge_terms.size()>;

}  // namespace assay
