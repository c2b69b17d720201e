// Inside harness/: where a process met the signal that ends it. A handler of the process notes the
// address in shared memory, and who waits for the process reads it there afterwards.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace assay {

// Lies in shared memory, so whoever can write to that memory can write anything into it. It changes
// the words about the end of a process, and nothing else.
struct CrashNote {
  enum class Access : std::int32_t { unknown, read, write };
  // no_address: the processor refused the access and says no address; stack: the one of the first
  // thread was too short; forbidden: there is memory, which may not be accessed so
  enum class Place : std::int32_t { address, no_address, stack, forbidden };

  std::atomic<std::uint32_t> written;  // 2: the other fields hold
  Access access;
  Place place;
  std::uint64_t address;
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

// From now on this process notes a segmentation fault or a bus error, and then ends as it would
// have done without. Handlers that were there before (those of sanitizers) run afterwards; one that
// is installed later takes the place of this one. A process that is forked from this one notes
// nothing.
void note_crashes(CrashNote& to);

// Bytes with a name, as a message calls them.
struct NamedBytes {
  std::string name;
  std::uint64_t begin, bytes;
};

// What a process that runs its candidate itself shares with the process that waits for it: the
// note, and the bytes of the call that ran.
struct CrashPage {
  struct Entry {
    std::array<char, 24> name;
    std::uint64_t begin, bytes;
  };
  CrashNote note;
  std::uint32_t count;
  std::array<Entry, 32> entries;
};

// Notes the crashes of this process, and the bytes of its calls, on the page.
void note_crashes_on(CrashPage& page);
// A call begins that touches these bytes. Does nothing where no page is set; names that are too
// long are cut, and bytes that are too many are left out.
void call_touches(std::span<const NamedBytes> bytes);
std::vector<NamedBytes> touched_bytes(const CrashPage& page);

// "a read 28 bytes beyond the end of v", if one of these bytes is anywhere near; empty if nothing
// was noted.
std::string where_it_crashed(const CrashNote& note, std::span<const NamedBytes> near_to);

}  // namespace assay
