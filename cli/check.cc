#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <iostream>

#include "cli/commands.h"
#include "cli/progress.h"
#include "harness/kernel_process.h"
#include "harness/shrink.h"
#include "harness/standalone.h"
#include "harness/suites.h"
#include "kernels/targets.h"
#include "problem/parallel.h"
#include "reports/files.h"
#include "reports/html.h"
#include "reports/junit.h"

namespace assay {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// Bad usage or input: becomes exit status 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Selection {
  std::string title;
  std::vector<std::string> notes;
  std::vector<Case> cases;
};

std::pair<std::size_t, std::size_t> parse_shard(const std::string& text) {
  std::size_t i = 0, n = 0;
  const char* end = text.data() + text.size();
  const auto [slash, first] = std::from_chars(text.data(), end, i);
  if (first == std::errc() && slash != end && *slash == '/') {
    const auto [stop, second] = std::from_chars(slash + 1, end, n);
    if (second == std::errc() && stop == end && i < n) return {i, n};
  }
  throw UsageError(fmt::format("--shard={}: expected i/n with 0 <= i < n, as 0/4", text));
}

Selection select(const CheckOptions& o, std::uint64_t seed) {
  Selection s;
  if (!o.suite.empty()) {
    Suite suite = make_suite(o.suite, seed);
    s = {std::string(suite.name), std::move(suite.notes), std::move(suite.cases)};
  } else {
    s.title = "cases";
    std::vector<std::string> lines = o.cases;
    if (!o.cases_file.empty()) {
      std::ifstream in(o.cases_file);
      if (!in) throw UsageError(fmt::format("--cases={}: cannot be read", o.cases_file));
      for (std::string line; std::getline(in, line);)
        if (!line.empty() && line[0] != '#') lines.push_back(line);
    }
    for (std::size_t k = 0; k < lines.size(); ++k) {
      try {
        s.cases.push_back(parse_case(lines[k]));
      } catch (const CaseError& e) {
        throw UsageError(fmt::format("{}\n  {}\n{}", e.what(), lines[k], e.column ? fmt::format("  {}^", std::string(e.column - 1, ' ')) : ""));
      }
    }
  }
  if (!o.filter.empty()) {
    const std::size_t before = s.cases.size();
    std::erase_if(s.cases, [&](const Case& c) { return print_case(c).find(o.filter) == std::string::npos; });
    if (s.cases.empty()) throw UsageError(fmt::format("--filter={}: none of {} cases contains it", o.filter, before));
  }
  if (!o.shard.empty()) {
    const auto [i, n] = parse_shard(o.shard);
    std::vector<Case> mine;
    for (std::size_t k = i; k < s.cases.size(); k += n) mine.push_back(s.cases[k]);
    if (mine.empty()) throw UsageError(fmt::format("--shard={}: no case of {} falls into it", o.shard, s.cases.size()));
    s.cases = std::move(mine);
  }
  if (s.cases.empty()) throw UsageError("nothing to run: no case was given");
  return s;
}

Json machine() {
  std::string model = "unknown";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  return {{"cpu", model},
          {"threads", hardware_threads()},
          {"simd target", kernels::chosen_target()},
          {"simd targets", fmt::format("{}", fmt::join(kernels::runnable_targets(), ", "))},
          {"memory MiB", (sysconf(_SC_PHYS_PAGES) / 1024) * (sysconf(_SC_PAGESIZE) / 1024)},
          {"compiler", __VERSION__},
          {"assay", ASSAY_RELEASE}};
}

// Follows one failing case down; every step runs in a worker, for a minute at most.
std::string shrink_line(const Json& failed, const WorkerOptions& options) {
  const auto deadline = Clock::now() + std::chrono::seconds(60);
  WorkerOptions quick = options;
  quick.jobs = 1;
  quick.timeout_seconds = std::min(options.timeout_seconds, 20.0);
  quick.execute.power = false;
  auto fails = [&](const Case& c) {
    bool bad = false;
    run_in_workers({{print_case(c), failed["candidate"]}}, quick, [&](std::size_t, Json r) {
      bad = r["outcome"] == "fail";
      return true;
    });
    return bad;
  };
  return print_case(shrink(parse_case(failed["case"].get<std::string>()), fails, [&] { return Clock::now() < deadline; }));
}

