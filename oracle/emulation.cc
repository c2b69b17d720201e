#include "oracle/emulation.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace assay {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr double log2_e = 0x1.71547652b82fep0, ln_2 = 0x1.62e42fefa39efp-1;

using Columns = Eigen::VectorXf;

// Rounds to `bits` significant bits, ties to even. Subnormal numbers of the format are the caller's
// concern.
float round_to_bits(float x, int bits) {
  const int dropped = 24 - bits;
  const auto code = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t half = (1u << (dropped - 1)) - 1 + (code >> dropped & 1);
  return std::bit_cast<float>((code + half) & ~((1u << dropped) - 1));
}

// Rounds towards zero to binary32, as the accumulator of a matrix instruction does.
float truncated(double x) {
  const auto near = static_cast<float>(x);
  const bool beyond = std::fabs(static_cast<double>(near)) > std::fabs(x);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(near) - (beyond ? 1u : 0u));
}

bool is_half(const Contract& c) { return c.dot_roundoff == unit_roundoff(Dtype::f16); }
bool truncates(const Contract& c) { return c.dot_roundoff == 0x1p-23; }

// exp of (s - m) times a unit, with the error that the schedule draws from what the contract
// allows.
class Exponential {
 public:
  Exponential(const Contract& c, const Schedule& how, float unit)
      : base_two_(how.base_two),
        fuses_(how.fuses_argument),
        fold_(unit * log2_e * (1 + how.constant * c.scale_error)),
        floor_(how.flushes ? c.exp_floor : 0),
        offset_(how.exp_offset * c.exp_ulp * 0x1p-23),
        slope_(how.exp_slope * c.exp_ulp_per_unit * 0x1p-23) {}

  // exp(0) is 1 in every arithmetic that a contract describes.
  Eigen::ArrayXf of(const Eigen::Ref<const Eigen::ArrayXf>& s, float m) const {
    Eigen::ArrayXf argument = s - m;
    const auto folded = static_cast<float>(m * fold_);
    if (base_two_ && fuses_)
      // A double holds the product nearly, so that this is a fused multiply-add.
      argument = (s.cast<double>() * fold_ - static_cast<double>(folded)).cast<float>();
    else if (base_two_) argument = (s.cast<double>() * fold_).cast<float>() - folded;
    const Eigen::ArrayXd x = (base_two_ ? ln_2 : 1) * argument.cast<double>();
    const Eigen::ArrayXd y = x.exp() * (1 + offset_ + slope_ * x.max(-200.0));
    return (x == 0).select(1.0, (y < floor_).select(0.0, y)).cast<float>();
  }
  float of(float s, float m) const { return of(Eigen::ArrayXf::Constant(1, s), m)(0); }

 private:
  bool base_two_, fuses_;
  // Not rounded to binary32: each replicate then rounds its multiple of a maximum in another way.
  double fold_;
  double floor_, offset_, slope_;
};

// The online softmax: running maximum, row sum and accumulator, tile by tile. Scores are in units,
// which the exponential knows.
class OnlineSoftmax {
 public:
  OnlineSoftmax(const Contract& c, const Schedule& how, const EmulatedRows& in, float unit)
      : c_(c),
        how_(how),
        in_(in),
        unit_(unit),
        exp_(c, how, unit),
        offset_(c.ordered ? in.key0 % how.tile : 0) {
    start_split();
  }

  EmulatedOutputs run(const RowMajorSingle& scores) {
    // Declared splits begin at multiples of their width.
    const Index before = c_.ordered ? in_.key0 / how_.tile : 0;
    for (Index n = 0; n < std::ssize(how_.order); ++n) {
      const Index t = how_.order[usize(n)];
      if (n > 0 && how_.split_tiles > 0 && (before + n) % how_.split_tiles == 0) end_split();
      if (width_of(t) == 0) continue;
      RowMajorSingle p = weigh_tile(scores, t);
      if (!how_.normalizes_first) add_values(p, t);
    }
    merge_splits();
    if (in_.has_sink) add_sink();
    EmulatedOutputs out{RowMajorSingle(), Columns(sum_.size())};
    for (Index r = 0; r < sum_.size(); ++r) out.lse(r) = lse(r);
    if (how_.normalizes_first) add_normalized(scores);
    else divide();
    if (in_.kept.size() > 0) out_ *= static_cast<float>(1 + how_.keep_scale * 0x1p-23);
    out.o = std::move(out_);
    return out;
  }

 private:
  Index first_of(Index t) const { return std::clamp<Index>(t * how_.tile - offset_, 0, in_.count); }
  Index width_of(Index t) const { return first_of(t + 1) - first_of(t); }

