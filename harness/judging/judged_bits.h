// Inside harness/: what judging bit for bit found.
#pragma once

#include <cstdint>
#include <string>

namespace assay {

struct JudgedBits {
  bool asked = false;
  std::int64_t elements = 0;
  std::string wrong;  // empty: every bit is that of the rule
};

}  // namespace assay