struct Counts {
  std::size_t pass = 0, fail = 0, suspect = 0, inconclusive = 0, unsupported = 0, error = 0;
  std::size_t compared() const { return pass + fail + suspect; }
};

void print_single(const Json& r) {
  fmt::print("{}\n  {}: {}\n", r["case"].get<std::string>(), r["outcome"].get<std::string>(), r["reason"].get<std::string>());
  if (r.contains("contract")) fmt::print("  contract: {}\n", r["contract"].get<std::string>());
  if (r.contains("elements")) {
    const Json& e = r["elements"];
    std::vector<std::string> compared;
    for (const auto& [output, n] : e["compared"].items()) compared.push_back(fmt::format("{} of {}", n.get<Index>(), output));
    fmt::print("  compared: {}; inside {}, outside {}, hull only {}, exact {}\n", fmt::join(compared, ", "), e["inside"].get<Index>(),
               e["outside"].get<Index>(), e["hull_only"].get<Index>(), e["exact"].get<Index>());
    for (const auto& [why, n] : e["failures"].items()) fmt::print("  {} x {}\n", n.get<Index>(), why);
    for (const auto& [why, n] : e["excused"].items()) fmt::print("  {} excused: {}\n", n.get<Index>(), why);
    const Json& f = r["not_finite"];
    if (f["nan_expected"] != 0 || f["nan_found"] != 0 || f["infinity_found"] != 0 || f["infinity_expected"] != 0)
      fmt::print("  NaN: {} found, {} belong there; infinities: {} found, {} belong there\n", f["nan_found"].get<Index>(), f["nan_expected"].get<Index>(),
                 f["infinity_found"].get<Index>(), f["infinity_expected"].get<Index>());
    fmt::print("  rows: {} of {} judged, {} in ball arithmetic\n", r["rows"]["judged"].get<Index>(), r["rows"]["all"].get<Index>(),
               r["rows"]["in_balls"].get<Index>());
  }
  if (r.contains("worst"))
    for (const auto& [output, w] : r["worst"].items()) {
      const auto real = [](const Json& x) { return x.is_number() ? fmt::format("{:.9g}", x.get<double>()) : x.get<std::string>(); };
      // C has neither batch nor head nor tiles of rows.
      const std::string head = output == "C" ? "" : fmt::format("b={} h={} ", w["b"].get<Index>(), w["h"].get<Index>());
      fmt::print("  worst {}: error/bound {} ({} ulp) at {}{}={}{}{}: {}, exact {}, bound {}\n", output, real(w["ratio"]), real(w["ulp"]), head,
                 output == "dK" || output == "dV" ? "key" : "row", w["row"].get<Index>(),
                 w.contains("column") ? fmt::format(" column={}", w["column"].get<Index>()) : "",
                 output == "C" ? "" : fmt::format(" (tile {})", w["tile"].get<Index>()), real(w["got"]), real(w["exact"]), real(w["bound"]));
    }
  const bool passed = r["outcome"] == "pass" || r["outcome"] == "suspect";
  if (passed && r.contains("bias")) fmt::print("  bias: mean signed error/bound {}, slope t {}\n", r["bias"]["mean_ratio"].dump(), r["bias"]["slope_t"].dump());
  if (passed && r.contains("power") && r["power"]["pairs"] != 0) {
    const bool product = r["elements"]["compared"].contains("C");
    fmt::print("  power, {} {}:", r["power"]["pairs"].get<Index>(), product ? "terms of sums" : "visible (row, key) pairs");
    for (const auto& [change, shown] : r["power"]["shown"].items()) {
      const auto percent = [&](const char* through) { return 100.0 * shown[through].get<double>() / r["power"]["pairs"].get<double>(); };
      fmt::print("  {} {:.1f}%{}", change, percent("either"), product ? "" : fmt::format(" (O {:.1f}%, LSE {:.1f}%)", percent("o"), percent("lse")));
    }
    fmt::print("\n");
  }
  if (r.contains("quantization"))
    fmt::print("  quantization, whatever the kernel does: W is off by {:.2g}, A W by {:.2g} (rms over rms)\n", r["quantization"]["weights"].get<double>(),
               r["quantization"]["products"].get<double>());
  if (passed && r.contains("gradient_power")) {
    const Json& g = r["gradient_power"];
    const auto percent = [&](const char* output) { return 100.0 * g[output].get<double>() / g["pairs"].get<double>(); };
    fmt::print("  power of gradients, {} visible pairs, each left out of its sums: {:.1f}% shown (dQ {:.1f}%, dK {:.1f}%, dV {:.1f}%)\n",
               g["pairs"].get<Index>(), percent("any"), percent("dQ"), percent("dK"), percent("dV"));
  }
  if (r.contains("relations"))
    for (const auto& [name, how] : r["relations"].items()) fmt::print("  relation {}: {}\n", name, how.get<std::string>());
}

