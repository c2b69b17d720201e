// What a fuzz target demands of every input.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace assay {

// What must hold of any input; what does not is a finding, told in the words that `assay fuzz` listens for.
inline void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "finding: %s\n", what.c_str());
  std::abort();
}

}  // namespace assay
