#include "harness/confinement.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace assay {
namespace {

// Each of these reaches into other processes, into the kernel, or into the memory of the machine.
// CAP_PERFMON, CAP_BPF and CAP_CHECKPOINT_RESTORE are newer than the headers of some systems.
constexpr int perfmon = 38, bpf = 39, checkpoint_restore = 40;
constexpr int capabilities[] = {CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_MODULE,     CAP_SYS_RAWIO,
                                CAP_MKNOD,      perfmon,       checkpoint_restore, bpf};

// Without these capabilities in the bounding set, a program of root does not get them back.
void give_up_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
  if (syscall(SYS_capget, &header, sets.data()) != 0) return;
  for (const int capability : capabilities) {
    prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    auto& set = sets[static_cast<unsigned>(capability) / 32];
    const std::uint32_t others = ~(std::uint32_t{1} << (capability % 32));
    set.effective &= others, set.permitted &= others, set.inheritable &= others;
  }
  syscall(SYS_capset, &header, sets.data());
}

// A process in a domain of Landlock reaches no process outside the domain. The domain itself
// forbids nothing: what it handles is allowed below the root folder.
void enter_domain() {
  constexpr long first_that_allows_renaming = 2;
  const long version =
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  if (version < first_that_allows_renaming) return;  // also where there is no Landlock
  landlock_ruleset_attr handled{};                   // newer headers have more fields
  handled.handled_access_fs = LANDLOCK_ACCESS_FS_REFER;
  const int rules = static_cast<int>(
      syscall(SYS_landlock_create_ruleset, &handled, sizeof handled.handled_access_fs, 0));
  if (rules < 0) return;
  const int root = open("/", O_PATH | O_CLOEXEC);
  const landlock_path_beneath_attr everything{LANDLOCK_ACCESS_FS_REFER, root};
  if (syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &everything, 0) == 0)
    syscall(SYS_landlock_restrict_self, rules, 0);
  close(root);
  close(rules);
}

}  // namespace

void close_to_others() { prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); }

void give_up_other_processes() {
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  enter_domain();
  give_up_capabilities();
  prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

void close_from(int first) {
#ifdef SYS_close_range
  if (syscall(SYS_close_range, first, ~0U, 0) == 0) return;
#endif
  // Linux before 5.9. The limit of descriptors may be a thousand million, so those that are open
  // are looked up.
  std::vector<int> open_ones;
  if (DIR* folder = opendir("/proc/self/fd")) {
    while (const dirent* entry = readdir(folder)) open_ones.push_back(std::atoi(entry->d_name));
    closedir(folder);
  }
  for (const int number : open_ones)
    if (number >= first) close(number);
}

}  // namespace assay
