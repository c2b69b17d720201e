#include "kernels/simd/targets.h"

#include "kernels/simd/highway_config.h"

#include <hwy/highway.h>

#include "kernels/simd/bf16_dots.h"
#include "kernels/simd/bf16_pairs.h"

namespace assay::kernels {
namespace {

// Highway 1.0 has no target with VDPBF16PS. This bit, which Highway does not use, is therefore set
// in addition to that of AVX3.
constexpr std::int64_t bf16_dots = std::int64_t{1} << 40;
static_assert((HWY_TARGETS & bf16_dots) == 0);
constexpr const char* bf16_dots_name = "AVX3_BF16";

// The lowest bit is the best of Highway's targets.
std::int64_t first_of(std::int64_t targets) { return targets & -targets; }

// Highway is asked once: the answer takes several CPUID instructions, which are slow in a virtual
// machine.
std::int64_t runnable() {
  static const std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return targets;
}

// AVX3_BF16 is the best target where it can run. The targets behind it are ordered by speed.
std::vector<std::string> names_of(std::int64_t targets, bool with_bf16_dots) {
  std::vector<std::string> names;
  if (with_bf16_dots) names.emplace_back(bf16_dots_name);
  for (; targets != 0; targets &= targets - 1)
    names.emplace_back(hwy::TargetName(first_of(targets)));
  return names;
}

bool runs_with_bf16_dots() { return (runnable() & HWY_AVX3) != 0 && bf16::runs(); }

}  // namespace

std::vector<std::string> compiled_targets() { return names_of(HWY_TARGETS, ASSAY_BF16_DOTS); }

std::vector<std::string> runnable_targets() { return names_of(runnable(), runs_with_bf16_dots()); }

Target::Target() : bit_(runs_with_bf16_dots() ? HWY_AVX3 | bf16_dots : first_of(runnable())) {}

std::optional<Target> Target::named(std::string_view name) {
  if (name.empty()) return Target();
  if (name == bf16_dots_name && runs_with_bf16_dots()) return Target();
  for (std::int64_t rest = runnable(); rest != 0; rest &= rest - 1)
    if (name == hwy::TargetName(first_of(rest))) return Target(first_of(rest));
  return std::nullopt;
}

std::string Target::name() const {
  return has_bf16_dots(*this) ? bf16_dots_name : hwy::TargetName(bit_);
}

bool has_bf16_dots(const Target& target) { return (target.bit() & bf16_dots) != 0; }

Target without_bf16_dots(const Target& target) { return Target::of_bit(target.bit() & ~bf16_dots); }

}  // namespace assay::kernels