  void start_split() {
    const Index rows = in_.q.rows();
    max_ = Columns::Constant(rows, -inf);
    sum_ = Columns::Zero(rows);
    out_ = RowMajorSingle::Zero(rows, in_.kv->values_single.cols());
  }

  void end_split() {
    merge_splits();
    before_ = {std::move(max_), std::move(sum_), std::move(out_)};
    start_split();
  }

  // Adds what the splits before have summed to the current one.
  void merge_splits() {
    for (Index r = 0; r < before_.max.size(); ++r) {
      if (before_.max(r) == -inf) continue;
      raise_maximum(r, std::max(max_(r), before_.max(r)));
      const float w = exp_.of(before_.max(r), max_(r));
      sum_(r) += before_.sum(r) * w;
      out_.row(r) += before_.out.row(r) * w;
    }
  }

  void raise_maximum(Index r, float m) {
    if (m == max_(r)) return;
    const float w = max_(r) == -inf ? 0 : exp_.of(max_(r), m);
    sum_(r) *= w;
    out_.row(r) *= w;
    max_(r) = m;
  }

  // The weights of a tile, relative to the running maximum; they are added to the row sum.
  RowMajorSingle weigh_tile(const RowMajorSingle& scores, Index t) {
    const Index width = width_of(t);
    RowMajorSingle p = RowMajorSingle::Zero(scores.rows(), width);
    for (Index r = 0; r < scores.rows(); ++r) {
      const Eigen::ArrayXf s = scores.row(r).segment(first_of(t), width).transpose();
      const float largest = s.maxCoeff();
      // A maximum that lags by less than 8 is kept, as kernels do that rescale rarely.
      if (!(how_.late_maximum && max_(r) > -inf && unit_ * (largest - max_(r)) < 8))
        raise_maximum(r, std::max(max_(r), largest));
      if (max_(r) == -inf) continue;
      p.row(r) = exp_.of(s, max_(r)).transpose();
      if (!c_.sum_from_rounded) add_weights(r, p);
    }
    cast(p);
    for (Index r = 0; c_.sum_from_rounded && r < p.rows(); ++r) add_weights(r, p);
    return p;
  }

  // Adds the weights of a tile to the row sum. Where the order is declared, a tile is summed first.
  void add_weights(Index r, const RowMajorSingle& p) {
    if (!how_.sums_in_order) {
      sum_(r) += p.row(r).sum();
      return;
    }
    float sum = c_.ordered ? 0 : sum_(r);
    for (const float w : p.row(r)) sum += w;
    sum_(r) = c_.ordered ? sum_(r) + sum : sum;
  }

  void add_sink() {
    for (Index r = 0; r < sum_.size(); ++r) {
      raise_maximum(r, std::max(max_(r), in_.sink));
      sum_(r) += exp_.of(in_.sink, max_(r));
    }
  }

  float lse(Index r) const {
    if (sum_(r) == 0) return -inf;
    const auto error = static_cast<float>(1 + how_.log * c_.log_ulp * 0x1p-23);
    if (!how_.base_two) return max_(r) + std::log(sum_(r)) * error;
    return (max_(r) * static_cast<float>(unit_ * log2_e) + std::log2(sum_(r)) * error) *
           static_cast<float>(ln_2);
  }

  void divide() {
    for (Index r = 0; r < sum_.size(); ++r) {
      if (sum_(r) == 0) out_.row(r).setZero();
      else if (c_.division_roundings == 1) out_.row(r) /= sum_(r);
      else out_.row(r) *= 1 / sum_(r);
    }
  }

  // A second pass over the keys, in which P is normalized before it is cast.
  void add_normalized(const RowMajorSingle& scores) {
    out_.setZero();
    for (Index t : how_.order) {
      RowMajorSingle p = RowMajorSingle::Zero(scores.rows(), width_of(t));
      for (Index r = 0; r < scores.rows(); ++r)
        if (sum_(r) > 0) {
          const Eigen::ArrayXf s = scores.row(r).segment(first_of(t), width_of(t)).transpose();
          if (how_.from_lse) p.row(r) = exp_.of(s, lse(r)).transpose();
          else p.row(r) = exp_.of(s, max_(r)).transpose() * (1 / sum_(r));
        }
      cast(p);
      add_values(p, t);
    }
  }

  void cast(RowMajorSingle& p) const {
    if (c_.weight_dtype) round_all(*c_.weight_dtype, p);
  }

