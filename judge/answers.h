// Inside judge/: texts, and how exceptions become a status and a sentence.
#pragma once

#include <assay/judge.h>

#include <nlohmann/json.hpp>

#include <stdexcept>
#include <string>

#include "problem/case.h"
#include "problem/features.h"

struct assay_text {
  std::string text;
};

namespace assay::judging {

using Json = nlohmann::json;

// An argument that is refused.
struct Refused : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// The status of the exception that is being handled, whose sentence goes into *answer.
assay_status failed(assay_text** answer) noexcept;

std::string text_of(const Json& json);

// Runs `body`, which returns the text of the answer. Every exception becomes a status.
template <class Body>
assay_status answering(assay_text** answer, const Body& body) noexcept {
  if (!answer) return ASSAY_INVALID_ARGUMENTS;
  *answer = nullptr;
  try {
    *answer = new assay_text{body()};
    return ASSAY_SUCCESS;
  } catch (...) {
    return failed(answer);
  }
}

// Throws Refused if the pointer is null.
template <class T>
T* needed(T* pointer, const char* argument) {
  if (!pointer) throw Refused(std::string(argument) + " is NULL");
  return pointer;
}

// Throws Refused for a struct of another version or size.
template <class Struct>
void check_struct(const Struct& s, const char* argument) {
  if (s.version != ASSAY_VERSION || s.struct_size != sizeof(Struct))
    throw Refused(std::string(argument) + " has version " + std::to_string(s.version) +
                  " and struct_size " + std::to_string(s.struct_size) + ", not " +
                  std::to_string(ASSAY_VERSION) + " and " + std::to_string(sizeof(Struct)));
}

// Throws Refused with the column and a mark below it.
Case case_of(const char* line);
// All features if `features` is null.
Features features_of(const assay_features* features);

}  // namespace assay::judging
