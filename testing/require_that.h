// A property of RapidCheck that holds a value against a matcher, as EXPECT_THAT does in a test.
#pragma once

#include <gmock/gmock.h>
#include <rapidcheck.h>

#include <sstream>

namespace assay {

// Fails the property, with the matcher's message, unless the value matches.
template <class Value, class Matcher>
void require_that(const Value& value, const Matcher& matcher) {
  const auto expected = testing::SafeMatcherCast<const Value&>(matcher);
  testing::StringMatchResultListener found;
  if (expected.MatchAndExplain(value, &found)) return;
  std::ostringstream message;
  message << "expected: a value that ";
  expected.DescribeTo(&message);
  message << "\n  found: one " << found.str();
  RC_FAIL(message.str());
}

}  // namespace assay