  // V holds 1 / (1 - dropout) already.
  void add_values(RowMajorSingle& p, Index t) {
    if (in_.kept.size() > 0) p.array() *= in_.kept.middleCols(first_of(t), width_of(t)).array();
    const Index key = in_.key0 + first_of(t);
    add_product(c_, how_, p, in_.kv->values_single.middleRows(key, width_of(t)), out_);
  }

  const Contract& c_;
  const Schedule& how_;
  const EmulatedRows& in_;
  const float unit_;
  Exponential exp_;
  // Declared tiles begin at multiples of their width, and where they begin decides how weights are
  // rounded. This many keys of the first one lie before those that are given.
  const Index offset_;
  Columns max_, sum_;
  RowMajorSingle out_;
  struct {
    Columns max, sum;
    RowMajorSingle out;
  } before_;  // of the splits before; empty in the first one
};

// The numbers that dot products read: those below the floor are 0.
RowMajorSingle as_operand(const Contract& c, const SingleRef& m) {
  const auto floor = static_cast<float>(c.operand_floor);
  return m.unaryExpr([floor](float x) { return std::fabs(x) < floor ? 0.0f : x; });
}

// Adds the products of a block as a matrix instruction does that aligns them, and the sum, to the
// largest of them, and drops what is below its last bit of each.
void add_aligned(const Contract& c, const SingleRef& a, const SingleRef& b, Index k, Index width,
                 RowMajorSingle& sum) {
  const Index columns = sum.cols();
  std::vector<double> quantum(usize(columns)), total(usize(columns));
  for (Index r = 0; r < sum.rows(); ++r) {
    for (Index j = 0; j < columns; ++j)
      quantum[usize(j)] = std::fabs(static_cast<double>(sum(r, j)));
    for (Index i = k; i < k + width; ++i) {
      const auto x = static_cast<double>(a(r, i));
      for (Index j = 0; j < columns; ++j)
        quantum[usize(j)] = std::max(quantum[usize(j)], std::fabs(x * b(i, j)));
    }
    for (Index j = 0; j < columns; ++j) {
      double& q = quantum[usize(j)];
      constexpr std::uint64_t exponent = 0x7FF0000000000000;
      q = c.dot_roundoff * std::bit_cast<double>(std::bit_cast<std::uint64_t>(q) & exponent);
      q = std::max(q, 0x1p-149);
      total[usize(j)] = std::trunc(sum(r, j) / q) * q;
    }
    for (Index i = k; i < k + width; ++i) {
      const auto x = static_cast<double>(a(r, i));
      for (Index j = 0; j < columns; ++j)
        total[usize(j)] += std::trunc(x * b(i, j) / quantum[usize(j)]) * quantum[usize(j)];
    }
    for (Index j = 0; j < columns; ++j) sum(r, j) = truncated(total[usize(j)]);
  }
}

void add_operands(const Contract& c, const Schedule& how, const SingleRef& a, const SingleRef& b,
                  RowMajorSingle& sum) {
  const Index n = a.cols();
  if (how.three_parts) {
    RowMajorSingle high_a = a, high_b = b;
    for (RowMajorSingle* m : {&high_a, &high_b})
      *m = m->unaryExpr([](float x) { return round_to_bits(x, 11); });
    const RowMajorSingle low_a =
        RowMajorSingle(a - high_a).unaryExpr([](float x) { return round_to_bits(x, 11); });
    const RowMajorSingle low_b =
        RowMajorSingle(b - high_b).unaryExpr([](float x) { return round_to_bits(x, 11); });
    constexpr Index width = 8;
    for (Index k = 0; k < n; k += width) {
      const Index w = std::min(width, n - k);
      auto add = [&](const RowMajorSingle& x, const RowMajorSingle& y) {
        const RowMajor part = x.middleCols(k, w).cast<double>() * y.middleRows(k, w).cast<double>();
        sum = (sum.cast<double>() + part).unaryExpr(&truncated);
      };
      add(low_a, high_b);
      add(high_a, low_b);
      add(high_a, high_b);
    }
  } else if (is_half(c)) {
    for (Index k = 0; k < n; k += how.half_part) {
      const Index w = std::min(how.half_part, n - k);
      sum.noalias() += a.middleCols(k, w) * b.middleRows(k, w);
      round_all(Dtype::f16, sum);
    }
  } else if (c.dot_block > 0 || truncates(c)) {
    const Index block = std::max(c.dot_block, 1);
    for (Index k = 0; k < n; k += block) {
      const Index w = std::min(block, n - k);
      if (how.aligns_products) {
        add_aligned(c, a, b, k, w, sum);
        continue;
      }
      const RowMajor part = a.middleCols(k, w).cast<double>() * b.middleRows(k, w).cast<double>();
      sum = (sum.cast<double>() + part).unaryExpr(&truncated);
    }
  } else if (c.ordered) {
    // One term after the other. Eigen's products are so as well, but for what has few rows or
    // columns, and for the last ones of others: these it sums in lanes, which round less.
    for (Index i = 0; i < n; ++i) sum.noalias() += a.col(i) * b.row(i);
  } else {
    const Index part = how.dot_part > 0 ? how.dot_part : n;
    // Eigen sums narrow products in lanes, which round less, and wide ones term after term.
    const bool in_order = (sum.cols() < 16 || sum.rows() < 4) && !how.lanes;
    RowMajorSingle of_part;
    for (Index k = 0; k < n; k += part) {
      const Index w = std::min(part, n - k);
      if (in_order) {
        of_part.setZero(sum.rows(), sum.cols());
        for (Index i = k; i < k + w; ++i) of_part.noalias() += a.col(i) * b.row(i);
        sum += of_part;
      } else {
        sum.noalias() += a.middleCols(k, w) * b.middleRows(k, w);
      }
    }
  }
}

}  // namespace

