#include "harness/candidates/kernel_messages.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>

namespace assay {

bool transfer(int socket, void* data, std::size_t bytes, bool out) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = out ? send(socket, at, bytes, MSG_NOSIGNAL) : recv(socket, at, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    bytes -= usize(n);
  }
  return true;
}

std::string wrong_with(const assay_stage& made) {
  constexpr std::int64_t most = 1 << 24;
  if (made.version != ASSAY_VERSION || made.struct_size != sizeof(assay_stage))
    return "the library told a stage of another version or size";
  if (made.stage < ASSAY_STAGE_QUERY || made.stage > ASSAY_STAGE_SCORE_GRADIENTS)
    return fmt::format("the library told a stage of number {}", made.stage);
  if (!made.data || made.rows < 0 || made.columns < 0 || made.rows > most || made.columns > most ||
      made.rows * made.columns > most)
    return fmt::format("the library told a stage of {} rows and {} columns", made.rows,
                       made.columns);
  return {};
}

}  // namespace assay
