// Views of the structs of kernel.h for the peers' libraries. This header is C++17, as libtorch's
// headers are.
#pragma once

#include <assay/kernel.h>

#include <cstdint>

namespace assay::bench {

inline bool is_f32(const assay_dtype& d) { return d.code == ASSAY_FLOAT && d.bits == 32; }

inline bool is_contiguous(const assay_tensor& t) {
  std::int64_t step = 1;
  for (int axis = 4; axis-- > 0;) {
    if (t.shape[axis] != 1 && t.strides[axis] != step) return false;
    step *= t.shape[axis];
  }
  return true;
}

inline std::int64_t count_of(const assay_tensor& t) {
  return t.shape[0] * t.shape[1] * t.shape[2] * t.shape[3];
}

template <class Body>
void for_each_element(const assay_tensor& t, const Body& body) {
  std::int64_t n = 0;
  for (std::int64_t b = 0; b < t.shape[0]; ++b)
    for (std::int64_t h = 0; h < t.shape[1]; ++h)
      for (std::int64_t i = 0; i < t.shape[2]; ++i)
        for (std::int64_t d = 0; d < t.shape[3]; ++d)
          body(n++, t.offset + b * t.strides[0] + h * t.strides[1] + i * t.strides[2] +
                        d * t.strides[3]);
}

inline assay_status answer(const char* why, const char** reason) {
  *reason = why;
  return why ? ASSAY_UNSUPPORTED : ASSAY_SUCCESS;
}

// What a peer's entry point returns: its table, which `fill` completes, for callers that know this
// version.
template <class Fill>
const assay_kernel* table_of_peer(std::uint32_t version, const char* name, const Fill& fill) {
  static assay_kernel table;
  if (version < ASSAY_VERSION) return nullptr;
  assay_kernel_init(&table, name);
  fill(table);
  return &table;
}

}  // namespace assay::bench
