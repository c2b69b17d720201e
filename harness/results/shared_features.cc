#include "harness/results/shared_features.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "harness/results/told_outcome.h"
#include "harness/text.h"
#include "problem/features.h"

namespace assay {
namespace {

constexpr std::size_t most_features = 3;
// A claim is made if luck makes it less often than once in so many runs.
constexpr double least_odds = 1000;

struct Size {
  const char* name;
  Index (*of)(const Case&);  // 0: the case has no such size
};

constexpr bool is_product(const Case& c) { return c.operation == Operation::product; }

constexpr Size sizes[] = {
    {"batches", [](const Case& c) { return is_product(c) ? 0 : c.shape.batch; }},
    {"query heads", [](const Case& c) { return is_product(c) ? 0 : c.shape.query_heads; }},
    {"rows", [](const Case& c) { return is_product(c) ? c.product.m : c.shape.rows; }},
    {"keys", [](const Case& c) { return is_product(c) ? 0 : c.shape.keys; }},
    {"dimensions", [](const Case& c) { return is_product(c) ? 0 : c.shape.dim; }},
    {"columns", [](const Case& c) { return is_product(c) ? c.product.n : c.shape.value_dim; }},
    {"terms", [](const Case& c) { return is_product(c) ? c.product.k : 0; }},
};

// The cases of a run by what they have.
struct Told {
  std::set<std::string> features;
  std::vector<Index> sizes;
};

Told tell_of(const std::string& line) {
  const std::vector<std::string> features = told_features(line);
  Told told{{features.begin(), features.end()}, {}};
  const Case c = parse_case(line);
  for (const Size& size : sizes) told.sizes.push_back(size.of(c));
  return told;
}

// Returns nothing if one of the lines is no case line.
std::optional<std::vector<Told>> tell_all(const std::vector<std::string>& lines) {
  std::vector<Told> all;
  for (const std::string& line : lines) try {
      all.push_back(tell_of(line));
    } catch (const CaseError&) {
      return std::nullopt;
    }
  return all;
}

// Something that all failing cases have, and which of the passing ones have it.
struct Condition {
  std::string name;
  std::vector<bool> passing;
};

class Separation {
 public:
  Separation(const std::vector<Told>& failing, const std::vector<Told>& passing)
      : failing_(failing), passing_(passing) {
    add_features();
    for (std::size_t k = 0; k < std::size(sizes); ++k) add_size(k);
  }

  void fill(SharedFeatures& found) const {
    const std::size_t most = std::min(most_features, conditions_.size());
    for (std::size_t many = 1; many <= most && beyond_luck(many); ++many) {
      std::vector<std::size_t> chosen;
      std::size_t sets = 0;
      choose(0, many, std::vector<bool>(passing_.size(), true), chosen, [&] {
        if (sets++ == 0)
          for (const std::size_t k : chosen) found.features.push_back(conditions_[k].name);
      });
      if (sets == 0) continue;
      found.others = sets - 1;
      return;
    }
  }

 private:
  template <class Has>
  void add(std::string name, const Has& has) {
    Condition c{std::move(name), {}};
    for (const Told& t : passing_) c.passing.push_back(has(t));
    if (std::ranges::find(c.passing, false) != c.passing.end()) conditions_.push_back(std::move(c));
  }

  // Features in the order of their names, so that the answer is the same in every run.
  void add_features() {
    std::map<std::string, std::size_t> had;  // by how many of the failing cases
    std::set<std::string> any;
    for (const Told& t : failing_)
      for (const std::string& f : t.features) ++had[f], any.insert(f);
    for (const Told& t : passing_) any.insert(t.features.begin(), t.features.end());
    possible_ += static_cast<double>(any.size());
    for (const auto& [name, n] : had)
      if (n == failing_.size()) add(name, [&](const Told& t) { return t.features.contains(name); });
  }

  // Of a size, at least and at most what the failing cases have are the strongest conditions.
  void add_size(std::size_t k) {
    std::set<Index> of_failing, of_any;
    for (const Told& t : failing_) of_failing.insert(t.sizes[k]);
    for (const Told& t : passing_) of_any.insert(t.sizes[k]);
    of_any.insert(of_failing.begin(), of_failing.end());
    possible_ += 2 * static_cast<double>(of_any.size());
    if (of_failing.contains(0)) return;
    const Index least = *of_failing.begin(), most = *of_failing.rbegin();
    add(fmt::format("at least {} {}", least, sizes[k].name),
        [&](const Told& t) { return t.sizes[k] >= least; });
    add(fmt::format("at most {} {}", most, sizes[k].name),
        [&](const Told& t) { return t.sizes[k] <= most; });
  }

  // Calls found() for every set of so many conditions that no passing case has as a whole.
  template <class Found>
  void choose(std::size_t from, std::size_t many, const std::vector<bool>& left,
              std::vector<std::size_t>& chosen, const Found& found) const {
    if (many == 0) {
      if (std::ranges::find(left, true) == left.end()) found();
      return;
    }
    for (std::size_t k = from; k + many <= conditions_.size(); ++k) {
      std::vector<bool> both(left.size());
      for (std::size_t i = 0; i < both.size(); ++i) both[i] = left[i] && conditions_[k].passing[i];
      chosen.push_back(k);
      choose(k + 1, many - 1, both, chosen, found);
      chosen.pop_back();
    }
  }

  // One fixed set separates a random choice of as many cases with the chance 1 / C(n, failing).
  bool beyond_luck(std::size_t many) const {
    const auto log_choose = [](double n, double k) {
      return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
    };
    const auto f = static_cast<double>(failing_.size()), p = static_cast<double>(passing_.size());
    return log_choose(f + p, f) >=
           std::log(least_odds) + log_choose(possible_, static_cast<double>(many));
  }

