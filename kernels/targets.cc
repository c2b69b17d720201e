#include "kernels/targets.h"

#include "kernels/highway_config.h"

#include <hwy/highway.h>

#include "kernels/attention.h"

namespace assay::kernels {
namespace {

std::vector<std::string> names_of(std::int64_t targets) {
  std::vector<std::string> names;
  for (; targets != 0; targets &= targets - 1) names.emplace_back(hwy::TargetName(targets & -targets));
  return names;
}

}  // namespace

std::vector<std::string> compiled_targets() { return names_of(HWY_TARGETS); }

std::vector<std::string> runnable_targets() { return names_of(hwy::SupportedTargets() & HWY_TARGETS); }

bool force_target(std::string_view name) {
  hwy::SetSupportedTargetsForTest(0);
  if (name.empty()) return true;
  for (std::int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1) {
    const std::int64_t target = rest & -rest;
    if (name != hwy::TargetName(target)) continue;
    hwy::SetSupportedTargetsForTest(target);
    return true;
  }
  return false;
}

std::string chosen_target() { return attention_forward_target(); }

}  // namespace assay::kernels
