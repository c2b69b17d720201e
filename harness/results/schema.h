// The border between structs and JSON: one description of a struct's fields serves both directions.
//
// A struct is described once, by a function `describe_fields(fields, value)` that names every
// field:
//
//   template <class Fields, Described<Place> Value>
//   void describe_fields(Fields& fields, Value& value) { fields("row", value.row); ... }
//
// to_json() runs it with a writer, from_json() with a reader. The reader throws SchemaError for a
// field that is missing, that has another type, or that no description names. JSON has no NaN and
// no infinity: such numbers are the strings "nan", "inf" and "-inf".
#pragma once

#include <nlohmann/json.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "harness/results/described.h"
#include "problem/names.h"

namespace assay {

// An error in a document: it names the place and what was expected there.
struct SchemaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Reads a text that others wrote. Throws SchemaError, whose message begins with `what` and has no
// words of the library.
inline Json parse_json(std::string_view text, const std::string& what) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& e) {
    throw SchemaError(what + ": no JSON from byte " + std::to_string(e.byte) + " on");
  } catch (const Json::out_of_range&) {
    throw SchemaError(what + ": a number in it is beyond the range of double");
  }
}

class FieldWriter;
class FieldReader;

template <class T>
Json to_json(const T& value);
template <class T>
void read_json(const Json& json, const std::string& where, T& value);

// Reads a whole document. `what` begins the message of an error: "result", "run". This is an object
// and not a function, so that nlohmann's functions of the same name are no candidates: some of its
// versions do not compile with our types.
template <class T>
inline constexpr auto from_json = [](const Json& json, const std::string& what) {
  T value{};
  read_json(json, what, value);
  return value;
};

class FieldWriter {
 public:
  static constexpr bool reads = false;
  explicit FieldWriter(Json& to) : to_(to) {}

  template <class T>
  void operator()(const char* name, const T& value) {
    to_[name] = to_json(value);
  }
  // The field is left out if it has its default.
  template <class T>
  void unless(const char* name, const T& value, const T& default_value) {
    if (!(value == default_value)) to_[name] = to_json(value);
  }
  template <class T>
  void optional(const char* name, const std::optional<T>& value) {
    if (value) to_[name] = to_json(*value);
  }
  // A value that follows from others. It is written for the readers of the document only.
  template <class T>
  void derived(const char* name, const T& value) {
    to_[name] = to_json(value);
  }
  // The version of a format. A reader knows one number only.
  void constant(const char* name, int value) { to_[name] = value; }
  // An object inside the object. `body(fields)` describes its fields.
  template <class Body>
  void object(const char* name, const Body& body) {
    Json& inside = to_[name] = Json::object();
    FieldWriter fields(inside);
    body(fields);
  }
  // The same, but only if `present`.
  template <class Body>
  void object_if(const char* name, bool present, const Body& body) {
    if (present) object(name, body);
  }

 private:
  Json& to_;
};

class FieldReader {
 public:
  static constexpr bool reads = true;
  FieldReader(const Json& from, std::string where) : from_(from), where_(std::move(where)) {
    if (!from.is_object()) throw SchemaError(where_ + ": no JSON object");
  }

  template <class T>
  void operator()(const char* name, T& value) {
    read_json(need(name), place(name), value);
  }
  template <class T>
  void unless(const char* name, T& value, const T& default_value) {
    if (const Json* found = take(name)) read_json(*found, place(name), value);
    else value = default_value;
  }
  template <class T>
  void optional(const char* name, std::optional<T>& value) {
    value.reset();
    if (const Json* found = take(name)) read_json(*found, place(name), value.emplace());
  }
  template <class T>
  void derived(const char* name, const T&) {
    need(name);
  }
  void constant(const char* name, int value) {
    if (need(name) != value)
      throw SchemaError(place(name) + ": not " + std::to_string(value) + ", which is known");
  }
  template <class Body>
  void object(const char* name, const Body& body) {
    FieldReader fields(need(name), place(name));
    body(fields);
    fields.finish();
  }
  template <class Body>
  void object_if(const char* name, bool, const Body& body) {
    if (has(name)) object(name, body);
  }
  bool has(const char* name) const { return from_.contains(name); }

  // Throws if the object has a field that nothing has read.
  void finish() const {
    for (const auto& [name, value] : from_.items())
      if (!used_.contains(name)) throw SchemaError(where_ + ": unknown field \"" + name + "\"");
  }

 private:
  std::string place(const char* name) const { return where_ + "." + name; }
  const Json* take(const char* name) {
    const auto found = from_.find(name);
    if (found == from_.end()) return nullptr;
    used_.insert(name);
    return &*found;
  }
  const Json& need(const char* name) {
    const Json* found = take(name);
    if (!found) throw SchemaError(where_ + ": no field \"" + name + "\"");
    return *found;
  }

