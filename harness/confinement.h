// Inside harness/: what keeps the code of others in its process apart from the processes that judge
// it.
#pragma once

namespace assay {

// Closes this process to others of the same user: they can no longer open its descriptors, read or
// write its memory, or attach to it as debuggers. A debugger that is attached already stays.
void close_to_others();

// Gives up, for this process and all that it starts, what reaches into processes that were there
// before: root's capabilities to do so, the rights of setuid programs, and (if the kernel has
// Landlock, since Linux 5.19) all access to the memory and the descriptors of such processes. The
// process can be debugged again.
void give_up_other_processes();

// Closes every descriptor from this number on.
void close_from(int first);

}  // namespace assay
