#include "reports/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace assay {
namespace {

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') out += "&amp;";
    else if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '"') out += "&quot;";
    else out += c;
  }
  return out;
}

// The largest of some outputs.
std::string ratio_of(const Json& r, const std::vector<const char*>& outputs) {
  double largest = -1;
  for (const char* output : outputs) {
    if (!r.contains("worst") || !r["worst"].contains(output)) continue;
    const Json& ratio = r["worst"][output]["ratio"];
    if (!ratio.is_number()) return ratio.get<std::string>();
    largest = std::max(largest, ratio.get<double>());
  }
  return largest < 0 ? "" : fmt::format("{:.3g}", largest);
}

constexpr const char* style = R"(
:root { color-scheme: light dark; --line: #8884; --bad: #c22; --good: #283; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
.pass { color: var(--good); } .fail, .error { color: var(--bad); font-weight: 600; } .inconclusive, .unsupported, .suspect { color: var(--dim); }
.scroll { overflow-x: auto; }
@media (prefers-color-scheme: dark) { :root { --bad: #f77; --good: #6c8; --dim: #999; } }
)";

}  // namespace

std::string html_report(const Json& run) {
  const Json& summary = run["summary"];
  std::string body = fmt::format("<h1>Assay: {} on {}</h1>\n<p class=\"{}\">{}</p>\n", escape(run["candidate"]), escape(run["suite"]),
                                 summary["failed"] == 0 && summary["errors"] == 0 ? "pass" : "fail", escape(summary["sentence"]));
  std::vector<const Json*> results;
  for (const Json& r : run["results"]) results.push_back(&r);
  bool any_failed = false;
  for (const Json* r : results) {
    if ((*r)["outcome"] != "fail" && (*r)["outcome"] != "error") continue;
    if (!any_failed) body += "<h2>Failures</h2>\n";
    any_failed = true;
    body += fmt::format("<p>{}<br><code>{}</code></p>\n", escape((*r)["reason"]), escape((*r)["reproduce"]));
  }
  body +=
      "<h2>Power</h2>\n<p>A pass says as much as the faults it could have shown. A cell is a lane of a kind of tile and a change of one key, or of one term of a sum, there "
      "(deleted, counted twice, V exchanged with its neighbour, weight off by 1%); shown means that some case of the run would have moved an output by more "
      "than twice its bound.</p>\n"
      "<table><tr><th>dtype and tile width</th><th class=\"n\">cells shown</th><th class=\"n\">cells</th></tr>\n";
  for (const auto& [name, cells] : summary["adequacy"].items())
    body += fmt::format("<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>\n", escape(name), cells["shown"].get<Index>(),
                        cells["cells"].get<Index>());
  // Only the outputs that this run has.
  struct Column {
    const char* title;
    std::vector<const char*> outputs;
  };
  std::vector<Column> columns = {{"O", {"O"}}, {"LSE", {"LSE"}}, {"gradients", {"dQ", "dK", "dV", "dBias", "dSink"}}, {"C", {"C"}}};
  std::erase_if(columns, [&](const Column& c) { return std::ranges::all_of(results, [&](const Json* r) { return ratio_of(*r, c.outputs).empty(); }); });
  body +=
      "</table>\n<h2>Cases</h2>\n<p>Largest error divided by its proved bound, over all elements of an output. 1 would be the bound itself; a case judged "
      "without tolerance alone has none.</p>\n<div class=\"scroll\"><table><tr><th>outcome</th>";
  for (const Column& c : columns) body += fmt::format("<th class=\"n\">{}</th>", c.title);
  body += "<th>case</th></tr>\n";
  for (const Json* r : results) {
    const std::string outcome = (*r)["outcome"];
    body += fmt::format("<tr><td class=\"{0}\">{0}</td>", escape(outcome));
    for (const Column& c : columns) body += fmt::format("<td class=\"n\">{}</td>", ratio_of(*r, c.outputs));
    body += fmt::format("<td><code>{}</code></td></tr>\n", escape((*r)["case"]));
  }
  body += "</table></div>\n<h2>Machine</h2>\n<table>\n";
  for (const auto& [name, value] : run["machine"].items())
    body += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(value.is_string() ? value.get<std::string>() : value.dump()));
  body += "</table>\n";
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">"
      "<title>Assay: {}</title><style>{}</style></head><body>\n{}</body></html>\n",
      escape(run["suite"]), style, body);
}

}  // namespace assay
