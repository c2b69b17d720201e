// The command assay new-kernel.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "cli/kernel_project.h"
#include "cli/options.h"
#include "cli/tell.h"
#include "harness/files.h"

namespace assay {
namespace {

int new_kernel(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::exists(folder, error) &&
      !(fs::is_directory(folder, error) && fs::is_empty(folder, error))) {
    tell(stderr, "assay: {}: is there already, and is no empty folder; nothing was written\n",
         folder);
    return bad_usage;
  }
  fs::create_directories(folder, error);
  if (error) {
    tell(stderr, "assay: {}: {}\n", folder, error.message());
    return bad_usage;
  }
  try {
    for (const auto& [name, text] : kernel_project())
      write_file(fs::path(folder) / name, std::string(text));
  } catch (const std::exception& e) {
    tell(stderr, "assay: {}\n", e.what());
    return machine_failed;
  }
  tell("{} holds a kernel that is right and slow, and says how to put yours in its place. Now:\n",
       folder);
  tell("  cmake -S {0} -B {1} && cmake --build {1}\n  assay check --kernel {2} --suite plain\n",
       shell_word(folder), shell_word(folder + "/build"),
       shell_word(folder + "/build/libmy_kernel.so"));
  return all_passed;
}

}  // namespace

Command add_new_kernel(CLI::App& app) {
  const auto folder = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("new-kernel",
                                         "Write a CMake project of a kernel library that builds "
                                         "and passes; replace its kernel with yours");
  command->add_option("DIR", *folder, "A folder that does not exist yet, or is empty")->required();
  command->footer(
      "Exit status: 0 written, 2 the folder holds something, or cannot be made.\n\nExamples:\n"
      "  assay new-kernel mine && cmake -S mine -B mine/build && cmake --build mine/build\n"
      "  assay check --kernel mine/build/libmy_kernel.so --suite plain");
  return {command, [folder] { return new_kernel(*folder); }};
}

}  // namespace assay