int run(const CheckOptions& o) {
  const auto start = Clock::now();
  make_candidate(o.candidate);  // an unknown name is an error before anything runs
  Selection selection = select(o, o.seed);
  if (o.list) {
    for (const Case& c : selection.cases) fmt::print("{}\n", print_case(c));
    return all_passed;
  }
  for (const std::string& note : selection.notes) fmt::print("{}\n", note);

  Json results = Json::array();
  Counts counts;
  Adequacy adequacy;
  std::size_t not_run = 0, rounds = 0;
  std::uint64_t seed = o.seed;
  do {
    if (rounds > 0) selection = select(o, seed += 1000003);
    ++rounds;
    std::vector<WorkItem> items;
    for (const Case& c : selection.cases) items.push_back({print_case(c), o.candidate});
    Progress progress(selection.title, items.size());
    std::vector<Json> round(items.size());
    std::size_t finished = 0;
    run_in_workers(items, o.workers, [&](std::size_t k, Json r) {
      if (r["outcome"] == "fail" || r["outcome"] == "error")
        progress.say(fmt::format("{}: {}\n  {}", r["outcome"].get<std::string>(), r["reason"].get<std::string>(), items[k].line));
      progress.advance(items[k].line);
      round[k] = std::move(r);
      ++finished;
      return o.time_seconds == 0 || seconds_since(start) < o.time_seconds;
    });
    not_run += items.size() - finished;
    for (Json& r : round)
      if (!r.is_null()) results.push_back(std::move(r));
  } while (o.time_seconds > 0 && seconds_since(start) < o.time_seconds);

  std::size_t shrunk = 0;
  std::int64_t elements = 0;
  bool bad_input = false;
  for (Json& r : results) {
    const std::string outcome = r["outcome"];
    counts.pass += outcome == "pass";
    counts.fail += outcome == "fail";
    counts.suspect += outcome == "suspect";
    counts.inconclusive += outcome == "inconclusive";
    counts.unsupported += outcome == "unsupported";
    counts.error += outcome == "error";
    bad_input = bad_input || r.contains("bad_input");
    if (r.contains("elements"))
      for (const auto& [output, n] : r["elements"]["compared"].items()) elements += n.get<std::int64_t>();
    adequacy.add(r);
    // A minute each: the first three tell most of what there is to tell.
    if (outcome == "fail" && !o.no_shrink && shrunk < 3) {
      ++shrunk;
      fmt::print(stderr, "shrinking: {}\n", r["case"].get<std::string>());
      r["shrunk"] = shrink_line(r, o.workers);
    }
  }
  const bool single = results.size() == 1;
  if (single) print_single(results[0]);
  for (const Json& r : results) {
    if (r["outcome"] != "fail" && r["outcome"] != "error") continue;
    if (!single) fmt::print("{}: {}\n", r["outcome"].get<std::string>(), r["reason"].get<std::string>());
    fmt::print("  reproduce: assay check --candidate {} --case '{}'\n", o.candidate,
               r.contains("shrunk") ? r["shrunk"].get<std::string>() : r["case"].get<std::string>());
  }
  std::string sentence = fmt::format("{} cases: {} passed, {} failed", results.size(), counts.pass + counts.suspect, counts.fail);
  for (auto [n, what] : {std::pair{counts.suspect, "of the passed suspect"},
                         {counts.inconclusive, "inconclusive"},
                         {counts.unsupported, "unsupported"},
                         {counts.error, "errors"},
                         {not_run, "not run for lack of time"}})
    if (n > 0) sentence += fmt::format(", {} {}", n, what);
  sentence += fmt::format("; {} elements compared; seed {}; {:.1f} s", elements, o.seed, seconds_since(start));
  std::map<std::string, int> why_unsupported;
  for (const Json& r : results)
    if (r["outcome"] == "unsupported") ++why_unsupported[r["reason"]];
  for (const auto& [why, n] : why_unsupported) fmt::print("  unsupported: {} x {}\n", n, why);
  const Json adequate = adequacy.summary();
  if (!single)
    for (const auto& [name, cells] : adequate.items()) {
      fmt::print("power of the suite, {}: {} of {} cells shown", name, cells["shown"].get<Index>(), cells["cells"].get<Index>());
      if (cells.contains("missing")) fmt::print(" (--json names the others)");
      fmt::print("\n");
    }
  fmt::print("{}\n", sentence);

  const Json whole = {{"format", 1},
                      {"suite", selection.title},
                      {"candidate", o.candidate},
                      {"seed", o.seed},
                      {"machine", machine()},
                      {"summary",
                       {{"sentence", sentence},
                        {"cases", results.size()},
                        {"passed", counts.pass},
                        {"failed", counts.fail},
                        {"suspect", counts.suspect},
                        {"inconclusive", counts.inconclusive},
                        {"unsupported", counts.unsupported},
                        {"errors", counts.error},
                        {"not_run", not_run},
                        {"elements", elements},
                        {"seconds", seconds_since(start)},
                        {"adequacy", adequate}}},
                      {"results", results}};
  if (!o.json.empty()) write_file(o.json, whole.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  if (!o.junit.empty()) write_file(o.junit, junit_xml(whole));
  if (!o.html.empty()) write_file(o.html, html_report(whole));
  if (!o.standalone.empty()) {
    const Json* chosen = &results[0];
    for (const Json& r : results)
      if (r["outcome"] == "fail") {
        chosen = &r;
        break;
      }
    write_file(o.standalone,
               standalone_program(parse_case(chosen->contains("shrunk") ? (*chosen)["shrunk"].get<std::string>() : (*chosen)["case"].get<std::string>())));
    fmt::print("standalone program: {}\n", o.standalone);
  }
  if (counts.fail > 0) return some_failed;
  if (const double percent = 100.0 * static_cast<double>(counts.unsupported) / static_cast<double>(results.size()); percent > o.most_unsupported) {
    fmt::print(stderr, "assay: {:.1f}% of the cases are unsupported, more than --max-unsupported={}\n", percent, o.most_unsupported);
    return some_failed;
  }
  if (counts.error > 0) return bad_input ? bad_usage : machine_failed;
  if (counts.compared() == 0) {
    fmt::print(stderr, "assay: nothing was compared, so nothing has passed\n");
    return bad_usage;
  }
  return all_passed;
}

}  // namespace

int check(const CheckOptions& options) {
  try {
    return run(options);
  } catch (const UsageError& e) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return bad_usage;
  } catch (const CaseError& e) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return bad_usage;
  } catch (const std::invalid_argument& e) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return bad_usage;
  } catch (const LibraryError& e) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return bad_usage;
  } catch (const std::exception& e) {
    fmt::print(stderr, "assay: {}\n", e.what());
    return machine_failed;
  }
}

}  // namespace assay
