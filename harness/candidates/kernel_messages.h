// Inside harness/candidates/: what the process of a library and its owner send to each other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "harness/candidates/kernel_process.h"

namespace assay {

// The descriptors of the library's process: the socket to its owner, and the memory of the tensors.
constexpr int server_socket = 3, server_memory = 4;
constexpr std::size_t most_regions = 48;

enum class Question : std::int32_t { load, ask, run };

struct KernelRequest {
  Question question = Question::load;
  std::int32_t operation = 0;
  KernelProcess::Arguments arguments;
  assay_dtype output{};
  struct Mapping {
    std::uint64_t offset, bytes;
    std::int32_t writable, padding;
  };
  std::array<Mapping, most_regions> mappings{};
  std::uint32_t mapping_count = 0;
  std::int32_t probed = 0;
};

struct KernelResponse {
  std::int32_t status = 0;
  // 1: a stage, whose rows * columns floats follow; the answer is still to come
  std::int32_t told = 0;
  // 1: there is no answer, because the process lacked something. `text` says what.
  std::int32_t shortage = 0;
  std::int32_t forward = 0, backward = 0, product = 0, product_low_bit = 0, decode = 0,
               quantize = 0, dequantize = 0, cache = 0, append = 0, scale_rule = 0, lse = 0,
               probes = 0, workspace_function = 0, has_arithmetic = 0, arithmetic_status = 0;
  assay_stage stage{};
  std::uint64_t workspace = 0;
  assay_arithmetic arithmetic{};
  char text[1024] = "";  // a reason, a name, or why the library cannot be used
};

// Transfers all bytes; returns false at the end of the stream.
bool transfer(int socket, void* data, std::size_t bytes, bool out);

// What is wrong with a stage that a library tells; empty if nothing is wrong.
std::string wrong_with(const assay_stage& made);

}  // namespace assay
