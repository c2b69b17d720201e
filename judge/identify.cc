// The arithmetic of a function.
#include "harness/identify/identify.h"

#include "harness/results/schema.h"
#include "judge/callback.h"

using namespace assay;
using namespace assay::judging;

assay_status assay_judge_identify(const char* line, assay_function function, void* user,
                                  int32_t no_lse, const assay_features* features, const char* name,
                                  assay_text** answer) {
  return answering(answer, [&] {
    const Case asked = case_of(line);
    NamedCandidate candidate(facts_of(name, no_lse, features), answer_by(function, user));
    return text_of(to_json(identify(candidate, asked)));
  });
}
