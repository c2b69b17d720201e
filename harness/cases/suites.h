// The suites by name, and the cases that they consist of.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "problem/case.h"
#include "problem/features.h"

namespace assay {

struct Suite {
  std::string_view name;
  std::string_view what;
  std::vector<std::string> notes;  // what was scaled down, and the reason
  std::vector<Case> cases;
};

// Throws std::invalid_argument for an unknown name. The seed changes the data of every case but not
// its shape. A covering array is drawn without the levels that need a feature that is not in `has`,
// so it covers everything that is left. No case of the suite needs such a feature, and the suite
// may be empty.
Suite make_suite(std::string_view name, std::uint64_t seed, const Features& has = {});
std::vector<std::string_view> suite_names();

}  // namespace assay
