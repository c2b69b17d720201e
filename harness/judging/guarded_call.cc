#include "harness/judging/guarded_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "harness/crash_note.h"
#include "harness/shortage.h"
#include "kernels/simd/targets.h"

namespace assay {
namespace {

// Throws ShortageError for the status of a kernel that has found no memory.
std::string failure_of(const kernels::Status& status) {
  if (status.ok()) return {};
  std::string failure = fmt::format("status {} ({}): {}", static_cast<int>(status.code),
                                    kernels::message_of(status.code), status.detail);
  if (status.code == kernels::StatusCode::memory_allocation_failed) throw ShortageError(failure);
  return failure;
}

// Calls see(bytes, count) for each part of the inputs that a call may touch, in order.
template <class See>
void for_each_part(const WatchedInputs& inputs, const See& see) {
  for (const auto& [name, t] : inputs.tensors)
    for (const auto& [begin, end] : t->regions())
      if (begin < end) see(t->bytes() + begin, end - begin);
  if (inputs.keep && !inputs.keep->empty())
    see(reinterpret_cast<const std::byte*>(inputs.keep->data()), inputs.keep->size());
}

std::vector<std::byte> bytes_of(const WatchedInputs& inputs) {
  std::vector<std::byte> all;
  for_each_part(inputs, [&](const std::byte* bytes, std::size_t count) {
    all.insert(all.end(), bytes, bytes + count);
  });
  return all;
}

bool are_as_before(const WatchedInputs& inputs, const std::vector<std::byte>& before) {
  const std::byte* next = before.data();
  bool same = true;
  for_each_part(inputs, [&](const std::byte* bytes, std::size_t count) {
    same = same && std::memcmp(bytes, next, count) == 0;
    next += count;
  });
  return same;
}

// The name of a tensor in messages: in lower case, d_bias for dBias.
std::string tensor_name(Output output) {
  switch (output) {
    case Output::d_bias: return "d_bias";
    case Output::d_sink: return "d_sink";
    default: break;
  }
  std::string name(name_of(output));
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

}  // namespace

std::string call_plainly(Candidate& candidate, const Request& request) {
  return failure_in([&] { return candidate.run(request); });
}

std::string failure_in(const std::function<kernels::Status()>& call) {
  try {
    return failure_of(call());
  } catch (const CandidateDeclined&) {
    throw;  // this is no failure
  } catch (const CandidateError& e) {
    return e.what();
  } catch (const ShortageError&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::system_error& e) {  // there is no thread, no descriptor, no memory to share
    throw ShortageError(e.what());
  } catch (const std::exception& e) {
    return fmt::format("the candidate threw: {}", e.what());
  } catch (...) {
    return "the candidate threw something that is no std::exception";
  }
}

namespace {

// For the words about a crash in the call.
void tell_touched(const WatchedInputs& inputs, const NamedOutputs& outputs) {
  std::vector<NamedBytes> all;
  const auto add = [&](std::string name, const void* begin, std::size_t bytes) {
    if (bytes > 0) all.push_back({std::move(name), reinterpret_cast<std::uint64_t>(begin), bytes});
  };
  for (const auto& [name, t] : inputs.tensors) add(name, t->bytes(), t->size_in_bytes());
  if (inputs.keep) add("keep", inputs.keep->data(), inputs.keep->size());
  for (const auto& [output, t] : outputs) add(tensor_name(output), t->bytes(), t->size_in_bytes());
  call_touches(all);
}

}  // namespace

std::string call_guarded(Candidate& candidate, const Request& request, const WatchedInputs& inputs,
                         const NamedOutputs& outputs, Poison with, bool* answered) {
  return call_guarded([&] { return call_plainly(candidate, request); }, inputs, outputs, with,
                      answered);
}

std::string call_guarded(const std::function<std::string()>& call, const WatchedInputs& inputs,
                         const NamedOutputs& outputs, Poison with, bool* answered) {
  if (answered) *answered = false;
  for (const auto& [output, t] : outputs) poison(*t, with);
  const std::vector<std::byte> before = bytes_of(inputs);
  tell_touched(inputs, outputs);
  if (std::string failure = call(); !failure.empty()) return failure;
  if (answered) *answered = true;
  for (const auto& [name, t] : inputs.tensors)
    if (!t->guards_intact()) return fmt::format("{}: a guard band was overwritten", name);
  for (const auto& [output, t] : outputs)
    if (!t->guards_intact())
      return fmt::format("{}: a guard band was overwritten", tensor_name(output));
  for (const auto& [output, t] : outputs)
    if (!gaps_intact(*t, with))
      return fmt::format("{}: bytes between its elements were overwritten", tensor_name(output));
  if (!are_as_before(inputs, before)) return "an input was changed";
  return {};
}

}  // namespace assay
