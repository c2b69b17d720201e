#include "harness/results/sweep.h"

#include <fmt/format.h>

#include <cerrno>
#include <fstream>
#include <system_error>
#include <vector>

#include "harness/fnv1a.h"
#include "harness/results/schema.h"

namespace assay {
namespace {

std::string digits(const Fnv1a& hash) { return fmt::format("{:016x}", hash.value()); }

}  // namespace

SweepBuild build_of(const Machine& m) { return {m.commit, m.release, m.compiler, m.flags}; }

std::string hash_of(const SweepPlan& plan) { return digits(Fnv1a().add(to_json(plan).dump())); }

std::string hash_of_file(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  std::vector<char> bytes(std::size_t{1} << 20);
  Fnv1a hash;
  while (in.read(bytes.data(), static_cast<std::streamsize>(bytes.size())) || in.gcount() > 0)
    hash.add({bytes.data(), static_cast<std::size_t>(in.gcount())});
  if (!in.eof())
    throw std::system_error(errno != 0 ? errno : EIO, std::generic_category(), "reading " + path);
  return digits(hash);
}

}  // namespace assay
