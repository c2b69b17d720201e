// A process that ends together with everything that it started.
#pragma once

#include <functional>

namespace assay {

// Runs `body` in a child of this process, and ends this process in the way in which the child
// ends: with its exit status, or by its signal. Before that, every process is killed that the child
// has started and left, daemons too. The child is killed if SIGTERM arrives, or SIGINT or SIGHUP
// where they are not ignored, or if the thread ends that started this process. This process must
// have one thread only. Of its descriptors it keeps the standard streams. Throws std::system_error
// if there can be no child.
[[noreturn]] void run_and_end_all(const std::function<int()>& body);

}  // namespace assay
