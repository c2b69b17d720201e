// The known faults of gradients. The altered gradients of a group of heads are sums in fp64 over
// the weights of the reference, with the L and D that a kernel reads.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <functional>

#include "oracle/alteration.h"
#include "oracle/diagnosis.h"
#include "oracle/explain.h"
#include "oracle/gradient_suspicions.h"
#include "oracle/stored_forward.h"

namespace assay {
namespace {

// How a faulty kernel computes the gradients.
struct GradientFormula {
  GradientFormula(const Attention& p, const AttentionBackwardInput& input)
      : problem(p), reads_lse_gradient(input.d_lse) {}

  ProjectedAttention problem;              // from which it computes P again
  std::function<Index(Index h)> key_head;  // empty: the own one
  double lse_factor = 1;
  bool lse_lacks_sink = false;
  bool subtracts_delta = true, delta_in_bf16 = false, reads_lse_gradient;
  bool delta_of_row_before = false, delta_from_bf16_output = false;
  Index values_end = -1;  // columns of V from here on give nothing to dP
  bool has_softcap_slope = true, slope_from_uncapped = false;
  double factor_of_dp = 1, factor_of_dq = 1, factor_of_dk = 1;
  bool truncates_weights = false, truncates_score_gradients = false;  // to bf16
  Index rows_end = -1;         // rows from here on give nothing to dK and dV
  bool writes_all_dq = false;  // also that of those rows, which is otherwise not written
  Index keys_end = -1;         // dK and dV of keys from here on are 0
  Index dq_keys_end = -1;      // keys from here on give nothing to dQ
  bool last_head_only = false;
  double exponent = 1;            // every argument of exp is multiplied by it
  bool clamps_weights = false;    // an exponential for arguments of at most 0 gives at most 1
  bool inverts_triangle = false;  // in dK and dV
  // Rounds the operands of products to fewer bits: all operands, or only P before the product with
  // dO. P and dS are multiplied by `dither`, rounded, and divided by it again. Another dither gives
  // other rounding errors of the same size.
  double (*rounds_operands)(double) = nullptr;
  double (*rounds_weights)(double) = nullptr;
  double dither = 1;
  // What is wrong of P and dS is wrong in these pairs alone; null: in all.
  const GradientRegion* region = nullptr;
};

struct GradientHypothesis {
  std::string_view name;
  std::string_view words;
  bool (*alter)(GradientFormula& f, Index parameter);
  std::span<const Index> parameters = {};
};

constexpr Index tiles[] = {8, 16, 32, 48, 64, 96, 128};
constexpr Index places[] = {2, 3, 4};
constexpr double log2_e = 1.4426950408889634;
constexpr Index splits[] = {96, 128, 192, 256, 288, 384, 480, 512, 576, 768, 1024};

bool drop_tail(Index& end, Index extent, Index tile) {
  end = extent / tile * tile;
  return end > 0 && end < extent;
}

constexpr GradientHypothesis hypotheses[] = {
    {"delta-omitted", "D = sum dO O is not subtracted from dP",
     [](GradientFormula& f, Index) { return f.subtracts_delta = false, true; }},
    {"delta-in-bf16", "D is kept in bf16",
     [](GradientFormula& f, Index) { return f.delta_in_bf16 = true; }},
    {"delta-of-row-before", "D of each row is that of the row before",
     [](GradientFormula& f, Index) {
       f.delta_of_row_before = true;
       return f.problem.shape.rows > 1;
     }},
    {"delta-from-bf16-output", "D is computed from O in bf16",
     [](GradientFormula& f, Index) { return f.delta_from_bf16_output = true; }},
    {"dp-tail-dropped", "dP lacks the last columns, to a multiple of {}",
     [](GradientFormula& f, Index tile) {
       return drop_tail(f.values_end, f.problem.shape.value_dim, tile);
     },
     tiles},
    {"dp-of-dim-columns", "dP has as many columns as Q",
     [](GradientFormula& f, Index) {
       f.values_end = f.problem.shape.dim;
       return f.values_end < f.problem.shape.value_dim;
     }},
    {"softcap-slope-uncapped", "the slope of the softcap is that of the score before it",
     [](GradientFormula& f, Index) {
       f.slope_from_uncapped = true;
       return f.problem.softcap > 0;
     }},
    {"gradient-window-short", "the left window of the backward pass is one key short",
     [](GradientFormula& f, Index) { return f.problem.window_left-- > 0; }},
    {"gradient-window-long", "the left window of the backward pass is one key long",
     [](GradientFormula& f, Index) {
       return f.problem.window_left >= 0 && ++f.problem.window_left;
     }},
    {"gradient-window-ignored", "the backward pass ignores the window",
     [](GradientFormula& f, Index) {
       Attention& p = f.problem;
       const bool any = p.window_left >= 0 || p.window_right >= 0;
       p.window_left = p.window_right = -1;
       return any;
     }},
    {"dlse-omitted", "dLSE is not added to dP - D",
     [](GradientFormula& f, Index) { return std::exchange(f.reads_lse_gradient, false); }},
    {"dq-scaled-twice", "dQ is multiplied by the scale twice",
     [](GradientFormula& f, Index) {
       f.factor_of_dq = static_cast<double>(f.problem.scale);
       return f.factor_of_dq != 1;
     }},
    {"dq-unscaled", "dQ lacks the scale",
     [](GradientFormula& f, Index) {
       f.factor_of_dq = 1 / static_cast<double>(f.problem.scale);
       return f.problem.scale != 0 && f.factor_of_dq != 1;
     }},
    {"dk-scaled-twice", "dK is multiplied by the scale twice",
     [](GradientFormula& f, Index) {
       f.factor_of_dk = static_cast<double>(f.problem.scale);
       return f.factor_of_dk != 1;
     }},
    {"dk-unscaled", "dK lacks the scale",
     [](GradientFormula& f, Index) {
       f.factor_of_dk = 1 / static_cast<double>(f.problem.scale);
       return f.problem.scale != 0 && f.factor_of_dk != 1;
     }},
    {"softcap-slope-omitted", "dS lacks the slope of the softcap",
     [](GradientFormula& f, Index) {
       f.has_softcap_slope = false;
       return f.problem.softcap > 0;
     }},
    {"row-tile-dropped", "the last, shorter tile of {} rows is dropped",
     [](GradientFormula& f, Index tile) {
       return drop_tail(f.rows_end, f.problem.shape.rows, tile);
     },
     tiles},
    {"key-tile-dropped", "dK and dV of the last, shorter tile of {} keys are 0",
     [](GradientFormula& f, Index tile) {
       return drop_tail(f.keys_end, f.problem.shape.keys, tile);
     },
     tiles},
    {"gradient-tails-dropped",
     "dQ lacks the last, shorter tile of {0} keys, and dK and dV that of {0} rows",
     [](GradientFormula& f, Index tile) {
       const AttentionShape& s = f.problem.shape;
       f.dq_keys_end = s.keys / tile * tile;
       f.rows_end = s.rows / tile * tile;
       f.writes_all_dq = true;
       return f.dq_keys_end < s.keys || f.rows_end < s.rows;
     },
     tiles},
    {"gradient-log2-e-rounded",
     "log2 e is rounded to {} places behind the point in the backward pass",
     [](GradientFormula& f, Index n) {
       const double unit = std::pow(10.0, static_cast<double>(n));
       f.exponent = std::round(log2_e * unit) / unit / log2_e;
       return true;
     },
     places},
    {"last-head-only", "dK and dV are those of the last head of a group",
     [](GradientFormula& f, Index) {
       f.last_head_only = true;
       return f.problem.shape.group() > 1;
     }},
    {"gradient-head-modulo", "gradients of query head h are those of kv head h mod Hkv",
     [](GradientFormula& f, Index) {
       const AttentionShape& s = f.problem.shape;
       f.key_head = [heads = s.kv_heads](Index h) { return h % heads; };
       return s.group() > 1 && s.kv_heads > 1;
     }},
    {"gradient-causal-late", "the causal diagonal of the backward pass is one key late",
     [](GradientFormula& f, Index) {
       if (!f.problem.causal || f.problem.window_right >= 0) return false;
       f.problem.causal = false;
       f.problem.window_right = 1;
       return true;
     }},
    {"gradient-causal-late", "causality and windows of the backward pass are one key late",
     [](GradientFormula& f, Index) {
       Attention& p = f.problem;
       if (!p.causal || !p.alibi_slopes.empty()) return false;
       p.offset.resize(usize(p.shape.batch), 0);
       for (Index& n : p.offset) ++n;
       return true;
     }},
    {"gradient-causal-early", "the causal diagonal of the backward pass is one key early",
     [](GradientFormula& f, Index) {
       Attention& p = f.problem;
       if (!p.causal || p.window_left >= 0 || p.window_right >= 0 || !p.alibi_slopes.empty())
         return false;
       p.offset.resize(usize(p.shape.batch), 0);
       for (Index& n : p.offset) --n;
       return true;
     }},
    {"gradient-offset-ignored", "the backward pass ignores the offset of causality and windows",
     [](GradientFormula& f, Index) {
       Attention& p = f.problem;
       const bool any = std::ranges::any_of(p.offset, [](Index n) { return n != 0; });
       p.offset.clear();
       return any && (p.causal || p.window_left >= 0 || p.window_right >= 0);
     }},
    {"gradient-causal-ignored", "the backward pass ignores causality",
     [](GradientFormula& f, Index) { return std::exchange(f.problem.causal, false); }},
    {"gradient-without-bias", "the backward pass ignores the additive mask",
     [](GradientFormula& f, Index) { return bool{std::exchange(f.problem.bias, {})}; }},
    {"gradient-without-dropout", "nothing is dropped in the backward pass",
     [](GradientFormula& f, Index) { return std::exchange(f.problem.dropout, 0.0f) > 0; }},
    {"gradient-dropout-redrawn", "the backward pass draws its dropout from the next seed",
     [](GradientFormula& f, Index) { return ++f.problem.dropout_seed, f.problem.dropout > 0; }},
    {"dp-dropout-unscaled", "dP lacks the 1 / (1 - p) of dropout",
     [](GradientFormula& f, Index) {
       f.factor_of_dp = 1 - static_cast<double>(f.problem.dropout);
       return f.problem.dropout > 0;
     }},
    {"gradient-weights-truncated", "P is cast to bf16 by truncation",
     [](GradientFormula& f, Index) { return f.truncates_weights = true; }},
    {"score-gradients-truncated", "dS is cast to bf16 by truncation",
     [](GradientFormula& f, Index) { return f.truncates_score_gradients = true; }},
    {"gradient-lse-base-two", "the backward pass takes LSE for a logarithm to base 2",
     [](GradientFormula& f, Index) {
       f.lse_factor = 0.6931471805599453;
       return true;
     }},
    {"gradient-lse-without-sink", "the backward pass reads an LSE without the sink",
     [](GradientFormula& f, Index) {
       f.lse_lacks_sink = true;
       return !f.problem.sink.empty();
     }},
    {"dq-of-first-split", "dQ is that of the first split of {} keys",
     [](GradientFormula& f, Index split) {
       f.dq_keys_end = split;
       return split < f.problem.shape.keys;
     },
     splits},
    {"key-gradients-inverted", "the causal triangle is inverted in dK and dV",
     [](GradientFormula& f, Index) {
       f.inverts_triangle = true;
       return f.problem.causal;
     }},
};

// Coarser arithmetics.
struct CoarseGradients {
  std::string_view name;
  std::string_view words;
  double (*rounds_operands)(double);
  double (*rounds_weights)(double);
};
constexpr CoarseGradients coarse_gradients[] = {
    {"gradient-tf32-products", "products of the backward pass are those of TF32 numbers",
     &truncated_to_tf32, nullptr},
    {"gradient-weights-in-f8e4m3", "P is rounded to f8e4m3 before it meets dO", nullptr,
     [](double x) { return round_to(Dtype::f8e4m3, x); }},
    {"gradient-weights-in-f8e5m2", "P is rounded to f8e5m2 before it meets dO", nullptr,
     [](double x) { return round_to(Dtype::f8e5m2, x); }},
};

class GradientSums {
 public:
  GradientSums(const Attention& right, const AttentionBackwardInput& input,
               const Contract& contract, Index b, Index g)
      : problem_(right), s_(right.shape), input_(input), contract_(contract), b_(b), g_(g) {}

