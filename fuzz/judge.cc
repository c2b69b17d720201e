#include "fuzz/judge.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "fuzz/fitness.h"
#include "harness/judging/execute.h"
#include "harness/kept_memory.h"
#include "problem/random.h"

namespace assay {
namespace {

// A second fitness beside coverage. libFuzzer keeps an input that sets one of these bytes for the
// first time.
__attribute__((used, section("__libfuzzer_extra_counters"))) std::uint8_t fitness[fitness_counters];

// Makes 64 bytes from a seed with splitmix64.
std::vector<unsigned char> bytes_of_seed(unsigned seed) {
  std::vector<unsigned char> bytes(64);
  SplitMix64 random(seed);
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, 8);
  }
  return bytes;
}

std::size_t write_line(const Case& c, unsigned char* out, std::size_t size, std::size_t most) {
  const std::string line = print_case(c);
  if (line.size() > most) return size;  // unchanged
  std::memcpy(out, line.data(), line.size());
  return line.size();
}

}  // namespace

int judge_bytes(CaseKind kind, const unsigned char* data, std::size_t size) {
  static const std::unique_ptr<Candidate> candidate = [] {
    keep_freed_memory();
    const char* const name = std::getenv("ASSAY_FUZZ_CANDIDATE");
    return make_candidate(name ? name : "host");
  }();
  const Case c = case_of_bytes(kind, {data, size});
  ExecuteOptions options;
  options.power = options.diagnosis = false;
  CaseResult result;
  try {
    result = execute(c, *candidate, options);
  } catch (const CaseError&) {
    return -1;  // this machine cannot run it, so it is not kept
  }
  for (const std::size_t counter : fitness_of(result.verdict)) fitness[counter] = 1;
  if (result.outcome == Outcome::fail || result.outcome == Outcome::error) {
    std::fprintf(stderr, "finding: %s\nfinding case: %s\n", result.reason.c_str(),
                 result.line.c_str());
    std::abort();
  }
  return 0;
}

std::size_t mutate_bytes(CaseKind kind, unsigned char* data, std::size_t size, std::size_t most,
                         unsigned seed) {
  const std::vector<unsigned char> bytes = bytes_of_seed(seed);
  Case c = case_of_bytes(kind, {data, size});
  // Usually one move, sometimes several.
  const int moves = bytes[0] % 4 != 0 ? 1 : 1 + bytes[1] % 4;
  for (int move = 0; move < moves; ++move)
    c = move_case(c, kind, Choices(std::span(bytes).subspan(usize(2 + 12 * move))));
  return write_line(c, data, size, most);
}

std::size_t cross_bytes(CaseKind kind, const unsigned char* a, std::size_t a_size,
                        const unsigned char* b, std::size_t b_size, unsigned char* out,
                        std::size_t most, unsigned seed) {
  const std::vector<unsigned char> bytes = bytes_of_seed(seed);
  return write_line(cross_cases(case_of_bytes(kind, {a, a_size}), case_of_bytes(kind, {b, b_size}),
                                kind, Choices(bytes)),
                    out, 0, most);
}

}  // namespace assay
