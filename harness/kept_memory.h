// For programs: freed memory stays with the process.
#pragma once

#include <cstdlib>  // says whether this is glibc
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace assay {

// A verdict allocates and frees matrices of some megabytes again and again. Taking each from the
// kernel anew, page by page, costs more than half of a small case's time on virtual machines. A
// library leaves this to the program that loads it.
inline void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that every glibc takes
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

}  // namespace assay
