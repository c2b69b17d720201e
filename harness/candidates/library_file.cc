#include "harness/candidates/library_file.h"

#include <cstddef>
#include <fstream>
#include <functional>
#include <string_view>
#include <vector>

namespace assay {

LibraryFile::LibraryFile(const std::string& candidate) {
  if (!candidate.starts_with("lib:")) return;
  path_ = candidate.substr(4);
  facts_ = facts();
  hash_ = hash();
}

bool LibraryFile::changed() {
  if (!facts_) return false;
  const auto now = facts();
  const auto same_time = [](const timespec& a, const timespec& b) {
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
  };
  if (now && now->st_dev == facts_->st_dev && now->st_ino == facts_->st_ino &&
      now->st_size == facts_->st_size && same_time(now->st_mtim, facts_->st_mtim))
    return false;
  if (!now || hash() != hash_) return true;
  facts_ = now;
  return false;
}

std::optional<struct stat> LibraryFile::facts() const {
  struct stat found{};
  if (stat(path_.c_str(), &found) != 0) return std::nullopt;
  return found;
}

std::optional<std::uint64_t> LibraryFile::hash() const {
  std::ifstream in(path_, std::ios::binary);
  if (!in) return std::nullopt;
  constexpr std::size_t at_a_time = std::size_t{1} << 20;
  constexpr std::uint64_t odd = 0x9E3779B97F4A7C15;
  std::vector<char> bytes(at_a_time);
  std::uint64_t sum = 0;
  while (in.read(bytes.data(), static_cast<std::streamsize>(bytes.size())) || in.gcount() > 0)
    sum = (sum ^
           std::hash<std::string_view>()({bytes.data(), static_cast<std::size_t>(in.gcount())})) *
          odd;
  return sum;
}

}  // namespace assay
