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

enum class Question : std::int32_t { load, ask, run, run_at_once, memory };

struct KernelRequest {
  Question question = Question::load;
  std::int32_t operation = 0;
  KernelProcess::Arguments arguments, other;  // `other` of the second call of two at once
  assay_dtype output{};
  struct Mapping {
    std::uint64_t offset, bytes;
    std::int32_t writable, output;  // a workspace is writable, and no output
  };
  std::array<Mapping, most_regions> mappings{};
  std::uint32_t mapping_count = 0;
  std::int32_t probed = 0;
  std::int32_t rounds = 0;   // how often two calls run at once
  std::int32_t variant = 0;  // that a question is about, or KernelProcess::any_variant
};

struct KernelResponse {
  std::int32_t status = 0;
  // 1: a stage, whose rows * columns floats follow; the answer is still to come
  std::int32_t told = 0;
  // 1: there is no answer, because the process lacked something. `text` says what.
  std::int32_t shortage = 0;
  std::int32_t forward = 0, backward = 0, product = 0, product_low_bit = 0, decode = 0,
               quantize = 0, dequantize = 0, cache = 0, append = 0, scale_rule = 0, lse = 0,
               probes = 0, workspace_function = 0, not_reentrant = 0, variant_count = 0,
               variants_differ = 0, d_lse = 0, no_d_sink = 0, flushes = 0, product_batch = 0;
  std::int32_t has_arithmetic = 0, arithmetic_status = 0;
  std::uint64_t invariant_to = 0;
  assay_conventions conventions{};
  assay_stage stage{};
  std::uint64_t workspace = 0;
  UsedMemory memory{};
  // Of an answer about a product, the one for products counts.
  assay_arithmetic arithmetic{};
  assay_product_arithmetic product_arithmetic{};
  char text[1024] = "";  // a reason, a name, or why the library cannot be used
};

// Transfers all bytes; returns false at the end of the stream.
bool transfer(int socket, void* data, std::size_t bytes, bool out);

// The field of each convention, in the order of the table of conventions. A field holds 0 if
// nothing is declared, and otherwise the place of the value in the table, counted from 1.
inline constexpr std::array c_conventions = {
    &assay_conventions::masked_rows,   &assay_conventions::masked_lse,
    &assay_conventions::masked_nan,    &assay_conventions::anchor,
    &assay_conventions::subnormals,    &assay_conventions::weightless_rows,
    &assay_conventions::weightless_lse};
static_assert(c_conventions.size() == table_of<Convention>.size());
// Reads the conventions that a library declares. A struct of an older header is shorter, and
// declares nothing of what it lacks. Returns what is wrong with them; empty if nothing is wrong.
std::string read_conventions(const assay_conventions& declared, assay_conventions& read);
Conventions conventions_of(const assay_conventions& read);

// What is wrong with a stage that a library tells; empty if nothing is wrong.
std::string wrong_with(const assay_stage& made);

}  // namespace assay
