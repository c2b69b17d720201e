#include "judge/answers.h"

#include <fmt/format.h>

#include <new>
#include <system_error>

#include "harness/candidates/candidate.h"
#include "harness/records/safetensors.h"

namespace assay::judging {
namespace {

assay_status tell(assay_text** answer, assay_status status, const char* sentence) noexcept {
  try {
    *answer = new assay_text{sentence};
  } catch (...) {
    *answer = nullptr;
  }
  return status;
}

}  // namespace

assay_status failed(assay_text** answer) noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return tell(answer, ASSAY_MEMORY_ALLOCATION_FAILED, "out of memory");
  } catch (const DeviceUnavailable& e) {
    return tell(answer, ASSAY_DEVICE_NOT_SUPPORTED, e.what());
  } catch (const CaseError& e) {
    return tell(answer, ASSAY_INVALID_ARGUMENTS, e.what());
  } catch (const FileError& e) {
    return tell(answer, ASSAY_INVALID_ARGUMENTS, e.what());
  } catch (const std::invalid_argument& e) {
    return tell(answer, ASSAY_INVALID_ARGUMENTS, e.what());
  } catch (const std::exception& e) {
    return tell(answer, ASSAY_EXECUTION_FAILED, e.what());
  } catch (...) {
    return tell(answer, ASSAY_UNKNOWN, "something that is no std::exception was thrown");
  }
}

std::string text_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Case case_of(const char* line) {
  needed(line, "line");
  try {
    return parse_case(line);
  } catch (const CaseError& e) {
    throw Refused(
        fmt::format("{}\n  {}{}", e.what(), shown(line),
                    e.column ? fmt::format("\n  {}^", std::string(e.column - 1, ' ')) : ""));
  }
}

Features features_of(const assay_features* features) {
  if (!features) return {};
  check_struct(*features, "features");
  if (features->count == -1) return {};
  if (features->count < 0 || features->count > 10000)
    throw Refused(fmt::format("features.count is {}, not -1 to 10000", features->count));
  std::vector<std::string> names;
  for (std::int64_t k = 0; k < features->count; ++k) {
    needed(features->names, "features.names");
    names.emplace_back(needed(features->names[k], "a name of features.names"));
  }
  return Features(names);
}

}  // namespace assay::judging

using namespace assay::judging;

uint32_t assay_judge_version(void) { return ASSAY_VERSION; }

const char* assay_text_data(const assay_text* text) { return text ? text->text.c_str() : ""; }

void assay_text_free(assay_text* text) { delete text; }