  const std::vector<Told>&failing_, &passing_;
  std::vector<Condition> conditions_;
  double possible_ = 0;  // conditions that could have been named, whatever fails
};

SharedFeatures separate(const std::optional<std::vector<Told>>& failing,
                        const std::optional<std::vector<Told>>& passing) {
  SharedFeatures found;
  if (!failing || !passing || failing->empty() || passing->empty()) return found;
  Separation(*failing, *passing).fill(found);
  return found;
}

// The words of a reason, up to its numbers and places.
std::string words_of(const std::string& reason) {
  std::size_t end = reason.size();
  for (const std::string_view stop : {": ", ", in relation ", " in relation "})
    end = std::min(end, reason.find(stop));
  return reason.substr(0, end);
}

// The fault or the row that is furthest beyond its limit.
std::string reason_of_evidence(const Evidence& e) {
  double of_row = 0;
  Output output{};
  for (const auto& [o, row] : e.rows)
    if (row.s / row.limit > of_row) of_row = row.s / row.limit, output = o;
  if (!e.filters.empty() && e.filters.front().significance() / e.z_limit > of_row)
    return e.filters.front().fault;
  return fmt::format("errors of {} are not typical", name_of(output));
}

std::vector<std::string> lines_of(const std::vector<CaseResult>& results, auto wanted) {
  std::vector<std::string> lines;
  for (const CaseResult& r : results)
    if (wanted(r)) lines.push_back(r.line);
  return lines;
}

}  // namespace

std::vector<std::string> told_features(const std::string& line) {
  const Case c = parse_case(line);
  std::vector<std::string> found = features_of(c);
  if (c.scores != Scores{}) found.push_back(fmt::format("scores={}", name_of(c.scores)));
  if (c.values != Values{}) found.push_back(fmt::format("values={}", name_of(c.values)));
  if (c.hidden != Hidden{}) found.push_back(fmt::format("hidden={}", name_of(c.hidden)));
  if (c.gradient != Values{}) found.push_back(fmt::format("grad={}", name_of(c.gradient)));
  const bool product = is_product(c);
  for (const auto& [size, name] :
       {std::pair{product ? c.product.k : c.shape.keys, product ? "terms" : "keys"},
        std::pair{product ? c.product.n : c.shape.value_dim, "columns"}})
    for (const Index tile : {16, 64})
      if (size % tile != 0)
        found.push_back(fmt::format("a tail of {} beyond tiles of {}", name, tile));
  return found;
}

std::string SharedFeatures::sentence() const {
  if (features.empty()) return "";
  const std::vector<std::string> first(features.begin(), features.end() - 1);
  const std::string list = first.empty()
                               ? features.back()
                               : fmt::format("{} and {}", fmt::join(first, ", "), features.back());
  const char* whole = features.size() == 1 ? "it" : features.size() == 2 ? "both" : "all of them";
  std::string text = fmt::format("all {} failing cases have {}; none of {} passing ones has {}",
                                 failing, list, passing, whole);
  if (others > 0)
    text += fmt::format(" ({} of as few {} so, too)", counted(others, "other set"),
                        others == 1 ? "does" : "do");
  return text;
}

SharedFeatures shared_features(const std::vector<std::string>& failing,
                               const std::vector<std::string>& passing) {
  SharedFeatures found = separate(tell_all(failing), tell_all(passing));
  found.failing = failing.size();
  found.passing = passing.size();
  return found;
}

SharedFeatures shared_features(const std::vector<CaseResult>& results) {
  return shared_features(
      lines_of(results, [](const CaseResult& r) { return r.outcome == Outcome::fail; }),
      lines_of(results, [](const CaseResult& r) { return passed(r.outcome); }));
}

std::vector<Cause> causes_of(const std::vector<CaseResult>& results) {
  const auto passing =
      tell_all(lines_of(results, [](const CaseResult& r) { return passed(r.outcome); }));
  struct Group {
    Cause cause;
    std::vector<std::string> lines;
    bool shrunk = false;
    std::map<std::string, std::size_t> explained;  // how many cases look like this most
  };
  std::vector<Group> groups;
  for (const CaseResult& r : results) {
    if (r.outcome != Outcome::fail && r.outcome != Outcome::error) continue;
    const std::string outcome = outcome_words(r);
    const std::string reason =
        r.verdict.by_evidence ? reason_of_evidence(r.verdict.evidence) : words_of(r.reason);
    auto group = std::ranges::find_if(groups, [&](const Group& g) {
      return g.cause.outcome == outcome && g.cause.reason == reason;
    });
    if (group == groups.end())
      group = groups.insert(
          group, Group{{outcome, reason, 0, {}, r.line, r.reason, r.reproduce, {}}, {}, false, {}});
    ++group->cause.cases;
    if (!r.diagnosis.explanations.empty())
      ++group->explained[r.diagnosis.explanations.front().words];
    group->lines.push_back(r.line);
    if (group->shrunk || r.shrunk.empty()) continue;
    group->shrunk = true;
    group->cause.line = r.line;
    group->cause.example = r.reason;
    group->cause.reproduce = r.reproduce;
  }
  std::vector<Cause> causes;
  for (Group& g : groups) {
    g.cause.features = separate(tell_all(g.lines), passing).features;
    const auto most = std::ranges::max_element(
        g.explained, {}, [](const auto& explained) { return explained.second; });
    if (most != g.explained.end())
      g.cause.looks_like = fmt::format("{} ({} of {})", most->first, most->second, g.cause.cases);
    causes.push_back(std::move(g.cause));
  }
  std::ranges::stable_sort(causes,
                           [](const Cause& a, const Cause& b) { return a.cases > b.cases; });
  return causes;
}

}  // namespace assay