bool is_emulated(const Contract& c) {
  const bool sums = c.dot_block > 0 || c.dot_roundoff <= 0x1p-24 || truncates(c) ||
                    (is_half(c) && c.largest <= format(Dtype::f16).max_finite);
  return sums && c.roundoff <= 0x1p-24 && c.argument_roundings <= 2 && c.division_roundings <= 2;
}

void add_product(const Contract& c, const Schedule& how, const SingleRef& a, const SingleRef& b,
                 RowMajorSingle& sum) {
  if (c.operand_floor == 0) add_operands(c, how, a, b, sum);
  else add_operands(c, how, as_operand(c, a), as_operand(c, b), sum);
}

std::vector<Index> shuffled(Index n, std::uint64_t seed) {
  std::vector<Index> order(usize(n));
  std::iota(order.begin(), order.end(), Index{0});
  SplitMix64 random(seed);
  for (std::size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[random.below(k)]);
  return order;
}

// q.k with its terms in the drawn order or, for every key, in one of two.
void add_shuffled_product(const Contract& c, const Schedule& how, const RowMajorSingle& q,
                          const SingleRef& keys, RowMajorSingle& s) {
  std::vector<Index> columns[2];
  for (Index j = 0; j < keys.cols(); ++j)
    columns[how.two_orders ? SplitMix64::number(how.dim_seed, usize(j)) % 2 : 0].push_back(j);
  Schedule own = how;
  for (std::uint64_t k = 0; k < 2; ++k) {
    if (columns[k].empty()) continue;
    // Where all terms are alike, every order rounds alike, but a sum in parts does not.
    if (k == 1) own.dot_part = how.dot_part > 0 ? 0 : 16;
    const std::vector<Index> order = shuffled(q.cols(), how.dim_seed + k);
    RowMajorSingle sums = RowMajorSingle::Zero(s.rows(), std::ssize(columns[k]));
    add_product(c, own, RowMajorSingle(q(Eigen::all, order)),
                RowMajorSingle(keys(order, columns[k])), sums);
    s(Eigen::all, columns[k]) = sums;
  }
}

RowMajorSingle emulated_scores(const Contract& c, const Schedule& how, const EmulatedRows& in,
                               RowMajorSingle* slope) {
  RowMajorSingle q = in.q;
  const bool by_root = how.scales_both && !c.query_dtype && in.scale != 0;
  const bool prescaled = c.query_dtype || how.scales_query || by_root;
  const float root = by_root ? std::sqrt(std::fabs(in.scale)) : 1;
  // A kernel that computes 2^x may multiply Q by log2 e, too. What cancels exactly in q.k may then
  // do so no more.
  const bool folded = how.base_two && how.scales_query && !by_root && !c.query_dtype &&
                      in.softcap == 0 && in.only_masks;
  if (folded) q *= in.scale * static_cast<float>(log2_e);
  else if (prescaled) q *= by_root ? std::copysign(root, in.scale) : in.scale;
  if (c.query_dtype) round_all(*c.query_dtype, q);
  RowMajorSingle s = RowMajorSingle::Zero(q.rows(), in.count);
  const auto own_keys = in.kv->keys_transposed_single.middleCols(in.key0, in.count);
  const RowMajorSingle scaled_keys = by_root ? RowMajorSingle(own_keys * root) : RowMajorSingle();
  const SingleRef keys = by_root ? SingleRef(scaled_keys) : SingleRef(own_keys);
  if (how.dim_seed == 0) add_product(c, how, q, keys, s);
  else add_shuffled_product(c, how, q, keys, s);
  if (folded) s *= static_cast<float>(ln_2);
  if (c.score_dtype && how.rounds_unscaled) round_all(*c.score_dtype, s);
  if (!prescaled) s *= in.scale;
  if (c.stores_score_parts && how.rounds_unscaled) round_all(*c.score_dtype, s);
  if (in.softcap > 0) {
    const float inverse = 1 / in.softcap;
    const auto error = static_cast<float>(1 + how.tanh * c.tanh_ulp * 0x1p-23);
    s = s.unaryExpr([&](float x) { return std::min(std::tanh(x * inverse) * error, 1.0f); });
    if (slope) *slope = 1 - s.array().square();
    s *= in.softcap;
  }
  if (in.bias.size() > 0) s += in.bias;
  if (c.score_dtype) round_all(*c.score_dtype, s);
  return s;
}

