// Fuzz target: the case notation. Any text either parses to a case that prints back to the same
// case, or is refused with an error that points into the text.
#include <cstdlib>
#include <string_view>

#include "problem/case.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  using namespace assay;
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  try {
    const Case c = parse_case(line);
    if (!(parse_case(print_case(c)) == c)) std::abort();
  } catch (const CaseError& e) {
    if (e.column > size + 1) std::abort();
  }
  return 0;
}
