// The integer that counts elements, rows and keys everywhere, and its conversion for indices of the
// standard library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace assay {

using Index = std::int64_t;

// Converts a subscript of a vector or array: v[usize(j)]. The number must not be negative.
constexpr std::size_t usize(Index i) { return static_cast<std::size_t>(i); }

}  // namespace assay
