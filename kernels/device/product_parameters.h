// What product.cl is told besides its matrices: read by C++ and by the OpenCL compiler alike.
#define ASSAY_PRODUCT_PARAMETERS(WHOLE, REAL) \
  WHOLE(rows)                                 \
  WHOLE(columns)                              \
  WHOLE(depth)                                \
  WHOLE(group)                                \
  WHOLE(input_dtype)                          \
  WHOLE(output_dtype)                         \
  WHOLE(format)                               \
  WHOLE(threads)                              \
  WHOLE(simd_target)                          \
  REAL(tensor_scale)                          \
  REAL(unused)
