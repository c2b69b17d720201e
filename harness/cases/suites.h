// The suites by name, and the cases that they consist of.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "problem/case.h"

namespace assay {

struct Suite {
  std::string_view name;
  std::string_view what;
  std::vector<std::string> notes;  // what was scaled down, and the reason
  std::vector<Case> cases;
};

// Throws std::invalid_argument for an unknown name. The seed changes the data of every case but not
// its shape.
Suite make_suite(std::string_view name, std::uint64_t seed);
std::vector<std::string_view> suite_names();

}  // namespace assay