  // The formula of a right kernel, for a problem that was altered.
  GradientFormula right(const Attention& problem) const { return {problem, input_}; }

  GroupSums compute(const GradientFormula& f) const {
    GroupSums sums(s_);
    const auto key_head = [&](Index h) { return f.key_head ? f.key_head(h) : h / s_.group(); };
    for (Index h = 0; h < s_.query_heads; ++h) {
      const bool own = h / s_.group() == g_, gives = key_head(h) == g_;
      if (own || gives)
        add_head(f, h, key_head(h), own,
                 gives && (!f.last_head_only || h + 1 == (g_ + 1) * s_.group()), sums);
    }
    if (f.rows_end >= 0 && !f.writes_all_dq)
      for (Index k = 0; k < s_.group(); ++k)
        sums.value[0]
            .middleRows(k * s_.rows + f.rows_end, s_.rows - f.rows_end)
            .setConstant(std::numeric_limits<double>::quiet_NaN());
    if (f.keys_end >= 0)
      for (const std::size_t n : {1, 2}) sums.value[n].bottomRows(s_.keys - f.keys_end).setZero();
    for (Eigen::VectorXd& gauge : sums.gauge) gauge = gauge.cwiseSqrt();
    return sums;
  }

  // The terms of the right sums of each head of the group.
  std::vector<GradientTerms> terms() const {
    std::vector<GradientTerms> all;
    const GradientFormula f = right(problem_);
    const auto kv = Reference(f.problem, contract_).load_head(b_, g_);
    for (Index h = g_ * s_.group(); h < (g_ + 1) * s_.group(); ++h) {
      Pairs pairs = pairs_of(f, f.problem, h, g_);
      all.push_back({std::move(pairs.weight), static_cast<double>(problem_.scale) * pairs.score,
                     rows_of(problem_.q, h), kv->keys_transposed.leftCols(s_.keys).transpose(),
                     rows_of(input_.d_o, h)});
    }
    return all;
  }

