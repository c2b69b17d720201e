// Cases out of bytes, and moves from one case to another: the one decoder of fuzzers and of
// property tests. It goes the other way of harness/cases/shrink.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "problem/case.h"

namespace assay {

// Which cases a target judges.
enum class CaseKind { forward, backward, cached, product };

// Takes choices from bytes; when they are used up, every choice is 0.
class Choices {
 public:
  explicit Choices(std::span<const unsigned char> bytes) : bytes_(bytes) {}
  std::uint64_t below(std::uint64_t n);
  Index between(Index least, Index most) {
    return least + static_cast<Index>(below(static_cast<std::uint64_t>(most - least + 1)));
  }
  bool flag() { return below(2) == 1; }
  template <class T, std::size_t n>
  T of(const T (&list)[n]) {
    return list[below(n)];
  }
  template <class T, std::size_t n>
  T of(std::span<const T, n> list) {
    return list[below(list.size())];
  }
  // Any value of an enumeration.
  template <NamedEnum E>
  E any() {
    return of(std::span(values_of<E>));
  }

 private:
  std::span<const unsigned char> bytes_;
};

// A small case of that kind that check_case() accepts; different bytes give different ones, plain
// ones more often than strange ones.
Case draw_case(CaseKind kind, Choices choices);

// One move by meaning: an extent to the edge of a tile, a mask of another kind, two extents
// exchanged, a value at the edge of its dtype, a feature on or off. The result is a case of the
// same kind that check_case() accepts, and affordable.
Case move_case(const Case& c, CaseKind kind, Choices choices);
// Each field from one or the other, as far as they go together.
Case cross_cases(const Case& a, const Case& b, CaseKind kind, Choices choices);

// Whether a fuzzer may spend its time on it: a few milliseconds.
bool affordable(const Case& c);

// The case that an input of a fuzzer stands for: the line that it is, if it is one of this kind
// that is affordable, else what its bytes draw.
Case case_of_bytes(CaseKind kind, std::span<const unsigned char> bytes);

CaseKind kind_of(const Case& c);

}  // namespace assay
