#include "harness/identify/identify.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "harness/identify/gradients.h"
#include "harness/identify/product.h"
#include "harness/identify/softmax.h"
#include "harness/identify/sums.h"

namespace assay {
namespace {

bool is_fp8(LowBit f) { return f == LowBit::f8e4m3 || f == LowBit::f8e5m2; }

void ask_about_attention(Candidate& candidate, const Case& asked, Identification& told) {
  const Dtype dtype = asked.dtype;
  const Probe probe(candidate, dtype);
  told.line = print_case(probe.shape());
  const std::optional<Dtype> weights = tell_weights(probe, told);
  const bool coarse = weights && format(*weights).bits == 8 && candidate.abilities().lse;
  tell_row_sum(probe, told);
  tell_scores(probe, coarse, told);
  for (const VisibleSums& sums : {sums_over_columns(probe, coarse), sums_over_keys(probe)}) {
    tell_input_bits(sums, dtype, told);
    tell_sums(sums, told);
  }
  tell_subnormals(probe, weights, coarse, told);
}

void ask_about_backward(Candidate& candidate, const Case& asked, Identification& told) {
  const Dtype dtype = asked.dtype;
  const BackwardProbe probe(candidate, dtype, 1);
  told.line = print_case(probe.shape());
  tell_gradient_weights(probe, told);
  tell_score_gradients(probe, told);
  tell_gradient_sums(probe, told);
  if (dtype == Dtype::f32) return;  // heads that are rounded to f32 are as right as others
  try {
    tell_grouped_heads(BackwardProbe(candidate, dtype, 4), told);
  } catch (const CandidateDeclined&) {
    told.not_told.emplace_back("dV, grouped heads: the kernel takes none");
  }
}

void ask_about_product(Candidate& candidate, const Case& asked, Identification& told) {
  const ProductProbe probe(candidate, asked);
  told.line = print_case(probe.shape());
  tell_product(probe, told);
}

// The fields that are read of a line; the others have their defaults.
Case attention_fields(const Case& asked) {
  Case read;
  read.operation = asked.operation;
  read.dtype = asked.dtype;
  return read;
}
Case product_fields(const Case& asked) {
  Case read = attention_fields(asked);
  read.out = asked.out;
  read.product.format = asked.product.format;
  read.product.group = asked.product.group;
  read.product.a_format = asked.product.a_format;
  return read;
}

struct AskedOperation {
  Operation operation;
  Case (*fields)(const Case&);
  const char* names_of_fields;
  void (*ask)(Candidate&, const Case& asked, Identification&);
};
constexpr AskedOperation operations[] = {
    {Operation::attention, attention_fields, "operation and the dtype", ask_about_attention},
    {Operation::backward, attention_fields, "operation and the dtype", ask_about_backward},
    {Operation::product, product_fields, "operation, dtype, out, w and a", ask_about_product},
};

void check_asked(const AskedOperation& operation, const Case& asked) {
  const auto refuse = [](const std::string& why) { throw std::invalid_argument(why); };
  if (asked.dtype != Dtype::f32 && asked.dtype != Dtype::f16 && asked.dtype != Dtype::bf16)
    refuse(
        fmt::format("dtype={}: inputs are chosen in f32, f16 or bf16", format(asked.dtype).name));
  const Case read = operation.fields(asked);
  if (asked != read)
    refuse(fmt::format("{}: inputs and shapes are chosen; of a line, the {} are read ({})",
                       print_case(asked), operation.names_of_fields, print_case(read)));
  const std::optional<LowBit>& a = asked.product.a_format;
  if (a && !(is_fp8(*a) && is_fp8(asked.product.format)))
    refuse(
        fmt::format("a={} w={}: codes of so few bits hold no large number beside a small one; "
                    "where A is low-bit, both are f8e4m3 or f8e5m2",
                    traits(*a).name, traits(asked.product.format).name));
}

}  // namespace

Identification identify(Candidate& candidate, const Case& asked) {
  const AskedOperation& operation =
      *std::ranges::find(operations, asked.operation, &AskedOperation::operation);
  check_asked(operation, asked);
  Identification told;
  told.candidate = candidate.name();
  told.line = print_case(asked);
  try {
    operation.ask(candidate, asked, told);
  } catch (const CandidateDeclined& e) {
    told.outcome = Asking::unsupported;
    told.reason = e.what();
  } catch (const CandidateError& e) {
    told.outcome = Asking::fail;
    told.reason = e.what();
  }
  return told;
}

}  // namespace assay
