#include "cli/file_roles.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "cli/answer_files.h"
#include "cli/exit_status.h"
#include "harness/files.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

// A file that an option names.
struct NamedFile {
  std::string said;  // "--json=run.json"
  std::string path;
  bool written;
};

// A role is the name of a validator, which is how it is found again.
constexpr const char *writes = "writes", *appends = "appends", *stores = "stores", *reads = "reads",
                     *reads_run = "reads a run", *judges = "judges", *starts = "starts",
                     *summarizes = "summarizes";

// The reason why the path cannot be written, or nothing.
std::string why_not_writable(const std::string& path) {
  std::error_code error;
  const bool there = fs::exists(path, error);
  // There is a circle of links or a name that is too long, for example. A file beside it could
  // perhaps be opened, but what is at this path could not be read.
  if (error) return fmt::format("writing {}: {}", path, error.message());
  // It is a pipe or /dev/stdout, for example.
  if (there && !fs::is_regular_file(path, error) && !fs::is_directory(path, error)) return {};
  try {
    const NewFile probe(path);
    return {};
  } catch (const std::system_error& e) {
    return e.what();
  }
}

CLI::Validator role_of_output(const char* role) {
  return {[](std::string& path) { return why_not_writable(path); }, "FILE", role};
}
CLI::Validator role_of_input(const char* role) {
  return {[](std::string&) { return std::string(); }, "", role};
}

bool has_role(CLI::Option& option, const char* role) {
  try {
    return option.get_validator(role) != nullptr;
  } catch (const CLI::OptionNotFound&) {
    return false;
  }
}

// SQLite has more files than the one that is named.
void add_store(std::vector<NamedFile>& files, const std::string& said, const std::string& path,
               bool written) {
  for (const char* suffix : {"", "-wal", "-shm", "-journal"})
    files.push_back({said, path + suffix, written});
}

void add_programs(std::vector<NamedFile>& files, const std::string& said,
                  const std::string& folder) {
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    struct stat facts{};
    if (stat(at->path().c_str(), &facts) == 0 && S_ISREG(facts.st_mode) &&
        (facts.st_mode & 0111) != 0)
      files.push_back({said, at->path(), false});
  }
}

// The file that a candidate comes from; empty: from none that its name tells.
std::string file_of_candidate(std::string name) {
  constexpr std::string_view library = "lib:", python = "python:";
  if (name.starts_with(library)) return name.substr(library.size());
  if (name.starts_with(python)) name.erase(0, python.size());
  const auto function = name.find("::");
  return function == std::string::npos ? "" : name.substr(0, function);
}

std::string step_summary_path() {
  const char* path = std::getenv("GITHUB_STEP_SUMMARY");
  return path ? path : "";
}

void add_files(std::vector<NamedFile>& files, CLI::Option& option) {
  for (const std::string& value : option.results()) {
    const std::string said = fmt::format("{}={}", option.get_name(), value);
    if (has_role(option, writes)) files.push_back({said, value, true});
    if (has_role(option, appends)) add_store(files, said, value, true);
    if (has_role(option, stores)) add_store(files, said, value, false);
    if (has_role(option, summarizes))
      files.push_back(
          {fmt::format("{} (GITHUB_STEP_SUMMARY={})", option.get_name(), step_summary_path()),
           step_summary_path(), true});
    if (has_role(option, reads)) files.push_back({said, value, false});
    if (has_role(option, reads_run))
      add_store(files, said, value.substr(0, value.rfind('#')), false);
    if (has_role(option, starts)) add_programs(files, said, value);
    if (has_role(option, judges))
      if (const std::string file = file_of_candidate(value); !file.empty())
        files.push_back({said, file, false});
  }
}

// Where a file that is not there yet would be made.
fs::path place_of(const std::string& path) {
  std::error_code error;
  const fs::path whole = fs::absolute(without_links(path), error);
  const fs::path place = fs::weakly_canonical(whole, error);
  return error ? whole.lexically_normal() : place;
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat of_a{}, of_b{};
  const bool a_there = stat(a.c_str(), &of_a) == 0, b_there = stat(b.c_str(), &of_b) == 0;
  if (a_there != b_there) return false;
  if (!a_there) return place_of(a) == place_of(b);
  return S_ISREG(of_a.st_mode) && of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

}  // namespace

CLI::Validator writable() { return role_of_output(writes); }
CLI::Validator appended() {
  return {[](std::string& path) {
            std::error_code error;
            const bool other = fs::exists(path, error) && !fs::is_regular_file(path, error);
            return other ? fmt::format("writing {}: is no regular file", path)
                         : why_not_writable(path);
          },
          "FILE", appends};
}
CLI::Validator step_summary() {
  return {[](std::string&) {
            const std::string path = step_summary_path();
            return path.empty() ? "the environment variable GITHUB_STEP_SUMMARY names no file; a "
                                  "step of GitHub Actions sets it"
                                : why_not_writable(path);
          },
          "", summarizes};
}
CLI::Validator stored() { return role_of_input(stores); }
CLI::Validator read_only() { return role_of_input(reads); }
CLI::Validator read_run() { return role_of_input(reads_run); }
CLI::Validator judged() { return role_of_input(judges); }
CLI::Validator programs() { return role_of_input(starts); }

std::set<std::string> files_of_answers(const CLI::App& command) {
  std::vector<NamedFile> files;
  for (CLI::Option* option : const_cast<CLI::App&>(command).get_options())
    if (option->count() > 0 && (has_role(*option, reads) || has_role(*option, judges)))
      add_files(files, *option);
  std::set<std::string> paths;
  std::error_code error;
  for (const NamedFile& file : files)
    if (fs::is_regular_file(file.path, error)) paths.insert(file.path);
  return paths;
}

void refuse_shared_files(const CLI::App& command) {
  std::vector<NamedFile> files;
  for (CLI::Option* option : const_cast<CLI::App&>(command).get_options())
    if (option->count() > 0) add_files(files, *option);
  for (const NamedFile& output : files) {
    if (!output.written) continue;
    for (const NamedFile& other : files) {
      if (other.said == output.said || !same_file(output.path, other.path)) continue;
      // Such outputs follow one another, also in a regular file.
      if (other.written && goes_to_standard_stream(output.path)) continue;
      throw UsageError(other.written
                           ? fmt::format("{} and {} would be one file", output.said, other.said)
                           : fmt::format("{} would overwrite a file of {}, which is read",
                                         output.said, other.said));
    }
  }
}

}  // namespace assay
