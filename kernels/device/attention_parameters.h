// The parameters of attention.cl besides its tensors, in the order of the struct. The C++ compiler
// and the OpenCL compiler both read this file.
#define ASSAY_ATTENTION_PARAMETERS(WHOLE, REAL) \
  WHOLE(batch)                                  \
  WHOLE(query_heads)                            \
  WHOLE(kv_heads)                               \
  WHOLE(rows)                                   \
  WHOLE(keys)                                   \
  WHOLE(dim)                                    \
  WHOLE(value_dim)                              \
  WHOLE(causal)                                 \
  WHOLE(window_left)                            \
  WHOLE(window_right)                           \
  WHOLE(finite_min_masks)                       \
  WHOLE(input_dtype)                            \
  WHOLE(output_dtype)                           \
  WHOLE(bias_dtype)                             \
  WHOLE(bias_batch)                             \
  WHOLE(bias_head)                              \
  WHOLE(bias_row)                               \
  WHOLE(bias_key)                               \
  WHOLE(keep_batch)                             \
  WHOLE(keep_head)                              \
  WHOLE(keep_row)                               \
  WHOLE(keep_key)                               \
  WHOLE(threads)                                \
  WHOLE(simd_target)                            \
  REAL(scale)                                   \
  REAL(softcap)                                 \
  REAL(inverse_softcap)                         \
  REAL(unused)
