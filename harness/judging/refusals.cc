#include "harness/judging/refusals.h"

#include <fmt/format.h>

namespace assay {
namespace {

std::vector<std::byte> bytes_of(const Tensor& t) {
  std::vector<std::byte> all;
  for (const auto& [begin, end] : t.regions())
    all.insert(all.end(), t.bytes() + begin, t.bytes() + end);
  return all;
}

}  // namespace

Relation ask_to_refuse(Candidate& candidate, const Request& request, const std::string& name,
                       const NamedOutputs& outputs) {
  std::vector<std::vector<std::byte>> before;
  for (const auto& [output, t] : outputs) {
    poison(*t, Poison::nan);
    before.push_back(bytes_of(*t));
  }
  kernels::Status answer;
  std::string what;
  const std::string broken = failure_in([&] {
    what = candidate.run_wrong(request, name, answer);
    return kernels::Status{};
  });
  if (!broken.empty()) return Relation::violated(broken);
  if (what.empty()) return Relation::not_applicable("this call cannot be made wrong so");
  if (answer.ok()) return Relation::violated(fmt::format("{}: answered success", what));
  for (std::size_t k = 0; k < outputs.size(); ++k)
    if (bytes_of(*outputs[k].tensor) != before[k])
      return Relation::violated(
          fmt::format("{}: refused, and {} was written", what, name_of(outputs[k].output)));
  return Relation::held();
}

}  // namespace assay