Schedule draw_schedule(const Contract& c, Index keys, SplitMix64& random, Index serial) {
  Schedule how;
  const auto unit = [&] { return static_cast<double>(random() >> 11) * 0x1p-52 - 1; };
  constexpr Index tiles[] = {16, 32, 64, 128, 256}, parts[] = {0, 0, 8, 16}, halves[] = {1, 4, 16};
  how.tile = c.ordered ? c.tile : tiles[random.below(std::size(tiles))];
  // A plain loop over the columns, and Q and K are both scaled below: where all terms are alike, no
  // other order rounds as it does.
  const bool is_plain = serial == 7;
  how.dim_seed = serial == 0 ? 0 : random();
  if (is_plain) how.dim_seed = 0;
  how.two_orders = !c.ordered && serial % 8 < 4;
  const Index part = parts[random.below(std::size(parts))];
  how.dot_part = c.ordered || is_plain ? 0 : part;
  how.half_part = halves[random.below(std::size(halves))];
  how.scales_query = !c.ordered && random.below(2) != 0;
  how.scales_gradients = c.ordered ? serial % 2 == 0 : how.scales_query;
  how.base_two = c.fused_argument;
  how.folds_scale = serial / 2 % 2 != 0;
  how.fuses_argument = c.ordered || serial % 6 < 3;
  how.from_lse =
      c.weights_from_lse || (!c.ordered && !c.weight_dtype && !c.divides_first && serial % 4 == 1);
  how.normalizes_first =
      c.divides_first || how.from_lse || (!c.ordered && c.weight_dtype && serial % 2 != 0);
  how.late_maximum = !c.ordered && random.below(3) == 0;
  how.scales_both = !c.ordered && !c.weight_dtype && serial % 4 == 3;
  how.rounds_unscaled = serial % 4 < 2;
  how.three_parts = c.fused_argument && !c.ordered && !c.weight_dtype && serial % 2 != 0;
  how.exp_offset = unit();
  how.exp_slope = unit();
  how.constant = unit();
  how.tanh = unit();
  how.log = unit();
  how.keep_scale = unit();
  how.flushes = serial % 2 == 0;
  how.keeps_weights = serial % 4 < 2;
  how.sums_in_order = serial % 3 == 0;
  how.lanes = how.aligns_products = serial % 2 != 0;
  // Declared tiles may begin before the first key.
  how.order.resize(usize((keys + how.tile - 1) / how.tile + (c.ordered ? 1 : 0)));
  if (c.split_keys > 0) how.split_tiles = std::max<Index>(c.split_keys / how.tile, 1);
  else if (c.splits > 1) how.split_tiles = std::ssize(how.order) / c.splits + 1;
  else if (!c.ordered && serial % 4 == 2) how.split_tiles = 1 + serial / 4;
  std::iota(how.order.begin(), how.order.end(), Index{0});
  if (!c.ordered)
    for (std::size_t k = how.order.size(); k > 1; --k)
      std::swap(how.order[k - 1], how.order[random.below(k)]);
  return how;
}

EmulatedOutputs emulate(const Contract& c, const Schedule& how, const EmulatedRows& in) {
  const bool folds = how.base_two && how.folds_scale && !how.scales_query && !how.scales_both &&
                     !c.query_dtype && !c.score_dtype && in.softcap == 0 && in.only_masks &&
                     in.scale > 0 && std::isfinite(in.sink / in.scale);
  if (!folds) return OnlineSoftmax(c, how, in, 1).run(emulated_scores(c, how, in));
  // The softmax reads q.k, and multiplies it by scale * log2 e, which is one number.
  EmulatedRows unscaled = in;
  unscaled.scale = 1;
  unscaled.sink /= in.scale;
  return OnlineSoftmax(c, how, unscaled, in.scale).run(emulated_scores(c, how, unscaled));
}

}  // namespace assay
