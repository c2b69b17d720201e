#include "harness/results/invariance.h"

#include <algorithm>

namespace assay {
namespace {

// The answer of one relation of a case.
void add(Invariance& x, const std::string& line, const Relation& relation) {
  const bool differs = relation.how == Relation::How::violated || relation.is_unpromised();
  if (!differs && relation.how == Relation::How::not_applicable) {
    if (x.cases == 0) x.why = relation.why;
    return;
  }
  if (x.cases++ == 0) x.why.clear(), x.answer = Invariance::Answer::yes;
  if (!differs || x.answer == Invariance::Answer::no) return;
  x.answer = Invariance::Answer::no;
  x.why =
      relation.is_unpromised() ? relation.why.substr(Relation::unpromised.size()) : relation.why;
  x.line = line;
}

// A case that has passed, or that failed otherwise than by chance, gave the same bits in every run.
void add_runs(Invariance& x, const CaseResult& r) {
  const bool by_chance = r.reason.starts_with("not deterministic");
  if (passed(r.outcome)) add(x, r.line, Relation::held());
  else if (by_chance) add(x, r.line, Relation::violated(r.reason));
}

}  // namespace

std::string requirement_of(Promise p) {
  if (p == Promise::runs) return "deterministic";
  std::string word(name_of(p));
  if (word.ends_with('s')) word.pop_back();
  return word + "-invariant";
}

std::vector<Invariance> invariances_of(const std::vector<CaseResult>& results) {
  std::vector<Invariance> all(count_of<Promise>);
  for (std::size_t k = 0; k < all.size(); ++k) all[k].to = static_cast<Promise>(k);
  const auto of = [&](Promise p) -> Invariance& { return all[static_cast<std::size_t>(p)]; };
  for (const CaseResult& r : results) {
    for (const auto& [name, relation] : r.relations)
      if (const AsksPromise* row = promise_of(name)) add(of(row->promise), r.line, relation);
    add_runs(of(Promise::runs), r);
  }
  for (Invariance& x : all)
    if (x.cases == 0 && x.why.empty()) x.why = "no case has it";
  return all;
}

bool tells_of_invariance(const std::vector<CaseResult>& results) {
  const auto tells = [](const auto& relation) {
    const AsksPromise* row = promise_of(relation.first);
    const bool answered = relation.second.how != Relation::How::not_applicable;
    return row && !row->always && (answered || relation.second.is_unpromised());
  };
  return std::ranges::any_of(
      results, [&](const CaseResult& r) { return std::ranges::any_of(r.relations, tells); });
}

}  // namespace assay
