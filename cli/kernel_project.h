// Inside cli/: the files of a new kernel project, which are compiled into the command.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace assay {

// The files of examples/kernel/ and the header, as pairs of name and text. The build embeds them.
std::vector<std::pair<std::string_view, std::string_view>> kernel_project();

}  // namespace assay
