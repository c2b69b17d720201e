// Inside cli/: the files that the answers of a command follow from.
#pragma once

#include <set>
#include <string>

namespace CLI {
class App;
}

namespace assay {

// The paths of the regular files that the parsed command reads, and of the file of its candidate:
// PATH of lib:PATH, FILE of python:FILE::FUNCTION.
std::set<std::string> files_of_answers(const CLI::App& command);

}  // namespace assay
