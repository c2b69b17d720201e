#include "harness/judging/refusals.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

namespace assay {
namespace {

// Makes one wrong call. If its answer is no refusal, says what it was.
Relation ask_to_refuse(Guest& guest, const Request& request, const std::string& name,
                       const std::vector<WrittenBytes>& written) {
  std::vector<std::vector<std::byte>> before;
  for (const WrittenBytes& part : written)
    before.emplace_back(part.bytes.begin(), part.bytes.end());
  kernels::Status answer;
  std::string what;
  const std::string broken = failure_in([&] {
    what = guest.run_wrong(request, name, answer);
    return kernels::Status{};
  });
  if (!broken.empty()) return Relation::violated(broken);
  if (what.empty()) return Relation::not_applicable("this call cannot be made wrong so");
  if (answer.ok()) return Relation::violated(fmt::format("{}: answered success", what));
  for (std::size_t k = 0; k < written.size(); ++k)
    if (!std::ranges::equal(written[k].bytes, before[k]))
      return Relation::violated(
          fmt::format("{}: refused, and {} was written", what, written[k].name));
  return Relation::held();
}

}  // namespace

std::vector<WrittenBytes> poisoned(const NamedOutputs& outputs) {
  std::vector<WrittenBytes> parts;
  for (const auto& [output, t] : outputs) {
    poison(*t, Poison::nan);
    for (const auto& [begin, end] : t->regions())
      parts.push_back({std::string(name_of(output)), {t->bytes() + begin, t->bytes() + end}});
  }
  return parts;
}

Relations ask_for_refusals(Candidate& candidate, const Request& request, const std::string& prefix,
                           const std::function<std::vector<WrittenBytes>()>& prepare) {
  Relations found;
  const Guest* guest = candidate.guest();
  if (!guest) return found;
  std::unique_ptr<Candidate> fresh;
  for (const std::string& name : guest->wrong_calls(request.call)) {
    if (!fresh) fresh = guest->fresh();
    Relation answer = ask_to_refuse(*fresh->guest(), request, name, prepare());
    if (answer.how == Relation::How::violated) fresh.reset();
    found[fmt::format("{}-{}", prefix, name)] = std::move(answer);
  }
  return found;
}

}  // namespace assay
