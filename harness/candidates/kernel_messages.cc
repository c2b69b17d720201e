#include "harness/candidates/kernel_messages.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

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

std::string read_conventions(const assay_conventions& declared, assay_conventions& read) {
  constexpr std::size_t first_size = offsetof(assay_conventions, weightless_rows);
  if (declared.version < 2 || declared.version > ASSAY_VERSION ||
      declared.struct_size < first_size || declared.struct_size > sizeof(assay_conventions) ||
      declared.struct_size % sizeof(std::int32_t) != 0)
    return fmt::format(
        "its conventions have version = {} and struct_size = {}, not {} and a multiple of {} from "
        "{} to {}",
        declared.version, declared.struct_size, ASSAY_VERSION, sizeof(std::int32_t), first_size,
        sizeof(assay_conventions));
  assay_conventions_init(&read);
  std::memcpy(&read, &declared, declared.struct_size);
  for (const ConventionRow& row : table_of<Convention>) {
    const std::int32_t value = read.*c_conventions[static_cast<std::size_t>(row.value)];
    if (value < 0 || usize(value) > row.values.size())
      return fmt::format("its conventions have {} = {}, outside [0, {}]", row.name, value,
                         row.values.size());
  }
  return {};
}

Conventions conventions_of(const assay_conventions& read) {
  Conventions found;
  for (const Convention c : values_of<Convention>)
    if (const std::int32_t value = read.*c_conventions[static_cast<std::size_t>(c)]; value > 0)
      found.declare(c, usize(value - 1));
  return found;
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
