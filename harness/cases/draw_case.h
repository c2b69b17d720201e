// Draws cases from bytes, and moves from one case to another. Fuzzers and property tests share this
// one decoder. harness/cases/shrink.h goes the opposite way.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "problem/case.h"

namespace assay {

// The kinds of cases; each fuzz target judges one kind.
enum class CaseKind { forward, backward, cached, product };

// Takes choices from bytes. When the bytes are used up, every choice is 0.
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
  // Chooses any value of an enumeration.
  template <NamedEnum E>
  E any() {
    return of(std::span(values_of<E>));
  }

 private:
  std::span<const unsigned char> bytes_;
};

// Multiply-adds, those of backward passes four times. With little work, a fuzzer executes hundreds
// or thousands of cases a second; most_work is what it may spend on one.
inline constexpr double little_work = 32768, most_work = 1'000'000;

// Draws a small case of that kind that check_case() accepts, with at most so much work. Different
// bytes give different cases, plain ones more often than strange ones.
Case draw_case(CaseKind kind, Choices choices, double work = most_work);

// Makes one meaningful change: sets an extent to the edge of a tile, takes a mask of another kind,
// exchanges two extents, sets a value at the edge of its dtype, or turns a feature on or off. The
// result is an affordable case of the same kind that check_case() accepts. Only one move in 32
// leads from little work to more.
Case move_case(const Case& c, CaseKind kind, Choices choices);
// Takes each field from one case or the other, as far as the fields go together.
Case cross_cases(const Case& a, const Case& b, CaseKind kind, Choices choices);

// Whether a fuzzer may spend time on the case: it takes a few milliseconds at most.
bool affordable(const Case& c);

// The case that an input of a fuzzer stands for. If the input is the line of an affordable case of
// this kind, it is that case; otherwise it is the case that its bytes draw.
Case case_of_bytes(CaseKind kind, std::span<const unsigned char> bytes);

CaseKind kind_of(const Case& c);

}  // namespace assay
