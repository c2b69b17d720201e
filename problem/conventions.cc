#include "problem/conventions.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace assay {

std::string name_of_value(Convention convention, std::size_t index) {
  return fmt::format("{}:{}", name_of(convention), row_of(convention).values[index]);
}

Conventions Conventions::ours() {
  Conventions all;
  for (const Convention c : values_of<Convention>) all.declare(c, 0);
  return all;
}

Conventions Conventions::parse(std::string_view text) {
  Conventions found;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string_view entry = text.substr(at, end - at);
    const std::size_t colon = std::min(entry.find(':'), entry.size());
    const std::optional<Convention> c = value_named<Convention>(entry.substr(0, colon));
    if (!c)
      throw ConventionError(fmt::format("'{}' is no convention; they are {}", entry,
                                        fmt::join(names_in_order<Convention>, ", ")));
    const std::string_view value = entry.substr(std::min(colon + 1, entry.size()));
    const auto& values = row_of(*c).values;
    const auto chosen = std::ranges::find(values, value);
    if (chosen == values.end())
      throw ConventionError(
          fmt::format("{}:{} is none of {}", name_of(*c), value, fmt::join(values, ", ")));
    if (found.declares(*c)) throw ConventionError(fmt::format("{} stands twice", name_of(*c)));
    found.declare(*c, static_cast<std::size_t>(chosen - values.begin()));
    at = end + 1;
  }
  return found;
}

Conventions Conventions::over(const Conventions& others) const {
  Conventions both = *this;
  for (const Convention c : values_of<Convention>)
    if (!declares(c) && others.declares(c)) both.declare(c, others.index(c));
  return both;
}

std::vector<std::string> Conventions::names() const {
  std::vector<std::string> names;
  for (const Convention c : values_of<Convention>)
    if (declares(c)) names.push_back(name_of_value(c, index(c)));
  return names;
}

}  // namespace assay
