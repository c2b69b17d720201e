// Inside harness/candidates/: calls of a library that no kernel can answer. Each is made of a right
// call, so that nothing else is wrong with it.
#pragma once

#include <span>
#include <string>

#include "harness/candidates/kernel_process.h"

namespace assay {

struct WrongCall {
  const char* name;
  // Makes the arguments wrong and says in what ("3 query heads over 2 key/value heads"). Returns an
  // empty text if these arguments cannot be made wrong so.
  std::string (*spoil)(KernelCall& call, KernelProcess::Arguments& arguments);
};

// For attention in every form; for a product, of tensors or of two low-bit matrices; for a
// quantizer, a dequantizer, and a writer of pages.
std::span<const WrongCall> wrong_attention_calls();
std::span<const WrongCall> wrong_product_calls();
std::span<const WrongCall> wrong_low_bit_product_calls();
std::span<const WrongCall> wrong_quantize_calls();
std::span<const WrongCall> wrong_dequantize_calls();
std::span<const WrongCall> wrong_append_calls();

}  // namespace assay