 private:
  // P and dS of all pairs of a head, with 0 at keys that a row does not see.
  struct Pairs {
    RowMajor weight, score, score_terms;
    bool has_weights_above_one = false;
  };

  // The pairs of the region as a faulty kernel computes them, and the others as they should be.
  Pairs mixed_pairs(const GradientFormula& f, const ProjectedAttention& p, Index h,
                    Index kv_head) const {
    Pairs all = pairs_of(f, p, h, kv_head);
    if (!f.region) return all;
    const Pairs right = pairs_of({problem_, input_}, problem_, h, kv_head);
    for (Index i = 0; i < s_.rows; ++i)
      for (Index j = 0; j < s_.keys; ++j) {
        if (f.region->has_row(h - g_ * s_.group(), i) && f.region->has_key(j)) continue;
        all.weight(i, j) = right.weight(i, j);
        all.score(i, j) = right.score(i, j);
        all.score_terms(i, j) = right.score_terms(i, j);
      }
    return all;
  }

  void add_head(const GradientFormula& f, Index h, Index kv_head, bool gives_dq, bool gives_keys,
                GroupSums& sums) const {
    const Pairs own = mixed_pairs(f, f.problem, h, kv_head);
    sums.has_weights_above_one |= own.has_weights_above_one;
    const auto kv = Reference(f.problem, contract_).load_head(b_, kv_head);
    const RowMajor keys =
        rounded(f.rounds_operands, kv->keys_transposed.leftCols(s_.keys).transpose());
    const double scale = static_cast<double>(f.problem.scale);
    if (gives_dq) {
      RowMajor part = own.score, terms = own.score_terms;
      if (f.dq_keys_end >= 0) part.rightCols(s_.keys - f.dq_keys_end).setZero();
      const Index head = h - g_ * s_.group(), first = head * s_.rows;
      Eigen::VectorXd factor = Eigen::VectorXd::Constant(s_.rows, scale);
      for (Index i = 0; i < s_.rows; ++i)
        if (!f.region || f.region->has_row(head, i)) factor(i) *= f.factor_of_dq;
      sums.value[0].middleRows(first, s_.rows) = factor.asDiagonal() * (part * keys);
      sums.gauge[0].segment(first, s_.rows) =
          factor.cwiseAbs2().cwiseProduct(terms.cwiseAbs2() * keys.rowwise().squaredNorm());
    }
    if (!gives_keys) return;
    Pairs other = own;
    if (f.inverts_triangle) other = mixed_pairs(f, with_inverted_triangle(f.problem), h, kv_head);
    sums.has_weights_above_one |= other.has_weights_above_one;
    if (f.rows_end >= 0)
      for (RowMajor* m : {&other.weight, &other.score})
        m->bottomRows(s_.rows - f.rows_end).setZero();
    const RowMajor q = rounded(f.rounds_operands, rows_of(f.problem.q, h)),
                   d_o = rounded(f.rounds_operands, rows_of(input_.d_o, h));
    Eigen::VectorXd factor = Eigen::VectorXd::Constant(s_.keys, scale);
    for (Index j = 0; j < s_.keys; ++j)
      if (!f.region || f.region->has_key(j)) factor(j) *= f.factor_of_dk;
    sums.value[1] += factor.asDiagonal() * (other.score.transpose() * q);
    sums.gauge[1] += factor.cwiseAbs2().cwiseProduct(other.score_terms.cwiseAbs2().transpose() *
                                                     q.rowwise().squaredNorm());
    sums.value[2] += other.weight.transpose() * d_o;
    sums.gauge[2] += other.weight.cwiseAbs2().transpose() * d_o.rowwise().squaredNorm();
  }

