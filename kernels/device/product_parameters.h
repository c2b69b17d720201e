// The parameters of product.cl besides its matrices. The C++ compiler and the OpenCL compiler both
// read this file.
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
