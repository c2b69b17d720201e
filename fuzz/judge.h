// Inside fuzz/: a fuzz target that judges cases. Bytes become a case, and the case is executed with
// the certified verdict and its relations. Every outcome is fine except a wrong candidate or a
// broken oracle. Inputs are usually case lines: mutators move from case to case by meaning.
#pragma once

#include <cstddef>
#include <cstdint>

#include "harness/cases/draw_case.h"

namespace assay {

// Executes a case, and aborts on a finding, which it prints as a case line. The environment
// variable ASSAY_FUZZ_CANDIDATE names the candidate; the default is host.
int judge_bytes(CaseKind kind, const unsigned char* data, std::size_t size);
// Do what libFuzzer asks of a mutation and of a mixture. They return the number of bytes written.
std::size_t mutate_bytes(CaseKind kind, unsigned char* data, std::size_t size, std::size_t most,
                         unsigned seed);
std::size_t cross_bytes(CaseKind kind, const unsigned char* a, std::size_t a_size,
                        const unsigned char* b, std::size_t b_size, unsigned char* out,
                        std::size_t most, unsigned seed);

}  // namespace assay

// Defines the three functions of a target.
#define ASSAY_JUDGE_TARGET(kind)                                                              \
  extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {        \
    return assay::judge_bytes(kind, data, size);                                              \
  }                                                                                           \
  extern "C" std::size_t LLVMFuzzerCustomMutator(unsigned char* data, std::size_t size,       \
                                                 std::size_t most, unsigned seed);            \
  extern "C" std::size_t LLVMFuzzerCustomMutator(unsigned char* data, std::size_t size,       \
                                                 std::size_t most, unsigned seed) {           \
    return assay::mutate_bytes(kind, data, size, most, seed);                                 \
  }                                                                                           \
  extern "C" std::size_t LLVMFuzzerCustomCrossOver(                                           \
      const unsigned char* a, std::size_t a_size, const unsigned char* b, std::size_t b_size, \
      unsigned char* out, std::size_t most, unsigned seed);                                   \
  extern "C" std::size_t LLVMFuzzerCustomCrossOver(                                           \
      const unsigned char* a, std::size_t a_size, const unsigned char* b, std::size_t b_size, \
      unsigned char* out, std::size_t most, unsigned seed) {                                  \
    return assay::cross_bytes(kind, a, a_size, b, b_size, out, most, seed);                   \
  }
