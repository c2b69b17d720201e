#include "cli/machine.h"

#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

#include "cli/commit.h"
#include "kernels/targets.h"
#include "problem/parallel.h"

namespace assay {

Json machine_facts() {
  std::string model = "unknown";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  return {{"cpu", model},
          {"threads", hardware_threads()},
          {"simd target", kernels::Target().name()},
          {"simd targets", fmt::format("{}", fmt::join(kernels::runnable_targets(), ", "))},
          {"memory MiB", (sysconf(_SC_PHYS_PAGES) / 1024) * (sysconf(_SC_PAGESIZE) / 1024)},
          {"compiler", __VERSION__},
          {"flags", ASSAY_FLAGS},
          {"commit", ASSAY_COMMIT},
          {"assay", ASSAY_RELEASE}};
}

}  // namespace assay
