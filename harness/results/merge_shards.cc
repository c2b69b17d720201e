#include "harness/results/merge_shards.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <set>

#include "harness/results/schema.h"
#include "harness/text.h"

namespace assay {
namespace {

// Takes the lists of n shards apart and deals their elements into one, the first of each first.
// Throws SchemaError if the lists are not those of one whole.
template <class Document, class Element>
std::vector<Element> interleaved(const std::vector<Document>& shards,
                                 std::vector<Element> Document::* list, const char* what) {
  std::size_t total = 0;
  for (const Document& shard : shards) total += (shard.*list).size();
  const std::size_t n = shards.size();
  for (std::size_t i = 0; i < n; ++i)
    if (const std::size_t has = (shards[i].*list).size(), due = (total + n - 1 - i) / n; has != due)
      throw SchemaError(fmt::format("shard {} of {} holds {}, of {} in all it should hold {}", i, n,
                                    counted(has, what), total, due));
  std::vector<Element> whole;
  for (std::size_t k = 0; k < total; ++k) whole.push_back((shards[k % n].*list)[k / n]);
  return whole;
}

// "AVX3" or "AVX2, AVX3".
std::string listed(const std::vector<Machine>& machines, std::string Machine::* field) {
  std::set<std::string> values;
  for (const Machine& m : machines) values.insert(m.*field);
  return fmt::format("{}", fmt::join(values, ", "));
}

}  // namespace

Run merged(const std::vector<Run>& shards) {
  Run whole = shards.front();
  whole.results = interleaved(shards, &Run::results, "result");
  whole.summary = {};
  whole.summary.counts = count_outcomes(whole.results);
  for (const Run& shard : shards) whole.summary.seconds += shard.summary.seconds;
  return whole;
}

FaultsScore merged(const std::vector<FaultsScore>& shards) {
  FaultsScore whole = shards.front();
  // The pieces of work are the hunts, and behind them the runs without a fault.
  std::size_t hunts = 0;
  for (const FaultsScore& shard : shards) hunts += shard.faults.size();
  whole.faults = interleaved(shards, &FaultsScore::faults, "hunt");
  std::vector<FaultsScore> turned;
  for (std::size_t k = 0; k < shards.size(); ++k)
    turned.push_back(shards[(hunts + k) % shards.size()]);
  whole.unplanted = interleaved(turned, &FaultsScore::unplanted, "run without a fault");
  whole.killed = usize(std::ranges::count(whole.faults, true, &FaultHunt::killed));
  return whole;
}

FuzzSummary merged(const std::vector<FuzzSummary>& shards) {
  FuzzSummary whole = shards.front();
  whole.seconds = 0;
  whole.targets.clear();
  whole.findings.clear();
  std::set<std::pair<std::string, std::string>> known;
  std::size_t longest = 0;
  for (const FuzzSummary& shard : shards) {
    whole.seconds += shard.seconds;
    longest = std::max(longest, shard.targets.size());
    // The name of a finding is the hash of its input.
    std::ranges::copy_if(
        shard.findings, std::back_inserter(whole.findings),
        [&](const FuzzFinding& f) { return known.emplace(f.target, f.file).second; });
  }
  for (std::size_t place = 0; place < longest; ++place)
    for (const FuzzSummary& shard : shards) {
      if (place >= shard.targets.size()) continue;
      const FuzzTarget& t = shard.targets[place];
      const auto same = std::ranges::find(whole.targets, t.target, &FuzzTarget::target);
      if (same == whole.targets.end()) {
        whole.targets.push_back(t);
        continue;
      }
      same->seconds += t.seconds;
      same->executions += t.executions;
      same->corpus += t.corpus;
      same->coverage = std::max(same->coverage, t.coverage);
    }
  for (FuzzTarget& t : whole.targets) {
    t.executions_per_second = t.seconds > 0 ? t.executions / t.seconds : 0;
    t.findings = usize(std::ranges::count(whole.findings, t.target, &FuzzFinding::target));
  }
  return whole;
}

Machine merged(const std::vector<Machine>& machines) {
  Machine whole;
  for (auto field : {&Machine::cpu, &Machine::simd_target, &Machine::simd_targets,
                     &Machine::compiler, &Machine::flags, &Machine::commit, &Machine::release})
    whole.*field = listed(machines, field);
  whole.threads = std::ranges::min(machines, {}, &Machine::threads).threads;
  whole.memory_mib = std::ranges::min(machines, {}, &Machine::memory_mib).memory_mib;
  return whole;
}

Json without_times(Json document) {
  if (document.is_object())
    for (const char* timed : {"seconds", "sentence"}) document.erase(timed);
  for (Json& inside : document)
    if (inside.is_structured()) inside = without_times(std::move(inside));
  return document;
}

}  // namespace assay