  static RowMajor rounded(double (*to)(double), RowMajor m, double dither = 1) {
    if (to) m = (m * dither).unaryExpr(to) / dither;
    return m;
  }

  // Row i sees the keys behind its diagonal. The offset of a window to the right of -1 is 0, so
  // keys are masked one by one.
  static ProjectedAttention with_inverted_triangle(const ProjectedAttention& p) {
    ProjectedAttention inverted = p;
    inverted.causal = false;
    return inverted;
  }

  RowMajor rows_of(const TensorView& t, Index h) const {
    RowMajor m(t.shape[2], t.shape[3]);
    std::vector<double> row;
    for (Index i = 0; i < m.rows(); ++i) {
      load_row(t, b_, h, i, row);
      for (Index d = 0; d < m.cols(); ++d) m(i, d) = row[usize(d)];
    }
    return m;
  }

  Pairs pairs_of(const GradientFormula& f, const ProjectedAttention& p, Index h,
                 Index kv_head) const {
    const Reference reference(p, contract_);
    const KeyValuesPointer kv = reference.load_head(b_, kv_head);
    std::vector<Index> rows(usize(s_.rows));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<Index>(i);
    const Block k = reference.evaluate(*kv, h, rows, Keep::scores);
    const RowMajor d_o = rows_of(input_.d_o, h), o = rows_of(input_.o, h);
    const Index columns = f.values_end >= 0 ? f.values_end : s_.value_dim;
    const RowMajor dp =
        f.factor_of_dp * (rounded(f.rounds_operands, d_o).leftCols(columns) *
                          kv->values.middleRows(k.key0, k.count).leftCols(columns).transpose());
    const double keep = p.dropout > 0 ? 1 / (1 - static_cast<double>(p.dropout)) : 1;
    Pairs all{RowMajor::Zero(s_.rows, s_.keys), RowMajor::Zero(s_.rows, s_.keys),
              RowMajor::Zero(s_.rows, s_.keys)};
    for (Index i = 0; i < s_.rows; ++i) {
      const double lse = lse_of(f, k, i);
      const Index of_delta = f.delta_of_row_before ? std::max<Index>(i - 1, 0) : i;
      RowMajor o_row = o.row(of_delta);
      if (f.delta_from_bf16_output)
        o_row = o_row.unaryExpr([](double x) { return round_to(Dtype::bf16, x); });
      double delta = f.subtracts_delta ? d_o.row(of_delta).dot(o_row.row(0)) : 0;
      if (f.delta_in_bf16) delta = round_to(Dtype::bf16, delta);
      if (f.reads_lse_gradient) delta -= lse_gradient_of_row(input_, b_, h, i);
      for (Index j = 0; j < k.count; ++j) {
        const std::size_t at = k.pair(i, j);
        if (!k.visible[at]) continue;
        // A faulty kernel keeps the other triangle: the keys behind the diagonal.
        if (f.inverts_triangle && f.problem.causal && !p.causal &&
            k.key0 + j <= i + p.offset_of(b_))
          continue;
        double weight = std::exp(f.exponent * (k.row(i).max - k.gap[at] - lse));
        constexpr double above_one = 1 + 0x1p-16;  // beyond the rounding of L
        all.has_weights_above_one |= weight > above_one;
        if (f.clamps_weights) weight = std::min(weight, 1.0);
        if (f.truncates_weights) weight = truncated_to_bf16(weight);
        const bool kept = k.kept.empty() || k.kept[at];
        const double own = kept ? dp(i, j) : 0,
                     slope = f.has_softcap_slope ? slope_of(f, p, k.dot[at]) : 1;
        double score = weight * (own - delta) * slope;
        if (f.truncates_score_gradients) score = truncated_to_bf16(score);
        all.weight(i, k.key0 + j) = kept ? weight * keep : 0;
        all.score(i, k.key0 + j) = score;
        all.score_terms(i, k.key0 + j) = weight * (std::fabs(own) + std::fabs(delta)) * slope;
      }
    }
    all.score = rounded(f.rounds_operands, std::move(all.score), f.dither);
    all.weight = rounded(f.rounds_operands ? f.rounds_operands : f.rounds_weights,
                         std::move(all.weight), f.dither);
    return all;
  }

