// Inside fuzz/: the check that fuzz targets share.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace assay {

// Requires what must hold for any input. If it does not hold, this is a finding, which is printed
// in the words that `assay fuzz` looks for.
inline void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "finding: %s\n", what.c_str());
  std::abort();
}

}  // namespace assay
