// Suites and case lines.
#include "harness/cases/suites.h"

#include <cmath>

#include "harness/cases/shrink.h"
#include "judge/answers.h"
#include "problem/clock.h"

using namespace assay;
using namespace assay::judging;

assay_status assay_judge_facts(assay_text** answer) {
  return answering(answer, [] {
    Json suites = Json::array();
    for (const std::string_view name : suite_names()) suites.push_back(name);
    Json conventions = Json::array();
    for (const ConventionRow& row : table_of<Convention>) {
      Json values = Json::array();
      for (const std::string_view value : row.values) values.push_back(value);
      conventions.push_back(
          {{"name", row.name}, {"values", values}, {"what", row.what}, {"fails", row.fails}});
    }
    return text_of(
        {{"suites", suites}, {"features", all_features()}, {"conventions", conventions}});
  });
}

namespace {

Json lines_of(const Suite& suite) {
  Json lines = Json::array();
  for (const Case& c : suite.cases) lines.push_back(print_case(c));
  return lines;
}

// The cases of the suite that need another feature.
Json unsupported_of(const char* name, std::uint64_t seed, const Features& has) {
  Json unsupported = Json::array();
  if (has.has_all()) return unsupported;
  for (const Case& c : make_suite(name, seed).cases)
    if (const std::string why = has.missing(c); !why.empty())
      unsupported.push_back({{"case", print_case(c)}, {"why", why}});
  return unsupported;
}

}  // namespace

assay_status assay_judge_suite(const char* suite, uint64_t seed, const assay_features* features,
                               assay_text** answer) {
  return answering(answer, [&] {
    needed(suite, "suite");
    const Features has = judging::features_of(features);
    const Suite made = make_suite(suite, seed, has);
    return text_of({{"suite", made.name},
                    {"seed", seed},
                    {"notes", made.notes},
                    {"cases", lines_of(made)},
                    {"unsupported", unsupported_of(suite, seed, has)}});
  });
}

assay_status assay_judge_parse(const char* line, assay_text** answer) {
  return answering(answer, [&] {
    const Case c = case_of(line);
    Json facts = {{"case", print_case(c)},
                  {"operation", name_of(c.operation)},
                  {"dtype", format(c.dtype).name},
                  {"out", format(c.out_dtype()).name},
                  {"features", assay::features_of(c)}};
    if (c.operation == Operation::product)
      facts["shape"] = {{"m", c.product.m}, {"n", c.product.n}, {"k", c.product.k}};
    else
      facts["shape"] = {{"batch", c.shape.batch},        {"query_heads", c.shape.query_heads},
                        {"kv_heads", c.shape.kv_heads},  {"rows", c.shape.rows},
                        {"keys", c.shape.keys},          {"dim", c.shape.dim},
                        {"value_dim", c.shape.value_dim}};
    return text_of(facts);
  });
}

assay_status assay_judge_shrink(const char* line, const assay_features* features, assay_fails fails,
                                void* user, double seconds, assay_text** answer) {
  return answering(answer, [&] {
    const Case failing = case_of(line);
    const Features has = judging::features_of(features);
    needed(fails, "fails");
    if (!(seconds >= 0 && seconds <= 1e9))
      throw Refused("seconds is " + std::to_string(seconds) + ", not 0 to 1e9");
    const auto start = Clock::now();
    bool stopped = false;
    const auto still_fails = [&](const Case& c) {
      if (stopped || !has.missing(c).empty()) return false;
      const int32_t told = fails(user, print_case(c).c_str());
      stopped = told < 0;
      return told > 0;
    };
    const auto keep_going = [&] { return !stopped && seconds_since(start) < seconds; };
    return print_case(shrink(failing, still_fails, keep_going));
  });
}