  // The L that the kernel reads.
  double lse_of(const GradientFormula& f, const Block& k, Index i) const {
    const Certified& exact = k.row(i).lse;
    double lse = input_.lse ? load(input_.lse, input_.lse.at(b_, k.h, i, 0)) : exact.value;
    lse *= f.lse_factor;
    if (f.lse_lacks_sink)
      lse += std::log1p(-std::exp(static_cast<double>(f.problem.sink[usize(k.h)]) - lse));
    return lse;
  }

  static double slope_of(const GradientFormula& f, const Attention& p, double dot) {
    if (p.softcap == 0) return 1;
    const double x = static_cast<double>(p.scale) * dot / static_cast<double>(p.softcap);
    const double y = f.slope_from_uncapped ? x : std::tanh(x);
    return 1 - y * y;
  }

  const Attention& problem_;
  const AttentionShape& s_;
  const AttentionBackwardInput& input_;
  const Contract& contract_;
  const Index b_, g_;
};

// Whether dBias or dSink fails, and no other gradient does.
bool is_shared_alone(const Verdict& failed) {
  const Output first = failed.first_failure.output;
  if (failed.outside == 0 || (first != Output::d_bias && first != Output::d_sink)) return false;
  return std::ranges::all_of(failed.outputs, [](const auto& of) {
    return of.first == Output::d_bias || of.first == Output::d_sink ||
           !(of.second.worst.bound > 0 && of.second.worst.ratio > 1);
  });
}

// The group of the element that failed first.
std::pair<Index, Index> group_of(const AttentionShape& s, const Verdict& failed) {
  Element e = failed.first_failure;
  const auto is_gradient = [](Output o) {
    return o == Output::dq || o == Output::dk || o == Output::dv;
  };
  double worst = 0;
  for (const auto& [output, compared] : failed.outputs)
    if (is_gradient(output) && compared.worst.bound > 0 && compared.worst.ratio > worst)
      worst = compared.worst.ratio, e = compared.worst;
  for (const auto& [output, row] : failed.evidence.rows)
    if (failed.by_evidence && is_gradient(output) && row.s > row.limit)
      e.output = output, e.b = row.b, e.h = row.h;
  if (!is_gradient(e.output)) return {0, 0};
  return {e.b, e.output == Output::dq ? e.h / s.group() : e.h};
}

// The median over the rows of typical error / gauge.
double usual_part(const Eigen::VectorXd& sigma, const Eigen::VectorXd& gauge) {
  std::vector<double> parts;
  for (Index r = 0; r < sigma.size(); ++r)
    if (sigma(r) > 0 && std::isfinite(sigma(r)) && gauge(r) > 0)
      parts.push_back(sigma(r) / gauge(r));
  if (parts.empty()) return 0;
  std::ranges::nth_element(parts, parts.begin() + std::ssize(parts) / 2);
  return parts[parts.size() / 2];
}

Fits fits_of(const EvidenceGroup& group, const GroupSums& right, const GroupSums& x,
             std::span<const Eigen::VectorXd> sigma) {
  Fits fits;
  for (std::size_t n = 0; n < 3; ++n) {
    const GradientRows& g = group.gradients[n];
    const double limit = gradient_leeway * row_limit_of(g.dtype, g.exact.cols());
    const double usual = usual_part(sigma[n], right.gauge[n]);
    for (Index r = 0; r < g.exact.rows(); ++r) {
      const RowMajor got = g.exact.row(r) + g.error.row(r);
      const double largest = x.value[n].row(r).cwiseAbs().maxCoeff();
      const double grown =
          right.gauge[n](r) > 0 ? std::max(1.0, x.gauge[n](r) / right.gauge[n](r)) : 1;
      const double typical = std::max({sigma[n](r) * grown, usual * x.gauge[n](r),
                                       largest > 0 ? floor_of_row(g.dtype, largest) : 0});
      fits.add(rms_error(got.row(0), x.value[n].row(r)),
               rms_error(got.row(0), right.value[n].row(r)), typical, limit);
      fits.add_share(Eigen::RowVectorXd(got.row(0) - right.value[n].row(r)),
                     Eigen::RowVectorXd(x.value[n].row(r) - right.value[n].row(r)), typical);
    }
  }
  return fits;
}

// How the candidate's errors fit the size of a coarser arithmetic's errors: first for the rows in
// which this arithmetic has larger errors than the strict one, then for the other rows.
std::pair<Fits, Fits> fits_of_coarser(const EvidenceGroup& group, const GroupSums& right,
                                      const std::vector<GroupSums>& draws,
                                      const std::vector<Eigen::VectorXd>& sigma) {
  std::pair<Fits, Fits> fits;
  for (std::size_t n = 0; n < 3; ++n) {
    const GradientRows& g = group.gradients[n];
    const double limit = gradient_leeway * row_limit_of(g.dtype, g.exact.cols());
    for (Index r = 0; r < g.exact.rows(); ++r) {
      const auto exact = right.value[n].row(r);
      double square = 0;
      for (const GroupSums& x : draws) square += std::pow(rms_error(x.value[n].row(r), exact), 2);
      const double coarse = std::sqrt(square / static_cast<double>(draws.size()));
      const RowMajor got = g.exact.row(r) + g.error.row(r);
      const double error = rms_error(got.row(0), exact);
      constexpr double larger = 4;
      const bool affected = coarse > larger * sigma[n](r);
      (affected ? fits.first : fits.second)
          .add(error, error, std::hypot(coarse, sigma[n](r)), limit);
    }
  }
  return fits;
}

bool same(const GroupSums& a, const GroupSums& b) {
  for (std::size_t n = 0; n < 3; ++n)
    if (!same_numbers(a.value[n], b.value[n])) return false;
  return true;
}

// The coarser arithmetics whose errors are as large as the candidate's.
std::vector<Explanation> coarser_arithmetics(const Attention& problem, const AttentionOutput& o,
                                             const EvidenceGroup& group, const GradientSums& sums,
                                             const GroupSums& right, const Contract& strict,
                                             const GroupReplicates& typical) {
  std::vector<Explanation> found;
  for (const CoarseGradients& h : coarse_gradients) {
    Alteration a(problem, o);
    if (h.rounds_operands && !round_inputs(a, h.rounds_operands)) continue;
    std::vector<GroupSums> draws;
    for (const double dither : {1.0, 1.15, 1.32, 1.52}) {
      GradientFormula f = sums.right(a.problem);
      f.rounds_operands = h.rounds_operands;
      f.rounds_weights = h.rounds_weights;
      f.dither = dither;
      draws.push_back(sums.compute(f));
    }
    const auto [affected, others] = fits_of_coarser(group, right, draws, typical.sigma);
    if (affected.has_the_size() && others.given.excess() <= 1)
      found.push_back(explanation_of(h.name, std::string(h.words), {}, strict.name, affected));
  }
  sort_by_size(found);
  return found;
}

// The attempts to explain the wrong gradients of one group of heads.
class GradientAttempts {
 public:
  GradientAttempts(const Attention& problem, const AttentionBackwardInput& input,
                   const AttentionGradients& out, const std::vector<Contract>& ladder, Index b,
                   Index g, const JudgeOptions& options)
      : problem_(problem),
        input_(input),
        ladder_(ladder),
        options_(options),
        group_(gather_group(problem, input, out, ladder.front(), b, g)),
        sums_(problem, input, ladder.front(), b, g),
        right_(sums_.compute(GradientFormula(problem, input))),
        typical_(ladder.size()) {
    for (std::size_t n = 0; n < 3; ++n) {
      const GradientRows& of = group_.gradients[n];
      bounds_[n] = of.bound / (gradient_leeway * row_limit_of(of.dtype, of.exact.cols()));
      rows_ += of.exact.rows();
    }
  }

