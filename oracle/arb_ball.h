// Inside oracle/: the operations on Arb's balls that this directory uses.
#pragma once

#include <cmath>
#include <limits>

#include "oracle/arb_headers.h"
#include "oracle/ball.h"
#include "oracle/safety_factors.h"

namespace assay {

// These classes own objects of Arb's types, which have to be cleared, and offer the operations on
// them that are used here.
class Ball {
 public:
  Ball() { arb_init(x_); }
  explicit Ball(double v) : Ball() { arb_set_d(x_, v); }
  Ball(const Ball& other) : Ball() { arb_set(x_, other.x_); }
  Ball& operator=(const Ball& other) {
    arb_set(x_, other.x_);
    return *this;
  }
  ~Ball() { arb_clear(x_); }
  arb_ptr get() { return x_; }
  arb_srcptr get() const { return x_; }

 private:
  arb_t x_;
};

inline double nearest(arb_srcptr x) { return arf_get_d(arb_midref(x), ARF_RND_NEAR); }

// Encloses a ball by three doubles: the midpoint rounded to double, the rest of the midpoint, and a
// radius.
inline BallRow::Enclosure enclose(arb_srcptr x, long bits) {
  BallRow::Enclosure e;
  e.value = nearest(x);
  Ball rest, value(e.value);
  arb_sub(rest.get(), x, value.get(), 2 * bits + 128);
  e.low = nearest(rest.get());
  Ball low(e.low);
  arb_sub(rest.get(), rest.get(), low.get(), 2 * bits + 128);
  mag_t m;
  mag_init(m);
  arb_get_mag(m, rest.get());
  e.radius = mag_get_d(m) * (1 + safety::radius_in_fp64);
  mag_clear(m);
  if (!std::isfinite(e.value) || !std::isfinite(e.radius))
    return {0, 0, std::numeric_limits<double>::infinity()};  // an enclosure that holds every number
  return e;
}

}  // namespace assay
