#include "harness/results/sweep.h"

#include <fmt/format.h>

namespace assay {

SweepBuild build_of(const Machine& m) { return {m.commit, m.release, m.compiler, m.flags}; }

// FNV-1a. It tells plans apart that differ by accident; nobody forges a plan.
std::string hash_of(const SweepPlan& plan) {
  std::uint64_t hash = 14695981039346656037u;
  for (const char c : to_json(plan).dump()) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 1099511628211u;
  }
  return fmt::format("{:016x}", hash);
}

}  // namespace assay
