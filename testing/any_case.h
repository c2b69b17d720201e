// Inside testing/: cases for RapidCheck. The decoder of the fuzzers draws them, and the one
// shrinker shrinks them, for a minute at most.
#pragma once

#include <rapidcheck.h>

#include <memory>
#include <optional>
#include <ostream>
#include <vector>

#include "harness/cases/draw_case.h"
#include "harness/cases/shrink.h"
#include "problem/clock.h"

namespace assay {

inline void showValue(const Case& c, std::ostream& out) { out << print_case(c); }

inline rc::Gen<Case> any_case(CaseKind kind) {
  auto deadline = std::make_shared<std::optional<Clock::time_point>>();
  const auto bytes =
      rc::gen::container<std::vector<unsigned char>>(200, rc::gen::inRange<int>(0, 256));
  return rc::gen::shrink(
      rc::gen::noShrink(rc::gen::map(
          bytes,
          [kind](const std::vector<unsigned char>& b) { return draw_case(kind, Choices(b)); })),
      [kind, deadline](const Case& c) -> rc::Seq<Case> {
        if (!*deadline) *deadline = seconds_from_now(60);
        if (Clock::now() > **deadline) return {};
        std::vector<Case> steps = smaller(c);
        std::erase_if(steps, [&](const Case& s) { return kind_of(s) != kind; });
        return rc::seq::fromContainer(std::move(steps));
      });
}

}  // namespace assay
