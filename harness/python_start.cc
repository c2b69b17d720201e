#include "harness/python_start.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

namespace assay {
namespace {

namespace fs = std::filesystem;

std::string environment_or(const char* name, const std::string& otherwise) {
  const char* value = getenv(name);
  return value && *value ? value : otherwise;
}

// The first executable of that name on PATH; the name itself if it is a path.
std::string program_of(const std::string& name) {
  if (name.find('/') != name.npos) return name;
  std::istringstream folders(environment_or("PATH", "/usr/bin"));
  for (std::string folder; std::getline(folders, folder, ':');)
    if (const std::string path = folder + "/" + name; access(path.c_str(), X_OK) == 0) return path;
  return name;
}

// Where the package and its library lie: beside an installed command, or in the checkout that built
// this one.
std::vector<std::string> package_environment() {
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  std::vector<std::string> variables;
  const fs::path installed = here / "../share/assay/python";
  const std::string package =
      fs::exists(installed, error) ? fs::canonical(installed, error).string() : ASSAY_PYTHON_SOURCE;
  const std::string more = environment_or("PYTHONPATH", "");
  variables.push_back(fmt::format("PYTHONPATH={}{}{}", package, more.empty() ? "" : ":", more));
  if (!getenv("ASSAY_JUDGE_LIBRARY"))
    for (const char* folder : {"../judge", "../lib"})
      if (const fs::path library = here / folder / "libassay_judge.so";
          fs::exists(library, error)) {
        variables.push_back("ASSAY_JUDGE_LIBRARY=" + fs::canonical(library, error).string());
        break;
      }
  return variables;
}

}  // namespace

ProcessStart python_start(std::vector<std::string> arguments) {
  // Python finds its packages, those of a virtual environment too, by the name it was called by.
  const std::string program = program_of(environment_or("ASSAY_PYTHON", "python3"));
  arguments.insert(arguments.begin(), program);
  return {.program = program,
          .arguments = std::move(arguments),
          .environment = package_environment(),
          .dies_with_thread = true};
}

}  // namespace assay
