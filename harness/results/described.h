// What a header needs whose structs are described for JSON: names alone, because the library of
// JSON is long. results/schema.h has the rest.
#pragma once

#include <concepts>
#include <nlohmann/json_fwd.hpp>
#include <type_traits>

namespace assay {

using Json = nlohmann::json;

// A value of this type, const or not, because describe_fields() serves both.
template <class T, class Struct>
concept Described = std::same_as<std::remove_const_t<T>, Struct>;

}  // namespace assay