  // The faults that any kernel may have, then what may be read from the errors and those in some
  // gradients, rows and keys alone, then coarser arithmetics.
  Diagnosis diagnose() {
    Diagnosis d = explain([&](Trials<GroupSums>& trials) {
      for_each_formula(
          [&](const GradientHypothesis& h, const std::string& words, GradientFormula& f) {
            GroupSums x = sums_.compute(f);
            const bool above_one = x.has_weights_above_one;
            add(trials, h.name, words, std::move(x));
            if (!above_one) return;
            f.clamps_weights = true;
            add(trials, h.name, words + ", and weights above 1 are 1", sums_.compute(f));
          });
    });
    if (!is_clear(d))
      add_rarer(d, explain([&](Trials<GroupSums>& trials) {
                  for (GradientSuspicion& s :
                       gradient_suspicions_of(group_, problem_.shape, right_, sums_.terms()))
                    add(trials, s.name, std::move(s.words), std::move(s.sums));
                  attempt_in_places(trials);
                }));
    if (d.explanations.empty() && is_replicated())
      d.explanations = coarser_arithmetics(problem_, {input_.o, input_.lse}, group_, sums_, right_,
                                           ladder_.front(), typical_of(0));
    return d;
  }

 private:
  bool is_replicated() const { return problem_.q.dtype != Dtype::f64; }

