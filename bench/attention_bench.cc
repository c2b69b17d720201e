// The benchmark program of kernels and peers. See bench/program.h.
#include "bench/program.h"

namespace assay::bench {
namespace {

constexpr Mode modes[] = {
    {"forward", forward_mode, true,
     "fp32, fp16 and bf16, and the peers that were built, as fractions of the multiply-add rate"},
    {"backward", backward_mode, true, "the same with five products; OpenBLAS"},
    {"times", times_mode, false,
     "milliseconds of forward and of forward and backward, L = 128, 2048, 4096"},
    {"decode", decode_mode, true,
     "one row over 4,096 keys and more, from tensors and caches, as fractions of the read rate"},
    {"products", products_mode, true,
     "low-bit products, OpenBLAS, oneDNN and ggml, as fractions of the read or the multiply-add "
     "rate"},
    {"overhead", overhead_mode, false,
     "validation, dispatch and the C interface around a tiny call"},
    {"steady", steady_mode, false,
     "first calls against later ones; memory over 1,000 calls of growing length"},
};

}  // namespace
}  // namespace assay::bench

int main(int argc, char** argv) {
  return assay::bench::run_program(argc, argv, "attention_bench", assay::bench::modes);
}
