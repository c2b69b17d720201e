#include "harness/judging/state.h"

#include <array>

#include "harness/fnv1a.h"

namespace assay {
namespace {

Index other_length(Index n, Index keys) { return n > 1 ? n - 1 : std::min<Index>(n + 1, keys); }

// A fixed offset that is another, and is not 0: a problem without offsets has no list of them.
void change_offset(Case& c) {
  const std::vector<Index> now = described(c).offset;
  if (now.empty() || c.offset.kind == OffsetSpec::Kind::lengths) return;
  const Index other = now[0] - 1;
  c.offset = {OffsetSpec::Kind::fixed, other == 0 ? now[0] + 1 : other};
}

// Changes what stands in the line itself. Some of it depends on the rest of the case.
void change_lists(Case& c) {
  for (auto* list : {&c.lengths, &c.starts})
    for (Index& n : *list) n = other_length(n, c.shape.keys);
  if (!c.cache) change_offset(c);
  if (!c.documents.empty()) ++c.documents[0];
  if (c.sink) *c.sink += 0.5F;
}

Case with_other_elements(const Case& c) {
  Case other = c;
  other.seed = c.seed ^ 0x5DEECE66D;
  other.scores = Scores::normal;
  other.values = other.gradient = Values::normal;
  if (c.lse_gradient) other.lse_gradient = Values::normal;
  other.hidden = Hidden::generated;
  other.pokes.clear();
  if (c.operation == Operation::product) other.product.weights = Weights::codes;
  if (c.keep.pattern != MaskPattern::none) other.keep.pattern = MaskPattern::random;
  if (c.bias.pattern != MaskPattern::none) other.bias.pattern = MaskPattern::normal;
  return other;
}

// Whether there is such a case, and the candidate does it.
bool is_done(const Case& c, Candidate& candidate) {
  try {
    check_case(c);
    const Guest* guest = candidate.guest();
    return guest ? guest->declines(c).empty() : candidate.features().missing(c).empty();
  } catch (const CaseError&) {
    return false;
  }
}

void halve_slopes(Inputs& in) {
  for (float& slope : in.problem.alibi_slopes) slope /= 2;
}

}  // namespace

Case with_other_contents(const Case& c, Candidate& candidate) {
  Case other = with_other_elements(c);
  if (c.operation == Operation::product) return other;
  for (const bool lists : {true, false})
    for (const bool scale : {true, false}) {
      Case tried = other;
      if (lists) change_lists(tried);
      if (scale) tried.scale = c.scale.value_or(default_scale(c.shape.dim)) / 2;
      if (is_done(tried, candidate)) return tried;
    }
  return other;
}

std::uint64_t hash_of_line(const std::string& line) { return Fnv1a().add(line).value() >> 32; }

std::string growth_of(const std::vector<UsedMemory>& seen, int calls_between) {
  struct Growth {
    std::int64_t UsedMemory::* held;
    std::int64_t least;  // of one call
    const char* what;
  };
  constexpr std::array kinds = {
      Growth{&UsedMemory::heap, 16, "bytes of the heap"},
      Growth{&UsedMemory::resident, 4096, "bytes of resident memory"},
      Growth{&UsedMemory::descriptors, 1, "descriptors"},
  };
  for (const Growth& kind : kinds) {
    bool grows = seen.size() > 1;
    for (std::size_t k = 1; k < seen.size(); ++k)
      grows = grows && seen[k].*kind.held - seen[k - 1].*kind.held >= kind.least * calls_between;
    if (!grows) continue;
    const auto calls = static_cast<std::int64_t>(seen.size() - 1) * calls_between;
    return fmt::format("{} calls of the same problem keep {} {}", calls,
                       seen.back().*kind.held - seen.front().*kind.held, kind.what);
  }
  return {};
}

Changed<ForwardStep>::Changed(const Asked<ForwardStep>& like)
    : c(with_other_contents(like.step.c, like.candidate)),
      in(c, like.step.in.around),
      step{c, in, like.step.with_lse, like.step.conventions} {
  halve_slopes(in);
}

Changed<BackwardStep>::Changed(const Asked<BackwardStep>& like)
    : c(with_other_contents(like.step.c, like.candidate)),
      in(c, like.step.in.around),
      forward(c, true, in.around),
      step{c, in, forward, like.step.conventions, like.step.with_d_sink} {
  halve_slopes(in);
  const ForwardStep first{c, in, true, like.step.conventions};
  const std::unique_ptr<Candidate> host = forward_by_host(like.candidate, c);
  wrong = run_guarded(first, host ? *host : like.candidate, forward, Poison::nan, execution_of(c));
}

Changed<ProductStep>::Changed(const Asked<ProductStep>& like)
    : c(with_other_contents(like.step.c, like.candidate)),
      in(c, like.step.in.around),
      step{c, in} {}

}  // namespace assay
