#include "harness/judging/judged_bits.h"

#include <fmt/format.h>

#include <utility>

#include "harness/judging/refusals.h"
#include "harness/judging/state.h"

namespace assay {
namespace {

constexpr std::byte before{0x3C};  // in what a call writes

// A case of the same shapes, dtypes and layouts.
Case with_other_elements(const Case& c) {
  Case other = c;
  other.seed = c.seed ^ 0x5DEECE66D;
  other.scores = Scores::normal;
  other.values = Values::normal;
  other.pokes.clear();
  return other;
}

struct AskedBits {
  const BitsOperation& of;
  const Case& c;
  Candidate& candidate;
  const kernels::Execution how;
  KnownCall &one, &other;  // with other elements at the same addresses

  std::string wrong_of(KnownCall& call) const { return make_call(call, candidate, how, before); }
};

Relation many_calls(const AskedBits& asked) {
  constexpr int calls = 200, window = 50;
  std::vector<UsedMemory> seen;
  for (int k = 1; k <= calls; ++k) {
    const std::string wrong = asked.wrong_of(asked.one);
    if (!wrong.empty()) return Relation::violated(fmt::format("call {}: {}", k, wrong));
    if (Guest* guest = asked.candidate.guest(); guest && k % window == 0)
      seen.push_back(guest->used_memory());
  }
  return Relation::unless(growth_of(seen, window));
}

Relation other_contents(const AskedBits& asked) {
  std::string wrong = asked.wrong_of(asked.one);
  if (wrong.empty()) wrong = asked.wrong_of(asked.other);
  if (wrong.empty()) wrong = asked.wrong_of(asked.one);
  return Relation::unless(wrong);
}

Relation first_call(const AskedBits& asked) {
  const Guest* guest = asked.candidate.guest();
  if (!guest) return Relation::not_applicable("a process of this kind takes seconds to start");
  const std::unique_ptr<Candidate> fresh = guest->fresh();
  const std::string wrong = asked.of.judge(asked.c, *fresh).wrong;
  return Relation::unless(wrong.empty() ? wrong : "in a fresh process: " + wrong);
}

Relation two_at_once(const AskedBits& asked) {
  Guest* guest = asked.candidate.guest();
  if (!guest || !asked.candidate.abilities().at_once)
    return Relation::not_applicable("the candidate does not allow two calls at once");
  constexpr int rounds = 64;
  for (KnownCall* call : {&asked.one, &asked.other}) call->prepare(before);
  std::string wrong = failure_in([&] {
    return guest->run_at_once({asked.one.call(), asked.how}, {asked.other.call(), asked.how},
                              rounds);
  });
  if (wrong.empty()) wrong = asked.one.wrong();
  if (wrong.empty()) wrong = asked.other.wrong();
  return Relation::unless(wrong);
}

constexpr struct {
  const char* name;
  Relation (*ask)(const AskedBits&);
} relations[] = {
    {"many-calls", many_calls},
    {"other-contents", other_contents},
    {"first-call", first_call},
    {"two-at-once", two_at_once},
};

}  // namespace

std::string make_call(KnownCall& call, Candidate& candidate, const kernels::Execution& how,
                      std::byte filling) {
  call.prepare(filling);
  std::string wrong = call_guarded(candidate, {call.call(), how}, call.watched(), {}, Poison::nan);
  return wrong.empty() ? call.wrong() : wrong;
}

Relations ask_state(const BitsOperation& of, const Case& c, Candidate& candidate,
                    const std::function<void(const std::string& relation)>& begins) {
  constexpr std::size_t most_bytes = 1 << 16;
  const auto one = of.one_call(c, candidate),
             other = of.one_call(with_other_elements(c), candidate);
  if (!one || !other) return {};
  one->prepare(before);
  std::size_t bytes = 0;
  for (const WrittenBytes& part : one->written()) bytes += part.bytes.size();
  Relations found;
  const AskedBits asked{of, c, candidate, execution_of(c), *one, *other};
  for (const auto& [name, ask] : relations) {
    Relation& answer = found[fmt::format("{}-{}", of.name, name)];
    answer = Relation::not_applicable("the case is too large to be repeated");
    if (bytes > most_bytes) continue;
    begins(fmt::format("{}-{}", of.name, name));
    try {
      answer = ask(asked);
    } catch (const CandidateDeclined& e) {
      answer = Relation::not_applicable(e.what());
    }
  }
  return found;
}

Relations ask_for_refusals(const BitsOperation& of, const Case& c, Candidate& candidate) {
  const auto call = of.one_call(c, candidate);
  if (!call) return {};
  return ask_for_refusals(candidate, {call->call(), execution_of(c)},
                          fmt::format("{}-refuses", of.name), [&] {
                            call->prepare(before);
                            return call->written();
                          });
}

}  // namespace assay
