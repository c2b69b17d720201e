// SIMD targets: the compiled ones, the ones that this machine can run, and one of them as a value
// that travels with a call.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace assay::kernels {

std::vector<std::string> compiled_targets();
// The compiled targets that this machine can run, the best first.
std::vector<std::string> runnable_targets();

// A compiled target that this machine can run.
class Target {
 public:
  Target();  // the best target
  // Returns nothing if no target of this name is compiled, or if this machine cannot run it. The
  // empty name means the best target.
  static std::optional<Target> named(std::string_view name);
  // Returns the target whose bit() this is.
  static Target of_bit(std::int64_t bit) { return Target(bit); }

  std::string name() const;
  std::int64_t bit() const { return bit_; }  // as Highway numbers it
  bool operator==(const Target&) const = default;

 private:
  explicit Target(std::int64_t bit) : bit_(bit) {}
  std::int64_t bit_;
};

}  // namespace assay::kernels