  const Json& from_;
  const std::string where_;
  std::set<std::string, std::less<>> used_;
};

namespace schema {

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;
template <class T>
inline constexpr bool is_map = false;
template <class K, class V>
inline constexpr bool is_map<std::map<K, V>> = true;
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

inline Json number(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x > 0 ? "inf" : "-inf";
  return x;
}

inline double read_number(const Json& json, const std::string& where) {
  if (json.is_number()) return json.get<double>();
  constexpr double inf = std::numeric_limits<double>::infinity();
  if (json == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (json == "inf") return inf;
  if (json == "-inf") return -inf;
  throw SchemaError(where + ": no number");
}

template <class T>
std::string key_of(const T& key) {
  if constexpr (std::is_enum_v<T>) return std::string(name_of(key));
  else return key;
}

template <class T>
T enum_of(const std::string& name, const std::string& where) {
  if (const std::optional<T> value = value_named<T>(name)) return *value;
  throw SchemaError(where + ": unknown name \"" + name + "\"");
}

template <class T>
T read_key(const std::string& key, const std::string& where) {
  if constexpr (std::is_enum_v<T>) return enum_of<T>(key, where);
  else return key;
}

}  // namespace schema

// Makes a JSON object of the fields that describe_fields() names.
template <class T>
Json write_fields(const T& value) {
  Json object = Json::object();
  FieldWriter fields(object);
  describe_fields(fields, value);
  return object;
}
template <class T>
void read_fields(const Json& json, const std::string& where, T& value) {
  FieldReader fields(json, where);
  describe_fields(fields, value);
  fields.finish();
}

template <class T>
Json to_json(const T& value) {
  if constexpr (std::same_as<T, Json>) {
    return value;
  } else if constexpr (std::floating_point<T>) {
    return schema::number(static_cast<double>(value));
  } else if constexpr (std::is_arithmetic_v<T> || std::convertible_to<T, std::string>) {
    return value;
  } else if constexpr (std::is_enum_v<T>) {
    return std::string(name_of(value));
  } else if constexpr (schema::is_optional<T>) {
    return value ? to_json(*value) : Json();
  } else if constexpr (schema::is_vector<T>) {
    Json list = Json::array();
    for (const auto& element : value) list.push_back(to_json(element));
    return list;
  } else if constexpr (schema::is_map<T>) {
    Json object = Json::object();
    for (const auto& [key, element] : value) object[schema::key_of(key)] = to_json(element);
    return object;
  } else {
    return write_fields(value);
  }
}

template <class T>
void read_json(const Json& json, const std::string& where, T& value) {
  if constexpr (std::same_as<T, Json>) {
    value = json;
  } else if constexpr (std::same_as<T, bool>) {
    if (!json.is_boolean()) throw SchemaError(where + ": neither true nor false");
    value = json.get<bool>();
  } else if constexpr (std::floating_point<T>) {
    value = static_cast<T>(schema::read_number(json, where));
  } else if constexpr (std::unsigned_integral<T>) {
    if (!json.is_number_unsigned()) throw SchemaError(where + ": no integer from 0 on");
    value = json.get<T>();
  } else if constexpr (std::integral<T>) {
    if (!json.is_number_integer()) throw SchemaError(where + ": no integer");
    value = json.get<T>();
  } else if constexpr (std::same_as<T, std::string>) {
    if (!json.is_string()) throw SchemaError(where + ": no string");
    value = json.get<std::string>();
  } else if constexpr (std::is_enum_v<T>) {
    if (!json.is_string()) throw SchemaError(where + ": no string");
    value = schema::enum_of<T>(json.get<std::string>(), where);
  } else if constexpr (schema::is_optional<T>) {
    value.reset();
    if (!json.is_null()) read_json(json, where, value.emplace());
  } else if constexpr (schema::is_vector<T>) {
    if (!json.is_array()) throw SchemaError(where + ": no list");
    value.clear();
    for (const Json& element : json) {
      const std::string place = where + "[" + std::to_string(value.size()) + "]";
      read_json(element, place, value.emplace_back());
    }
  } else if constexpr (schema::is_map<T>) {
    if (!json.is_object()) throw SchemaError(where + ": no JSON object");
    value.clear();
    for (const auto& [key, element] : json.items())
      read_json(element, where + "." + key,
                value[schema::read_key<typename T::key_type>(key, where)]);
  } else {
    read_fields(json, where, value);
  }
}

}  // namespace assay
