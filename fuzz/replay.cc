// A fuzz target without a fuzzer: for compilers without libFuzzer, for ctest, and to measure what
// an execution costs.
#include "fuzz/inputs.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size);

int main(int argc, char** argv) {
  std::size_t accepted = 0;
  const int status = assay::for_inputs(argc, argv, [&](const assay::FuzzInput& input) {
    accepted += LLVMFuzzerTestOneInput(input.bytes.get(), input.size) == 0;
  });
  if (status != 0 || accepted > 0) return status;
  std::fprintf(stderr, "every input was refused, so nothing was tested\n");
  return 1;
}
