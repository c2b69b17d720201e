#include "cli/machine.h"

#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

#include "cli/commit.h"
#include "kernels/simd/targets.h"
#include "problem/parallel.h"

namespace assay {
namespace {

// __VERSION__ of gcc is a number alone.
std::string compiler_name() {
#ifdef __clang__
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

}  // namespace

Machine this_machine() {
  Machine m;
  m.cpu = "unknown";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      m.cpu = line.substr(line.find(':') + 2);
      break;
    }
  m.threads = hardware_threads();
  m.simd_target = kernels::Target().name();
  m.simd_targets = fmt::format("{}", fmt::join(kernels::runnable_targets(), ", "));
  m.memory_mib = (sysconf(_SC_PHYS_PAGES) / 1024) * (sysconf(_SC_PAGESIZE) / 1024);
  m.compiler = compiler_name();
  m.flags = ASSAY_FLAGS;
  m.commit = ASSAY_COMMIT;
  m.release = ASSAY_RELEASE;
  return m;
}

}  // namespace assay
