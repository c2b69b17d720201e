#include "harness/results/sweep.h"

#include <fmt/format.h>

#include <cerrno>
#include <fstream>
#include <string_view>
#include <system_error>
#include <vector>

namespace assay {
namespace {

// FNV-1a. It tells apart what differs by accident; nobody forges a plan.
class Hash {
 public:
  void add(std::string_view bytes) {
    for (const char c : bytes) {
      hash_ ^= static_cast<unsigned char>(c);
      hash_ *= 1099511628211u;
    }
  }
  std::string digits() const { return fmt::format("{:016x}", hash_); }

 private:
  std::uint64_t hash_ = 14695981039346656037u;
};

}  // namespace

SweepBuild build_of(const Machine& m) { return {m.commit, m.release, m.compiler, m.flags}; }

std::string hash_of(const SweepPlan& plan) {
  Hash hash;
  hash.add(to_json(plan).dump());
  return hash.digits();
}

std::string hash_of_file(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::vector<char> bytes(std::size_t{1} << 20);
  Hash hash;
  while (in.read(bytes.data(), static_cast<std::streamsize>(bytes.size())) || in.gcount() > 0)
    hash.add({bytes.data(), static_cast<std::size_t>(in.gcount())});
  if (!in.eof())
    throw std::system_error(errno != 0 ? errno : EIO, std::generic_category(), "reading " + path);
  return hash.digits();
}

}  // namespace assay
