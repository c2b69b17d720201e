// Measures how often evidence fails kernels that are right: emulated kernels of every arithmetic
// that the bounds know, on the cases of a suite.
//
//   false_alarms SUITE [SEED [LARGEST]]
//   false_alarms --case LINE ARITHMETIC
//
// The suite is of attention or backward passes. Cases of more than LARGEST million multiply-adds
// (default: 20) are left out, and so are those whose inputs are poked or that go through a cache.
// With the seed, another arithmetic meets each case. Prints a few lines for every alarm, and a
// summary. The second form asks one arithmetic of one case. The exit status is 1 if there was an
// alarm, and 2 if there was nothing to ask.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "harness/cases/suites.h"
#include "harness/work.h"
#include "problem/parallel.h"
#include "testing/emulated_verdict.h"

namespace assay {
namespace {

struct Seen {
  Index judged = 0, not_asked = 0, by_evidence = 0, outside = 0;

  void add(const Verdict& v) {
    ++judged;
    not_asked += v.evidence.arithmetic.empty();
    by_evidence += v.by_evidence;
    outside += !v.by_evidence && (v.outcome == Outcome::fail || v.outcome == Outcome::error);
  }
  bool alarmed() const { return by_evidence + outside > 0; }
};

class Alarms {
 public:
  void judge_case(const Case& c, const Emulation& e) {
    for (const bool declared : {true, false}) {
      if (!declared && must_be_declared(e, c.dtype)) continue;
      const Verdict v = emulated_verdict(c, e, declared);
      const std::lock_guard lock(mutex_);
      seen_[fmt::format("{}, {}", e.contract.name, declared ? "declared" : "not declared")].add(v);
      if (v.outcome == Outcome::fail || v.outcome == Outcome::error)
        fmt::print("{}, held against {}{}:\n    {}\n    false_alarms --case '{}' '{}'\n",
                   declared ? "declared" : "not declared", v.contract,
                   v.by_evidence ? " and errors of " + v.evidence.arithmetic : "", v.reason,
                   print_case(c), e.contract.name);
    }
  }

  void print_table() const {
    fmt::print(
        "\n| arithmetic | judged | evidence not asked | failed by evidence | proved |\n"
        "| --- | --- | --- | --- | --- |\n");
    for (const auto& [name, s] : seen_)
      fmt::print("| {} | {} | {} | {} | {} |\n", name, s.judged, s.not_asked, s.by_evidence,
                 s.outside);
  }

  Seen total() const {
    Seen sum;
    for (const auto& [name, s] : seen_) {
      sum.judged += s.judged, sum.not_asked += s.not_asked;
      sum.by_evidence += s.by_evidence, sum.outside += s.outside;
    }
    return sum;
  }

 private:
  std::map<std::string, Seen> seen_;
  std::mutex mutex_;
};

int ask_suite(const std::string& suite, std::uint64_t seed, double largest) {
  std::vector<Case> cases = make_suite(suite, seed).cases;
  const std::size_t all = cases.size();
  std::erase_if(cases, [&](const Case& c) {
    return c.operation == Operation::product || c.cache.kind != CacheSpec::Kind::none ||
           !c.pokes.empty() || multiply_adds(c) > 1e6 * largest;
  });
  if (cases.empty())
    throw std::invalid_argument(fmt::format(
        "none of the {} cases of {} is of attention, without cache and pokes, and of at most {} "
        "million multiply-adds",
        all, suite, largest));
  Alarms alarms;
  parallel_for(std::ssize(cases), 0, [&](Index k) {
    const Case& c = cases[usize(k)];
    const std::vector<Emulation> arithmetics = emulations(c.dtype);
    alarms.judge_case(c, arithmetics[(usize(k) + seed) % arithmetics.size()]);
  });
  alarms.print_table();
  const Seen total = alarms.total();
  fmt::print(
      "\n{}, seed {}: {} of {} cases, {} verdicts, {} without evidence, {} failed by it, {} "
      "outside of a bound\n",
      suite, seed, cases.size(), all, total.judged, total.not_asked, total.by_evidence,
      total.outside);
  return total.alarmed();
}

int ask_case(const std::string& line, std::string_view arithmetic) {
  const Case c = parse_case(line);
  if (c.operation == Operation::product || c.cache.kind != CacheSpec::Kind::none)
    throw std::invalid_argument("the case is a product or goes through a cache: " + line);
  for (const Emulation& e : emulations(c.dtype))
    if (e.contract.name == arithmetic) {
      Alarms alarms;
      alarms.judge_case(c, e);
      alarms.print_table();
      return alarms.total().alarmed();
    }
  fmt::print(stderr, "false_alarms: '{}' is no arithmetic for {}; these are:\n", arithmetic,
             format(c.dtype).name);
  for (const Emulation& e : emulations(c.dtype)) fmt::print(stderr, "    {}\n", e.contract.name);
  return 2;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  const std::vector<std::string> given(argv + 1, argv + argc);
  std::uint64_t seed = 1;
  double largest = 20;
  const auto number = [&](std::size_t at, auto& to) {
    if (given.size() <= at) return true;
    const char* end = given[at].data() + given[at].size();
    return std::from_chars(given[at].data(), end, to).ptr == end && to > 0;
  };
  try {
    if (given.size() == 3 && given[0] == "--case") return assay::ask_case(given[1], given[2]);
    if (!given.empty() && given.size() <= 3 && number(1, seed) && number(2, largest))
      return assay::ask_suite(given[0], seed, largest);
  } catch (const std::exception& e) {
    fmt::print(stderr, "false_alarms: {}\n", e.what());
    return 2;
  }
  fmt::print(stderr,
             "usage: false_alarms SUITE [SEED [LARGEST]]\n"
             "       false_alarms --case LINE ARITHMETIC\n");
  return 2;
}
