#include "reports/sarif.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <string_view>
#include <vector>

#include "harness/results/schema.h"
#include "harness/results/told_outcome.h"
#include "harness/text.h"

namespace assay {
namespace {

constexpr std::size_t most_results = 1000;

struct Rule {
  const char *id, *level, *text;
};
// What a result can be, in the order of their indices.
constexpr Rule rules[] = {
    {"proved", "error", "An element is outside the bound that was derived for it"},
    {"by-evidence", "error",
     "Every element is inside its bound, but no arithmetic makes such errors"},
    {"observed", "error", "A crash, a relation that is violated, or an output that is missing"},
    {"not-judged", "warning", "The case could not be judged"},
    {"convention", "note", "Right by a convention that is not ours and that nobody declared"},
    {"suspect", "note", "Every element is inside its bound, but errors lean to one side"},
};

std::size_t rule_of(const CaseResult& r) {
  if (r.outcome == Outcome::error) return 3;
  if (r.outcome == Outcome::convention) return 4;
  if (r.outcome == Outcome::suspect) return 5;
  if (r.verdict.by_evidence) return 1;
  return r.verdict.outside > 0 ? 0 : 2;
}

// The path as a relative reference of a URI.
std::string uri_of(std::string_view path) {
  std::string uri;
  for (const char c : path)
    if (std::isalnum(static_cast<unsigned char>(c)) ||
        std::string_view("-._~/").find(c) != std::string_view::npos)
      uri += c;
    else uri += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  return path.starts_with('/') ? "file://" + uri : uri;
}

// The kernel's file, if the candidate names one.
std::string file_of(const std::string& candidate) {
  if (candidate.starts_with("lib:")) return candidate.substr(4);
  if (candidate.starts_with("python:")) return candidate.substr(7, candidate.find("::") - 7);
  return "";
}

Json result_of(const CaseResult& r) {
  const std::size_t rule = rule_of(r);
  Json place = {{"logicalLocations",
                 Json::array({{{"name", visible(r.line)},
                               {"fullyQualifiedName", visible(r.candidate + "/" + r.line)}}})}};
  if (const std::string file = file_of(r.candidate); !file.empty())
    place["physicalLocation"] = {{"artifactLocation", {{"uri", uri_of(file)}}},
                                 {"region", {{"startLine", 1}}}};
  return {{"ruleId", rules[rule].id},
          {"ruleIndex", rule},
          {"level", rules[rule].level},
          {"message", {{"text", told_outcome(r) + "\n" + r.line + "\nreproduce: " + r.reproduce}}},
          {"locations", Json::array({std::move(place)})},
          // The same case of the same candidate is the same finding in the next run.
          {"partialFingerprints", {{"case/v1", visible(r.candidate + "/" + r.line)}}}};
}

Json rule_list() {
  Json list = Json::array();
  for (const Rule& rule : rules)
    list.push_back({{"id", rule.id},
                    {"shortDescription", {{"text", rule.text}}},
                    {"defaultConfiguration", {{"level", rule.level}}}});
  return list;
}

}  // namespace

std::string sarif_log(const Run& run) {
  std::vector<const CaseResult*> found;
  for (const CaseResult& r : run.results)
    if (r.outcome == Outcome::fail || r.outcome == Outcome::error ||
        r.outcome == Outcome::convention || r.outcome == Outcome::suspect)
      found.push_back(&r);
  // The worst come first, so that those are left out that matter least.
  std::ranges::stable_sort(found, {}, [](const CaseResult* r) { return rule_of(*r); });
  Json results = Json::array();
  for (std::size_t k = 0; k < std::min(found.size(), most_results); ++k)
    results.push_back(result_of(*found[k]));
  Json invocation = {{"executionSuccessful", run.summary.counts.error == 0}};
  if (found.size() > most_results)
    invocation["toolExecutionNotifications"] =
        Json::array({{{"level", "warning"},
                      {"message",
                       {{"text", fmt::format("{} left out", counted(found.size() - most_results,
                                                                    "further result"))}}}}});
  const Json log = {
      {"$schema",
       "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/"
       "sarif-schema-2.1.0.json"},
      {"version", "2.1.0"},
      {"runs",
       Json::array(
           {{{"tool",
              {{"driver",
                {{"name", "Assay"}, {"version", run.machine.release}, {"rules", rule_list()}}}}},
             {"automationDetails", {{"id", visible(run.candidate + "/" + run.suite)}}},
             {"invocations", Json::array({std::move(invocation)})},
             {"results", std::move(results)},
             {"properties", {{"summary", run.summary.sentence}, {"seed", run.seed}}}}})}};
  return log.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace assay
