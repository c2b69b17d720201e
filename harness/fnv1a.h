// Inside harness/: FNV-1a, a hash that is the same on every machine. It detects accidental changes;
// it does not protect against forgery.
#pragma once

#include <cstdint>
#include <string_view>

namespace assay {

class Fnv1a {
 public:
  Fnv1a& add(std::string_view bytes) {
    for (const char c : bytes) {
      value_ ^= static_cast<unsigned char>(c);
      value_ *= 1099511628211U;
    }
    return *this;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 14695981039346656037U;
};

}  // namespace assay
