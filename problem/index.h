// The integer that counts elements, rows and keys everywhere, and its way into the indices of the
// standard library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace assay {

using Index = std::int64_t;

// For subscripts of vectors and arrays: v[usize(j)]. The number is not negative.
constexpr std::size_t usize(Index i) { return static_cast<std::size_t>(i); }

}  // namespace assay