  template <class Visit>
  void for_each_formula(const Visit& visit) const {
    for (const GradientHypothesis& h : hypotheses)
      for_each_parameter(h.parameters, [&](Index parameter) {
        GradientFormula f(problem_, input_);
        if (h.alter(f, parameter)) visit(h, fmt::format(fmt::runtime(h.words), parameter), f);
      });
  }

  void add(Trials<GroupSums>& trials, std::string_view name, std::string words, GroupSums x,
           bool of_a_part = false) const {
    if (same(x, right_)) return;
    const double distance = fits_of(group_, right_, x, bounds_).given.excess();
    trials.add({name, std::move(words), distance, std::move(x), of_a_part});
  }

  // A fault may be in one gradient alone, or in some rows and keys, and what else there is is
  // right.
  void attempt_in_places(Trials<GroupSums>& trials) {
    const GradientRegion region =
        wrong_region(group_, problem_.shape, is_replicated() ? sigma_of(0) : bounds_);
    for_each_formula(
        [&](const GradientHypothesis& h, const std::string& words, GradientFormula& f) {
          const GroupSums all = sums_.compute(f);
          for (std::size_t n = 0; n < 3; ++n)
            add(trials, h.name,
                fmt::format("{}, in {} alone", words, name_of(group_.gradients[n].output)),
                with_gradients(all, {n == 0, n == 1, n == 2}), true);
          if (region.has_all(problem_.shape)) return;
          f.region = &region;
          add(trials, h.name, fmt::format("{}, in {} alone", words, region.words(problem_.shape)),
              with_gradients(sums_.compute(f), region.wrong), true);
        });
  }
  // Right gradients, but for those that are taken from x.
  GroupSums with_gradients(const GroupSums& x, const std::array<bool, 3>& taken) const {
    GroupSums mixed = right_;
    for (std::size_t n = 0; n < 3; ++n) {
      if (!taken[n]) continue;
      mixed.value[n] = x.value[n];
      mixed.gauge[n] = x.gauge[n];
    }
    return mixed;
  }

