#include "harness/crash_note.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

#include "harness/text.h"

namespace assay {
namespace {

// What the handler needs. It calls nothing but functions that are safe in a handler.
struct Noting {
  CrashNote* to = nullptr;
  pid_t process = 0;
  std::uint64_t stack_top = 0;             // of the first thread
  struct sigaction segmentation{}, bus{};  // what was there before
} noting;

// A stack that has overflowed is no place for a handler. Handlers of sanitizers need much of it.
alignas(64) std::array<std::byte, std::size_t{1} << 18> handler_stack;

CrashNote::Access access_of([[maybe_unused]] const ucontext_t& context) {
#if defined(__x86_64__)
  constexpr greg_t page_fault = 14, by_a_write = 2;
  const auto& registers = context.uc_mcontext.gregs;
  if (registers[REG_TRAPNO] == page_fault)
    return (registers[REG_ERR] & by_a_write) != 0 ? CrashNote::Access::write
                                                  : CrashNote::Access::read;
#endif
  return CrashNote::Access::unknown;
}

std::uint64_t stack_pointer_of([[maybe_unused]] const ucontext_t& context) {
#if defined(__x86_64__)
  return static_cast<std::uint64_t>(context.uc_mcontext.gregs[REG_RSP]);
#elif defined(__aarch64__)
  return context.uc_mcontext.sp;
#else
  return 0;
#endif
}

// Whether the first thread was beyond the end of its stack: what lies between the stack pointer and
// the begin of the stack belongs to it.
bool is_on_stack(std::uint64_t address, const ucontext_t& context) {
  constexpr std::uint64_t below = 1 << 16;  // a call or a red zone may be what is too much
  const std::uint64_t pointer = stack_pointer_of(context);
  if (syscall(SYS_gettid) != noting.process) return false;
  return pointer > below && address >= pointer - below && address < noting.stack_top;
}

CrashNote::Place place_of(const siginfo_t& info, const ucontext_t& context) {
  // Linux says so of addresses that no process can have, and of vectors that are not aligned.
  if (info.si_code == SI_KERNEL) return CrashNote::Place::no_address;
  if (is_on_stack(reinterpret_cast<std::uint64_t>(info.si_addr), context))
    return CrashNote::Place::stack;
  return info.si_signo == SIGSEGV && info.si_code == SEGV_ACCERR ? CrashNote::Place::forbidden
                                                                 : CrashNote::Place::address;
}

void note(int signal, siginfo_t* info, void* context) {
  CrashNote& to = *noting.to;
  const auto& at = *static_cast<const ucontext_t*>(context);
  const bool is_sent = info->si_code <= 0;  // by kill() or raise()
  std::uint32_t nobody = 0;
  if (!is_sent && getpid() == noting.process && to.written.compare_exchange_strong(nobody, 1)) {
    to.address = reinterpret_cast<std::uint64_t>(info->si_addr);
    to.access = access_of(at);
    to.place = place_of(*info, at);
    to.written = 2;
  }
  // The instruction runs again when this returns, and meets what was there before.
  sigaction(signal, signal == SIGBUS ? &noting.bus : &noting.segmentation, nullptr);
  if (is_sent) raise(signal);
}

std::string told_access(CrashNote::Access access) {
  switch (access) {
    case CrashNote::Access::read: return "a read";
    case CrashNote::Access::write: return "a write";
    default: return "an access";
  }
}

struct Distance {
  const NamedBytes* of = nullptr;
  std::uint64_t bytes = std::numeric_limits<std::uint64_t>::max();
  bool before = false;
};

// How far the address is from the nearest of these bytes: 0 inside and directly behind them.
Distance nearest(std::uint64_t address, std::span<const NamedBytes> all) {
  Distance found;
  for (const NamedBytes& b : all) {
    const bool before = address < b.begin;
    const std::uint64_t end = b.begin + b.bytes;
    const std::uint64_t bytes = before ? b.begin - address : address < end ? 0 : address - end;
    if (bytes < found.bytes) found = {&b, bytes, before};
  }
  return found;
}

std::string told_distance(std::uint64_t address, const Distance& d, bool forbidden) {
  if (d.before)
    return fmt::format("{} before the begin of {}", counted(d.bytes, "byte"), d.of->name);
  if (address < d.of->begin + d.of->bytes)
    return fmt::format("at byte {} of {}{}", address - d.of->begin, d.of->name,
                       forbidden ? ", which may only be read" : "");
  return d.bytes == 0
             ? fmt::format("directly behind the end of {}", d.of->name)
             : fmt::format("{} beyond the end of {}", counted(d.bytes, "byte"), d.of->name);
}

CrashPage* page = nullptr;

}  // namespace

void note_crashes_on(CrashPage& to) {
  page = &to;
  note_crashes(to.note);
}

void call_touches(std::span<const NamedBytes> bytes) {
  if (!page) return;
  page->count = 0;
  for (const NamedBytes& b : bytes.first(std::min(bytes.size(), page->entries.size()))) {
    CrashPage::Entry& entry = page->entries[page->count++];
    entry.name.fill('\0');
    std::copy_n(b.name.begin(), std::min(b.name.size(), entry.name.size() - 1), entry.name.begin());
    entry.begin = b.begin;
    entry.bytes = b.bytes;
  }
}

std::vector<NamedBytes> touched_bytes(const CrashPage& from) {
  std::vector<NamedBytes> all;
  const std::size_t count = std::min<std::size_t>(from.count, from.entries.size());
  for (const CrashPage::Entry& e : std::span(from.entries).first(count)) {
    const auto end = std::ranges::find(e.name, '\0');
    all.push_back({std::string(e.name.begin(), end), e.begin, e.bytes});
  }
  return all;
}

void note_crashes(CrashNote& to) {
  const std::byte here{};
  noting.to = &to;
  noting.process = getpid();
  noting.stack_top = reinterpret_cast<std::uint64_t>(&here);
  stack_t stack{};
  stack.ss_sp = handler_stack.data();
  stack.ss_size = handler_stack.size();
  sigaltstack(&stack, nullptr);
  struct sigaction action{};
  action.sa_sigaction = note;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &noting.segmentation);
  sigaction(SIGBUS, &action, &noting.bus);
}

std::string where_it_crashed(const CrashNote& note, std::span<const NamedBytes> near_to) {
  // Indices of 32 bits that overflow are off by 2^32 elements at most. Tensors of a call lie
  // farther than this from everything else.
  constexpr std::uint64_t reach = std::uint64_t{1} << 36, null_page = 1 << 16;
  if (note.written != 2) return {};
  const std::string access = told_access(note.access);
  if (note.place == CrashNote::Place::no_address)
    return fmt::format("{} at an address that no process has, or that is not aligned", access);
  if (note.place == CrashNote::Place::stack)
    return fmt::format("{} beyond the end of its stack", access);
  const std::uint64_t address = note.address;
  if (address < null_page)
    return fmt::format("{} at address {:#x} ({})", access, address,
                       address == 0
                           ? "a null pointer"
                           : fmt::format("{} behind a null pointer", counted(address, "byte")));
  if (const Distance d = nearest(address, near_to); d.of && d.bytes < reach)
    return fmt::format("{} {}", access,
                       told_distance(address, d, note.place == CrashNote::Place::forbidden));
  return fmt::format("{} at address {:#x}, far from every tensor of the call", access, address);
}

}  // namespace assay
