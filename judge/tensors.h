// Inside judge/: named tensors of callers, checked and copied.
#pragma once

#include <cstdint>
#include <cstddef>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "harness/candidates/named_call.h"
#include "harness/records/safetensors.h"
#include "judge/answers.h"

namespace assay::judging {

// The tensors of a caller by their names. Throws Refused for a struct, name, rank, shape or stride
// that no tensor has, and for a name that stands twice.
std::vector<NamedTensor> named_tensors(const assay_named_tensor* tensors, std::int64_t count);

// "f32 [2, 4, 3, 8]".
std::string described(const assay_tensor& t);
std::vector<Index> shape_of(const assay_tensor& t);
// The number of bytes of one element.
Index width_of(const assay_tensor& t);

// Copies the elements in row-major order.
std::vector<std::byte> contiguous_bytes(const assay_tensor& t);
// Copies the elements of one tensor to another of the same shape and dtype.
void copy_elements(const assay_tensor& from, const assay_tensor& to);

// The tensors as those of a safetensors file. `copies` keeps what had to be copied.
Safetensors stored(const std::vector<NamedTensor>& tensors,
                   std::deque<std::vector<std::byte>>& copies);

}  // namespace assay::judging
