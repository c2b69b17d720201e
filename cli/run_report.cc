#include "cli/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/exit_status.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "harness/files.h"
#include "reports/html.h"
#include "reports/junit.h"
#include "reports/markdown.h"
#include "reports/store.h"

namespace assay {
namespace {

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

}  // namespace

void add_report_files(CLI::App& command, ReportFiles& files) {
  command.add_option("--json", files.json, "Write the run as JSON")->check(writable());
  command.add_option("--junit", files.junit, "Write the run as JUnit XML")->check(writable());
  command.add_option("--html", files.html, "Write the run as one HTML page")->check(writable());
  command
      .add_option("--markdown", files.markdown,
                  "Write a summary of the run as Markdown, as a comment on a pull request")
      ->check(writable());
  command
      .add_option("--store", files.store,
                  "Append the run to this store, which is made if it is not there; `assay store` "
                  "reads it")
      ->check(writable());
}

Json sections_of_page(const ReportFiles& files) {
  const auto read = [](const char* option, const std::string& path, const char* written_by, const std::vector<const char*>& fields) {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw UsageError(fmt::format("{}={}: {}", option, path, std::generic_category().message(errno)));
    const Json j = Json::parse(in, nullptr, false);
    const bool whole = j.is_object() && std::ranges::all_of(fields, [&](const char* f) { return j.contains(f) && j[f].is_array() && std::ranges::all_of(j[f], [](const Json& x) { return x.is_object(); }); });
    if (!whole || j.value("format", Json()) != 1) throw UsageError(fmt::format("{}={}: not what `{} --json` writes", option, path, written_by));
    return j;
  };
  Json sections = Json::object();
  if (!files.faults.empty()) sections["faults"] = read("--with-faults", files.faults, "assay faults", {"faults", "equivalent", "unplanted"});
  if (!files.fuzz.empty()) {
    const Json summary = read("--with-fuzz", files.fuzz, "assay fuzz", {"targets", "findings"});
    try {
      sections["fuzz"] = fuzz_of_page(summary);
    } catch (const Json::exception&) {
      throw UsageError(fmt::format("--with-fuzz={}: a target or a finding lacks its fields", files.fuzz));
    }
  }
  return sections;
}

std::vector<std::size_t> worth_drawing(const Json& results) {
  constexpr std::size_t most_failures = 12, most_passes = 8;
  std::vector<std::size_t> chosen, passes;
  const auto worst = [&](std::size_t k) {
    double ratio = -1;
    if (results[k].contains("worst"))
      for (const auto& [output, w] : results[k]["worst"].items())
        if (w["ratio"].is_number()) ratio = std::max(ratio, w["ratio"].get<double>());
    return ratio;
  };
  for (std::size_t k = 0; k < results.size(); ++k) {
    if (results[k]["outcome"] == "fail" && chosen.size() < most_failures) chosen.push_back(k);
    if (results[k]["outcome"] == "pass" && worst(k) > 0) passes.push_back(k);
  }
  std::ranges::sort(passes, {}, [&](std::size_t k) { return std::pair(-worst(k), k); });
  passes.resize(std::min(passes.size(), most_passes));
  chosen.insert(chosen.end(), passes.begin(), passes.end());
  return chosen;
}

void take_pictures(Json& result, const Json& drawn) {
  if (drawn["outcome"] != result["outcome"]) return;
  for (const char* field : {"maps", "heads", "tiles", "ulps", "mask"})
    if (drawn.contains(field)) result[field] = drawn[field];
}

int report_run(const RunFacts& run, const Json& results) {
  Counts counts;
  Adequacy adequacy;
  std::int64_t elements = 0;
  bool bad_input = false;
  for (const Json& r : results) {
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
  }
  const bool single = results.size() == 1;
  if (single) print_single(results[0]);
  for (const Json& r : results) {
    if (r["outcome"] != "fail" && r["outcome"] != "error") continue;
    if (!single) fmt::print("{}: {}\n", r["outcome"].get<std::string>(), r["reason"].get<std::string>());
    fmt::print("  reproduce: {}\n", r["reproduce"].get<std::string>());
  }
  std::string sentence = fmt::format("{} {}: {} passed, {} failed", results.size(), run.unit, counts.pass + counts.suspect, counts.fail);
  for (auto [n, what] : {std::pair{counts.suspect, "of the passed suspect"},
                         {counts.inconclusive, "inconclusive"},
                         {counts.unsupported, "unsupported"},
                         {counts.error, "errors"},
                         {run.not_run, "not run for lack of time"}})
    if (n > 0) sentence += fmt::format(", {} {}", n, what);
  sentence += fmt::format("; {} elements compared; seed {}; {:.1f} s", elements, run.seed, run.seconds);
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
                      {"suite", run.title},
                      {"candidate", run.candidate},
                      {"seed", run.seed},
                      {"machine", machine_facts()},
                      {"summary",
                       {{"sentence", sentence},
                        {"cases", results.size()},
                        {"passed", counts.pass},
                        {"failed", counts.fail},
                        {"suspect", counts.suspect},
                        {"inconclusive", counts.inconclusive},
                        {"unsupported", counts.unsupported},
                        {"errors", counts.error},
                        {"not_run", run.not_run},
                        {"elements", elements},
                        {"seconds", run.seconds},
                        {"adequacy", adequate}}},
                      {"results", results}};
  if (!run.files.json.empty()) write_file(run.files.json, whole.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  if (!run.files.junit.empty()) write_file(run.files.junit, junit_xml(whole));
  if (!run.files.markdown.empty()) write_file(run.files.markdown, markdown_summary(whole));
  if (!run.files.html.empty()) {
    Json page = whole;
    page.update(run.sections);
    write_file(run.files.html, html_report(page));
  }
  if (!run.files.store.empty()) fmt::print("store: run {} of {}\n", Store(run.files.store).append(whole), run.files.store);
  if (counts.fail > 0) return some_failed;
  if (const double percent = 100.0 * static_cast<double>(counts.unsupported) / static_cast<double>(results.size()); percent > run.most_unsupported) {
    fmt::print(stderr, "assay: {:.1f}% of the cases are unsupported, more than --max-unsupported={}\n", percent, run.most_unsupported);
    return some_failed;
  }
  if (counts.error > 0) return bad_input ? bad_usage : machine_failed;
  if (counts.compared() == 0) {
    fmt::print(stderr, "assay: nothing was compared, so nothing has passed\n");
    return bad_usage;
  }
  return all_passed;
}

}  // namespace assay
