// How a cache of 8- and 4-bit floats stores tokens (docs/semantics.md, Caches): the scales, and the
// codes under a scale. The generator of inputs uses these functions, and so does the code that
// fills pages for the kernels of libraries.
#pragma once

#include "problem/case.h"
#include "problem/tensor.h"

namespace assay {

// How many columns of a token and head share a scale; at least 1.
Index columns_of_a_scale(const Case& c, Index columns);

// The scales of tokens [B, H, L, columns], as f64 [B, H, L, groups]; empty if the cache has none.
Tensor scales_of_tokens(const Case& c, const TensorView& tokens, Surroundings around);

// The number that has to be rounded to the dtype of the cache, to nearest and ties to even, so that
// the element x is stored under this scale; x itself where the cache has no scales (scale = 1).
double scaled_for_cache(const Case& c, double x, double scale);

// What the tokens mean after they were stored, in f64.
Tensor values_of_tokens(const Case& c, const TensorView& tokens, const TensorView& scales,
                        Surroundings around);
// |x| of every element; 0 where x is not finite. A kernel may round the product of a code and an
// f32 scale. The oracle therefore treats each element of K and V as a sum of one product, and needs
// the magnitudes of these products.
Tensor magnitudes_of(const TensorView& t, Surroundings around = Surroundings::bands);

}  // namespace assay
