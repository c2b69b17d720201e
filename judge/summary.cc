// What the failing cases of a run share, and its failures by cause.
#include "harness/results/schema.h"
#include "harness/results/shared_features.h"
#include "judge/answers.h"

using namespace assay;
using namespace assay::judging;

assay_status assay_judge_summary(const char* results, assay_text** answer) {
  return answering(answer, [&] {
    const Json list = Json::parse(needed(results, "results"), nullptr, false);
    if (!list.is_array()) throw Refused("results is no JSON array");
    std::vector<CaseResult> all;
    try {
      for (const Json& result : list) all.push_back(from_json<CaseResult>(result, "a result"));
    } catch (const SchemaError& e) {
      throw Refused("results: " + std::string(e.what()));
    }
    return text_of(
        {{"shared", to_json(shared_features(all))}, {"causes", to_json(causes_of(all))}});
  });
}
