// The files of a new kernel project, compiled into the command.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace assay {

// Files of examples/kernel/ and the header: name and text, put there by the build.
std::vector<std::pair<std::string_view, std::string_view>> kernel_project();

}  // namespace assay
