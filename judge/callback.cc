#include "judge/callback.h"

#include <fmt/format.h>

#include <array>

#include "harness/records/safetensors.h"

namespace assay::judging {
namespace {

void call_back(assay_function function, void* user, const NamedCall& call) {
  std::vector<assay_named_tensor> inputs, outputs;
  for (const NamedTensor& t : call.inputs) inputs.push_back({t.name.c_str(), t.tensor});
  for (const NamedTensor& t : call.outputs) outputs.push_back({t.name.c_str(), t.tensor});
  const assay_call c = {call.operation.c_str(), call.line.c_str(),  inputs.data(),
                        outputs.data(),         std::ssize(inputs), std::ssize(outputs)};
  std::array<char, 4096> sentence{};
  const assay_status status = function(user, &c, sentence.data(), sentence.size());
  if (status == ASSAY_SUCCESS) return;
  sentence.back() = '\0';
  std::string why = sentence.data();
  if (why.empty()) why = fmt::format("the function answered {} without a sentence", status);
  if (status == ASSAY_UNSUPPORTED) throw CandidateDeclined(why);
  throw CandidateError(why);
}

}  // namespace

NamedCandidate::Answer answer_by(assay_function function, void* user) {
  needed(function, "function");
  return [=](const NamedCall& call) { call_back(function, user, call); };
}

NamedCandidate::Facts facts_of(const char* name, std::int32_t no_lse,
                               const assay_features* features) {
  NamedCandidate::Facts facts;
  facts.name = name ? shown(name) : "function";
  if (facts.name.empty()) throw Refused("name is empty");
  if (no_lse != 0 && no_lse != 1) throw Refused(fmt::format("no_lse is {}, not 0 or 1", no_lse));
  facts.lse = no_lse == 0;
  facts.features = features_of(features);
  return facts;
}

}  // namespace assay::judging
