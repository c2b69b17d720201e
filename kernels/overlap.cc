#include "kernels/overlap.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace assay::kernels {
namespace {

bool is_empty(const Footprint& f) {
  return f.data == nullptr ||
         std::any_of(f.shape.begin(), f.shape.end(), [](Index n) { return n <= 0; });
}

// The numbers step * x with x in [0, most].
struct Term {
  std::int64_t step, most;
};

// Counts in how many ways, up to `enough`, `target` is a sum of one number of each term.
class Search {
 public:
  void add(std::int64_t step, std::int64_t most) {
    if (most > 0) terms_[count_++] = {step, most};
  }

  // Joins terms whose sums leave no gap. This keeps whether there is a solution, but not how many
  // there are.
  void join() {
    sort();
    std::size_t kept = 0;
    for (std::size_t k = 1; k < count_; ++k) {
      Term& into = terms_[kept];
      const Term& term = terms_[k];
      if (term.step % into.step == 0 && term.step / into.step <= into.most + 1)
        into.most += term.step / into.step * term.most;
      else terms_[++kept] = term;
    }
    if (count_ > 0) count_ = kept + 1;
  }

  Overlap run(std::int64_t target, int enough) {
    sort();
    std::int64_t sum = 0, divisor = 0;
    for (std::size_t k = 0; k < count_; ++k) {
      below_[k] = sum;
      sum += terms_[k].step * terms_[k].most;
      divisors_[k] = divisor = std::gcd(divisor, terms_[k].step);
    }
    const int found = solutions(count_, target, enough);
    return found >= enough ? Overlap::some : budget_ < 0 ? Overlap::undecided : Overlap::none;
  }

 private:
  void sort() {
    std::sort(terms_, terms_ + count_,
              [](const Term& a, const Term& b) { return a.step < b.step; });
  }

  // Counts the solutions with the first `count` terms, beginning with the largest step.
  int solutions(std::size_t count, std::int64_t target, int enough) {
    if (count == 0) return target == 0;
    const Term& term = terms_[count - 1];
    const std::int64_t rest = below_[count - 1];
    if (target < 0 || target % divisors_[count - 1] != 0) return 0;
    const std::int64_t least = target <= rest ? 0 : (target - rest + term.step - 1) / term.step,
                       most = std::min(term.most, target / term.step);
    int found = 0;
    for (std::int64_t x = least; x <= most && found < enough && budget_-- >= 0; ++x)
      found += solutions(count - 1, target - x * term.step, enough - found);
    return found;
  }

  Term terms_[10];
  std::int64_t below_[10], divisors_[10];
  std::size_t count_ = 0;
  int budget_ = 100'000;
};

}  // namespace

Footprint footprint_of(const TensorView& t, const Extents& shape) {
  return {t.data, format(t.dtype).bits, shape, t.stride, t.origin};
}

std::optional<Reach> reach_of(const Footprint& f) {
  if (is_empty(f)) return Reach{};
  std::int64_t first = f.origin, last = f.origin;
  bool overflow = false;
  for (std::size_t k = 0; k < 4; ++k) {
    std::int64_t span = 0;
    overflow |= __builtin_mul_overflow(f.shape[k] - 1, f.stride[k], &span);
    std::int64_t& end = span < 0 ? first : last;
    overflow |= __builtin_add_overflow(end, span, &end);
  }
  const std::int64_t limit = (std::int64_t{1} << 60) / f.bits;
  if (overflow || first < -limit || last >= limit) return std::nullopt;
  const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(f.data) * 8);
  return Reach{address + first * f.bits, address + (last + 1) * f.bits};
}

Overlap overlap_with_itself(const Footprint& f) {
  if (is_empty(f)) return Overlap::none;
  // Two elements share a place if and only if the sum of stride * difference is 0 for some
  // differences in (-n, n) that are not all 0.
  Search search;
  std::int64_t middle = 0;
  for (std::size_t k = 0; k < 4; ++k) {
    if (f.shape[k] == 1) continue;
    if (f.stride[k] == 0) return Overlap::some;
    const std::int64_t step = std::abs(f.stride[k]);
    search.add(step, 2 * (f.shape[k] - 1));
    middle += step * (f.shape[k] - 1);
  }
  return search.run(middle, 2);
}

Overlap overlap(const Footprint& a, const Footprint& b) {
  const Reach ra = *reach_of(a), rb = *reach_of(b);
  if (ra.end <= rb.begin || rb.end <= ra.begin) return Overlap::none;
  // The views share a bit if a.begin + sum |s| x + u = b.begin + sum |t| y + v, where u and v count
  // bits within an element. With y' = most - y and v' = most - v all coefficients are positive.
  Search search;
  for (std::size_t k = 0; k < 4; ++k) {
    // The stride of an extent of 1 has no meaning, so it may be anything.
    for (const Footprint* f : {&a, &b})
      if (f->shape[k] > 1 && f->stride[k] != 0)
        search.add(std::abs(f->stride[k]) * f->bits, f->shape[k] - 1);
  }
  search.add(1, a.bits - 1);
  search.add(1, b.bits - 1);
  search.join();
  return search.run(rb.end - 1 - ra.begin, 1);
}

}  // namespace assay::kernels
