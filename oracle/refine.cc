#include <algorithm>
#include <cmath>
#include <utility>

#include "oracle/ball.h"
#include "oracle/key_values.h"
#include "oracle/reference.h"
#include "oracle/safety_factors.h"
#include "oracle/sums.h"

namespace assay {
namespace {

// Whether two enclosures have a point in common.
bool meet(const Certified& x, const BallRow::Enclosure& ball) {
  const double distance = std::fabs((x.value - ball.value) + (x.low - ball.low));
  return distance <= (x.radius + ball.radius) * (1 + safety::meeting);
}

// The weights of a row, and what all of its columns have in common.
struct RefinedRow {
  RowTruth truth;
  RowBound bound;
  std::vector<double> centred, absolute, tail;
  const char* visible = nullptr;
};

// bounds.md, 9: the sums of a column, key by key in fp64
class ColumnInOrder {
 public:
  ColumnInOrder(const KeyValues& kv, const Contract& c, const BoundTerms& terms,
                const RefinedRow& row, Index column)
      : kv_(kv), tile_(c.tile), counted_(c, terms), row_(row), c_(column) {}

  // `o` is the centre. `hull` is raised to the largest distance of a visible value from it.
  void add_all(double o, double& hull) {
    const Index count = row_.truth.count;
    for (Index j = 0; j < count; ++j) {
      if (row_.visible[j]) add(j, o, hull);
      end_of_key(row_.truth.key0 + j + 1, j + 1 == count);
    }
  }
  const ColumnSums& sums() const { return sums_; }

 private:
  void add(Index j, double o, double& hull) {
    const RowTruth& t = row_.truth;
    const auto key = usize(j);
    const double v = kv_.values(t.key0 + j, c_);
    const double gauge = kv_.values_absolute(t.key0 + j, c_);
    hull = std::max(hull, std::fabs(v - o));
    sums_.centred += row_.centred[key] * std::fabs(v - o);
    sums_.absolute += row_.absolute[key] * gauge;
    sums_.tail += row_.tail[key] * gauge;
    partial_ += (t.kept && t.kept[j] == 0 ? 0 : t.weight[j]) * v;
    sums_.prefix += std::fabs(partial_);
  }
  void end_of_key(Index after, bool last) {
    if (counted_.ends_split(after) || (last && !first_split_)) {
      const double before = std::exchange(merged_, merged_ + partial_);
      if (!first_split_)
        sums_.prefix +=
            counted_.merge * (std::fabs(before) + std::fabs(partial_) + std::fabs(merged_));
      partial_ = 0;
      first_split_ = false;
    } else if (after % tile_ == 0 && !last) {
      sums_.prefix += counted_.tile_end * std::fabs(partial_);
    }
  }

  const KeyValues& kv_;
  const Index tile_;
  const PartialSums counted_;
  const RefinedRow& row_;
  const Index c_;
  ColumnSums sums_;
  bool first_split_ = true;
  double partial_ = 0, merged_ = 0;
};

// bounds.md, 3: the bound of an element from a row in balls
double refined_bound(const KeyValues& kv, const Contract& c, const BoundContext& x,
                     const RefinedRow& row, Index column, double o, double largest) {
  const bool with_zero = row.truth.has_sink || x.dropout;
  double hull = with_zero || row.bound.may_overflow ? std::fabs(o) : 0;
  ColumnInOrder in_order(kv, c, x.terms, row, column);
  in_order.add_all(o, hull);
  ColumnSums sums = in_order.sums();
  sums.prefix *= c.dot_roundoff;
  return element_bound(c, x, row.bound, o, sums, hull, largest);
}

}  // namespace

// bounds.md, 6: rows that fp64 does not decide are weighed in balls
bool Reference::refine(const KeyValues& kv, Block& block, Index r, long bits) const {
  const ProjectedAttention& p = problem_;
  BlockRow& known = block.row(r);
  if (known.lse.kind != Kind::finite) return true;
  const BallRow ball(p, block.b, block.h, known.index, bits);
  const Index first = known.seen_begin, count = known.seen_end - first;
  RefinedRow row;
  row.truth = ball.truth(block.key0 + first, count, adds_in_order(contract_));
  row.visible = block.visible.data() + block.pair(r, first);
  for (auto* v : {&row.centred, &row.absolute, &row.tail}) v->assign(usize(count), 0);
  derive_row_bound(contract_, context_, row.truth, row.bound,
                   {row.centred.data(), row.absolute.data(), row.tail.data()});
  known.slack = p.projection ? safety::projected_slack : safety::least_slack;

  const bool fp64_counts = !known.needs_ball;
  bool consistent = true;
  auto replace = [&](Certified& number, const BallRow::Enclosure& by) {
    if (fp64_counts && !meet(number, by)) consistent = false;
    number.value = by.value;
    number.low = by.low;
    number.radius = by.radius;
  };
  for (Index c = 0; c < p.shape.value_dim; ++c) {
    BlockElement& element = block.element(r, c);
    if (element.kind != Kind::finite) continue;
    double largest = 0;
    for (Index j = 0; j < count; ++j)
      if (row.visible[j]) largest = std::max(largest, kv.values_absolute(row.truth.key0 + j, c));
    element.value_overflow = values_may_overflow(contract_, row.truth.live, largest);
    replace(element, {ball.o(c), ball.o_low(c), ball.o_radius(c)});
    if (!known.exact)
      element.bound = refined_bound(kv, contract_, context_, row, c, element.value, largest);
  }
  replace(known.lse, {ball.lse(), ball.lse_low(), ball.lse_radius()});
  known.lse.bound = row.bound.lse;
  if (known.needs_ball) {
    known.domain = domain_of(row.bound);
    std::copy_n(row.truth.weight, count, block.weight.data() + block.pair(r, first));
    known.needs_ball = false;
  }
  return consistent;
}

}  // namespace assay
