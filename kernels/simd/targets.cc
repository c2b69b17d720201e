#include "kernels/simd/targets.h"

#include "kernels/simd/highway_config.h"

#include <hwy/highway.h>

namespace assay::kernels {
namespace {

// The lowest bit is the best target.
std::int64_t first_of(std::int64_t targets) { return targets & -targets; }

// Highway is asked once: the answer takes several CPUID instructions, which are slow in a virtual
// machine.
std::int64_t runnable() {
  static const std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return targets;
}

std::vector<std::string> names_of(std::int64_t targets) {
  std::vector<std::string> names;
  for (; targets != 0; targets &= targets - 1)
    names.emplace_back(hwy::TargetName(first_of(targets)));
  return names;
}

}  // namespace

std::vector<std::string> compiled_targets() { return names_of(HWY_TARGETS); }

std::vector<std::string> runnable_targets() { return names_of(runnable()); }

Target::Target() : bit_(first_of(runnable())) {}

std::optional<Target> Target::named(std::string_view name) {
  if (name.empty()) return Target();
  for (std::int64_t rest = runnable(); rest != 0; rest &= rest - 1)
    if (name == hwy::TargetName(first_of(rest))) return Target(first_of(rest));
  return std::nullopt;
}

std::string Target::name() const { return hwy::TargetName(bit_); }

}  // namespace assay::kernels