  template <class Try>
  Diagnosis explain(const Try& try_all) {
    Trials<GroupSums> trials;
    try_all(trials);
    return trials.explain(rows_, same, [&](const GroupSums& x, const auto& take) {
      if (!is_replicated()) {
        take(std::string(), fits_of(group_, right_, x, bounds_));
        return;
      }
      for (std::size_t n = 0; n < ladder_.size(); ++n)
        if (take(ladder_[n].name, fits_of(group_, right_, x, sigma_of(n)))) return;
    });
  }

  const GroupReplicates& typical_of(std::size_t rung) {
    GroupReplicates& t = typical_[rung];
    if (t.sigma.empty())
      t = replicate(group_, ladder_[rung], replicate_count, options_.seed, options_.threads);
    return t;
  }
  const std::vector<Eigen::VectorXd>& sigma_of(std::size_t rung) { return typical_of(rung).sigma; }

  const Attention& problem_;
  const AttentionBackwardInput& input_;
  const std::vector<Contract>& ladder_;
  const JudgeOptions& options_;
  const EvidenceGroup group_;
  const GradientSums sums_;
  const GroupSums right_;
  std::vector<Eigen::VectorXd> bounds_ = std::vector<Eigen::VectorXd>(3);
  Index rows_ = 0;
  std::vector<GroupReplicates> typical_;  // of each rung, once asked
};

}  // namespace

void add_gradient_hypotheses(std::vector<std::string_view>& names) {
  for (const GradientHypothesis& h : hypotheses) names.push_back(h.name);
  for (const CoarseGradients& h : coarse_gradients) names.push_back(h.name);
  for (const std::string_view name : gradient_suspicion_names()) names.push_back(name);
}

Diagnosis diagnose_backward(const Attention& problem, const AttentionBackwardInput& input,
                            const AttentionGradients& out, const Contract* contract,
                            const Verdict& failed, const JudgeOptions& options) {
  const AttentionShape& s = problem.shape;
  if (s.batch == 0 || s.rows == 0 || s.keys == 0) return undiagnosed("there is no gradient");
  if (failed.rows_judged < failed.rows_total) return undiagnosed("only some rows were judged");
  const std::vector<Contract> ladder =
      contract ? std::vector<Contract>{*contract} : backward_ladder(problem.q.dtype, 64, s.group());
  if (is_shared_alone(failed)) return diagnose_shared(problem, input, out, ladder.front());
  if (s.group() * s.rows * s.keys > most_gradient_pairs / 8)
    return undiagnosed("a group has too many pairs");
  const auto [b, g] = group_of(s, failed);
  return GradientAttempts(problem, input, out, ladder, b, g, options).diagnose();
}

}  // namespace assay
