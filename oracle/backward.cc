#include "oracle/backward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "oracle/key_values.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double unit64 = 0x1p-53;

Taint worse(Taint a, Taint b) { return std::max(a, b); }  // NaN plus anything is NaN

Gradient empty_gradient(Index rows, Index columns) {
  Gradient g;
  g.rows = rows;
  g.columns = columns;
  const auto n = static_cast<std::size_t>(rows * columns), r = static_cast<std::size_t>(rows);
  g.value.assign(n, 0);
  g.bound.assign(n, 0);
  g.taint.assign(n, Taint::none);
  g.may_overflow.assign(n, 0);
  g.ratio.assign(r, 0);
  g.slack.assign(r, 0x1p-40);
  g.touched.assign(r, 0);
  return g;
}

// From sums of products and of bound weights to values and bounds. `gamma`, the accumulation's part of every weight,
// tells the largest that a sum of absolute values can be.
void finish_gradient(const Contract& c, double length, double scale, double gamma, Gradient& g) {
  for (std::size_t e = 0; e < g.value.size(); ++e) {
    const double absolute_sum = gamma > 0 ? g.bound[e] / gamma : 0;
    g.may_overflow[e] = !(absolute_sum * std::max(1.0, scale) * (1 + 1e-4) < c.largest);
    g.value[e] *= scale;
    g.bound[e] = g.touched[e / static_cast<std::size_t>(g.columns)] ? gradient_bound(c, length, scale, g.value[e], g.bound[e]) : 0;
  }
}

void add_to(Gradient& g, Index row0, const RowMajor& value, const RowMajor& bound) {
  for (Index r = 0; r < value.rows(); ++r)
    for (Index d = 0; d < g.columns; ++d) {
      const auto at = static_cast<std::size_t>((row0 + r) * g.columns + d);
      g.value[at] += value(r, d);
      g.bound[at] += bound(r, d);
    }
}

// Terms that meet in one chain of additions: those of a tile, and one for every tile, where sums are blocked.
double chain_length(Index total, Index tile, Index tiles) { return static_cast<double>(tile > 0 ? std::min(total, tile) + tiles : total) + 1; }

// One block of rows of one head: everything that its products need.
struct Rows {
  Block block;
  RowMajor q, d_o, kept_weight, ds, dot_gradient, to_dq, to_dk, to_dv, to_bias;
  std::vector<Taint> score_taint, taint;      // per row: of P; of dS
  std::vector<std::vector<Taint>> d_o_taint;  // per row and column, empty where dO is finite
  std::vector<GradientRow> bound;             // per row
  std::vector<double> delta, delta_error;     // per row
};

}  // namespace

BackwardReference::BackwardReference(const Attention& problem, const AttentionBackwardInput& input, const AttentionGradients& gradients,
                                     const Contract& contract)
    : problem_(problem), input_(input), reference_(problem, contract), has_sink_(gradients.d_sink && !problem.sink.empty()) {
  const AttentionShape& s = problem.shape;
  context_.forward = {s.dim, static_cast<double>(problem.scale), static_cast<double>(problem.softcap), problem.dropout > 0};
  context_.value_dim = s.value_dim;
  context_.keep_scale = problem.dropout > 0 ? 1 / (1 - static_cast<double>(problem.dropout)) : 1;
  auto tiles = [](Index n, Index tile) { return tile > 0 ? (n + tile - 1) / tile : 0; };
  context_.keys_length = chain_length(s.keys, contract.backward_tile, tiles(s.keys, contract.backward_tile) + tiles(s.keys, contract.backward_split));
  context_.rows_length = chain_length(s.rows * s.group(), contract.backward_row_tile, tiles(s.rows, contract.backward_row_tile) * s.group());
  context_.bias_length = 1;
  if (gradients.d_bias) {
    const Extents extent{s.batch, s.query_heads, s.rows, s.keys};
    bias_elements_ = 1;
    for (std::size_t axis = 4; axis-- > 0;) {
      if (gradients.d_bias.stride[axis] == 0) {
        context_.bias_length *= static_cast<double>(std::max<Index>(extent[axis], 1));
      } else {
        bias_stride_[axis] = bias_elements_;
        bias_elements_ *= extent[axis];
      }
    }
  }
}

Index BackwardReference::bias_element(Index b, Index h, Index i, Index j) const {
  return b * bias_stride_[0] + h * bias_stride_[1] + i * bias_stride_[2] + j * bias_stride_[3];
}

SharedGradients BackwardReference::no_shared_gradients() const {
  // One row an element: rows carry what is known of an element as a whole.
  return {empty_gradient(bias_elements_, 1), empty_gradient(has_sink_ ? problem_.shape.query_heads : 0, 1)};
}

void BackwardReference::finish(SharedGradients& shared) const {
  const Contract& c = contract();
  finish_gradient(c, context_.bias_length, 1, context_.bias_length > 1 ? gamma_factor(context_.bias_length, c.roundoff) : 0, shared.d_bias);
  const double terms = static_cast<double>(problem_.shape.batch * problem_.shape.rows) + 1;
  finish_gradient(c, terms, 1, gamma_factor(terms, c.roundoff), shared.d_sink);
}

GroupGradients BackwardReference::evaluate(Index b, Index g, std::span<const Index> row_index, SharedGradients& shared) const {
  const Attention& p = problem_;
  const AttentionShape& s = p.shape;
  const Contract& c = contract();
  const bool all_rows = static_cast<Index>(row_index.size()) == s.rows, bias = bias_elements_ > 0;
  const KeyValuesPointer kv = reference_.load_head(b, g);
  const RowMajor keys = kv->keys_transposed.leftCols(s.keys).transpose(), keys_absolute = keys.cwiseAbs();
  GroupGradients out;
  out.row_index.assign(row_index.begin(), row_index.end());
  out.dk = empty_gradient(all_rows ? s.keys : 0, s.dim);
  out.dv = empty_gradient(all_rows ? s.keys : 0, s.value_dim);
  const Index columns = kv->values.cols();
  RowMajor dk = RowMajor::Zero(out.dk.rows, s.dim), dk_bound = dk, dv = RowMajor::Zero(out.dv.rows, s.value_dim), dv_bound = dv;
  double key_ratio = 0, key_slack = 0x1p-40;
  const Index per_block = std::clamp<Index>((Index{1} << 16) / std::max<Index>(s.keys, 1), 16, 128);
  const double gamma_delta = gamma_factor(static_cast<double>(s.value_dim) + 1, c.roundoff);
  const double gamma64 = gamma_factor(static_cast<double>(s.value_dim) + 2, unit64);
  const double sink_gamma = gamma_factor(static_cast<double>(s.batch * s.rows) + 1, c.roundoff);
  thread_local RowMajor q, d_o, dp, dp_absolute, kept_weight, ds, dot_gradient, to_dq, to_dk, to_dv, to_bias;

  for (Index h = g * s.group(); h < (g + 1) * s.group(); ++h) {
    Gradient& dq = out.dq.emplace_back(empty_gradient(static_cast<Index>(row_index.size()), s.dim));
    for (Index first = 0; first < dq.rows; first += per_block) {
      const Index rows = std::min(per_block, dq.rows - first);
      const Block block = reference_.evaluate(*kv, h, row_index.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(rows)), Keep::scores);
      const Index n = block.count, key0 = block.key0;
      q.setZero(rows, s.dim);
      d_o.setZero(rows, columns);
      std::vector<Taint> score_taint(static_cast<std::size_t>(rows), Taint::none), taint(score_taint);
      std::vector<double> delta(static_cast<std::size_t>(rows)), delta_error(delta), delta_radius(delta);
      std::vector<char> some_d_o_not_finite(static_cast<std::size_t>(rows), 0);

      for (Index r = 0; r < rows; ++r) {
        const auto at = static_cast<std::size_t>(r);
        const Index i = block.row_index[at];
        if (block.fully_masked[at]) continue;
        for (Index d = 0; d < s.dim; ++d) {
          const double x = load(p.q, p.q.at(b, h, i, d));
          if (std::isfinite(x)) q(r, d) = x;
          else score_taint[at] = Taint::anything;
        }
        if (block.domain[at] == Domain::may_overflow || block.domain[at] == Domain::must_overflow || block.lse_kind[at] == Kind::minus_infinity)
          score_taint[at] = Taint::anything;
        if (kv->any_key_not_finite)
          for (Index j = 0; j < n; ++j)
            if (block.visible[static_cast<std::size_t>(r * n + j)] && kv->key_not_finite[static_cast<std::size_t>(key0 + j)]) score_taint[at] = Taint::anything;
        if (block.lse_kind[at] == Kind::nan) score_taint[at] = Taint::nan;
        taint[at] = score_taint[at];
        double stored = 0, absolute = 0, defect = 0;
        bool o_finite = true;
        for (Index col = 0; col < s.value_dim; ++col) {
          const auto e = static_cast<std::size_t>(r * s.value_dim + col);
          const double x = load(input_.d_o, input_.d_o.at(b, h, i, col)), o = load(input_.o, input_.o.at(b, h, i, col));
          const Kind kind = block.o_kind[e];
          if (!std::isfinite(x)) {
            some_d_o_not_finite[at] = 1;
            taint[at] = worse(taint[at], std::isnan(x) ? Taint::nan : Taint::anything);
          } else {
            d_o(r, col) = x;
          }
          if (kind == Kind::nan) taint[at] = worse(taint[at], block.underflow_excused[e] ? Taint::anything : Taint::nan);
          else if (kind != Kind::finite || !std::isfinite(o)) taint[at] = worse(taint[at], Taint::anything), o_finite = false;
          if (!std::isfinite(x) || kind != Kind::finite || !std::isfinite(o)) continue;
          delta[at] += x * block.o[e];
          defect += x * ((o - block.o[e]) - block.o_low[e]);
          stored += std::fabs(x * o);
          absolute += std::fabs(x * block.o[e]);
          delta_radius[at] += std::fabs(x) * block.radius[e];
        }
        (void)o_finite;
        delta_radius[at] = delta_radius[at] * (1 + 1e-9) + gamma64 * absolute;
        delta_error[at] = std::fabs(defect) + gamma_delta * stored + gamma64 * (stored + absolute) + delta_radius[at] +
                          (static_cast<double>(s.value_dim) + 1) * c.product_floor;
        if (!(stored * (1 + 1e-4) < c.largest)) taint[at] = worse(taint[at], Taint::anything);
        if (!std::isfinite(load(input_.lse, input_.lse.at(b, h, i, 0)))) score_taint[at] = taint[at] = worse(score_taint[at], Taint::anything);
      }
      if (n == 0) continue;

      dp.noalias() = d_o * kv->values.middleRows(key0, n).transpose();
      dp_absolute.noalias() = d_o.cwiseAbs() * kv->values_absolute.middleRows(key0, n).transpose();
      if (p.dropout > 0)
        for (Index e = 0; e < rows * n; ++e)
          if (!block.kept[static_cast<std::size_t>(e)]) dp.data()[e] = dp_absolute.data()[e] = 0;
      for (RowMajor* m : {&kept_weight, &ds, &dot_gradient, &to_dq, &to_dk, &to_dv, &to_bias}) m->resize(rows, n);

      for (Index r = 0; r < rows; ++r) {
        const auto at = static_cast<std::size_t>(r);
        const Index i = block.row_index[at], offset = r * n, mine = first + r;
        const auto own = static_cast<std::size_t>(mine);
        auto clear = [&](RowMajor& m) { m.row(r).setZero(); };
        const bool masked = block.fully_masked[at];
        if (!masked && score_taint[at] == Taint::none) {
          GradientTruth t;
          t.count = n;
          t.gap = block.gap.data() + offset;
          t.weight = block.weight.data() + offset;
          t.dot = block.dot.data() + offset;
          t.score_error = block.score_error.data() + offset;
          t.capped_error = p.softcap > 0 ? block.capped_error.data() + offset : nullptr;
          t.dp = dp.row(r).data();
          t.dp_absolute = dp_absolute.row(r).data();
          t.kept = p.dropout > 0 ? block.kept.data() + offset : nullptr;
          t.max = block.max[at];
          t.lse = block.lse[at];
          t.lse_radius = block.lse_radius[at];
          t.lse_error = std::fabs((load(input_.lse, input_.lse.at(b, h, i, 0)) - block.lse[at]) - block.lse_low[at]) + t.lse_radius;
          t.delta = delta[at];
          t.delta_error = delta_error[at];
          t.delta_radius = delta_radius[at];
          const GradientRow bound = derive_gradient_row(c, context_, t,
                                                        {kept_weight.row(r).data(), ds.row(r).data(), dot_gradient.row(r).data(), to_dq.row(r).data(),
                                                         to_dk.row(r).data(), to_dv.row(r).data(), to_bias.row(r).data()});
          if (bound.vacuous) score_taint[at] = taint[at] = worse(taint[at], Taint::anything);
          if (bound.may_overflow) taint[at] = worse(taint[at], Taint::anything);
          dq.ratio[own] = bound.ratio;
          dq.slack[own] = bound.slack;
          key_ratio = std::max(key_ratio, bound.ratio);
          key_slack = std::max(key_slack, bound.slack);
          if (has_sink_ && taint[at] == Taint::none) {
            // dSink = -sum e^(z - LSE) D
            const double argument = static_cast<double>(p.sink[static_cast<std::size_t>(h)]) - t.lse, weight = std::exp(argument);
            const double reach = std::fabs(argument) + t.lse_error;
            const double exponent =
                (t.lse_error + c.argument_roundings * c.roundoff * (1 + 4 * c.roundoff) * reach + 2 * c.roundoff * (c.exp_ulp + c.exp_ulp_per_unit * reach)) *
                (1 + 1e-6);
            const double weight_error = weight * expm1_above(exponent) + c.exp_floor, term = weight * std::fabs(t.delta);
            const double error = (weight_error * (std::fabs(t.delta) + t.delta_error) + weight * t.delta_error) * (1 + c.roundoff) + c.roundoff * term;
            const auto head = static_cast<std::size_t>(h);
            Gradient& sink = shared.d_sink;
            sink.value[head] -= weight * t.delta;
            const double bound_term = error + sink_gamma * (term + error);
            sink.bound[head] += bound_term;
            sink.touched[head] = 1;
            const double error64 = weight * expm1_above(t.lse_radius + 0x1p-45) * std::fabs(t.delta) + weight * t.delta_radius + 16 * unit64 * term;
            if (error64 > 0) sink.ratio[head] = std::max(sink.ratio[head], error64 / bound_term + 0x1p-24);
          }
        } else {
          for (RowMajor* m : {&kept_weight, &ds, &dot_gradient, &to_dq, &to_dk, &to_dv, &to_bias}) clear(*m);
        }
        if (masked) continue;
        dq.touched[own] = 1;
        if (score_taint[at] != Taint::none)
          for (RowMajor* m : {&kept_weight, &to_dv}) clear(*m);
        if (taint[at] != Taint::none) {
          for (RowMajor* m : {&ds, &dot_gradient, &to_dq, &to_dk, &to_bias}) clear(*m);
          std::fill_n(dq.taint.begin() + mine * s.dim, s.dim, taint[at]);
          if (has_sink_) {
            shared.d_sink.touched[static_cast<std::size_t>(h)] = 1;
            shared.d_sink.taint[static_cast<std::size_t>(h)] = worse(shared.d_sink.taint[static_cast<std::size_t>(h)], taint[at]);
          }
        }
        for (Index j = 0; j < n; ++j) {
          if (!block.visible[static_cast<std::size_t>(offset + j)]) continue;
          const auto key = static_cast<std::size_t>(key0 + j);
          if (bias) {
            const auto e = static_cast<std::size_t>(bias_element(b, h, i, key0 + j));
            shared.d_bias.value[e] += ds(r, j);
            shared.d_bias.bound[e] += to_bias(r, j);
            shared.d_bias.touched[e] = 1;
            shared.d_bias.ratio[e] = std::max(shared.d_bias.ratio[e], dq.ratio[own]);
            shared.d_bias.slack[e] = std::max(shared.d_bias.slack[e], dq.slack[own]);
            shared.d_bias.taint[e] = worse(shared.d_bias.taint[e], taint[at]);
          }
          if (!all_rows) continue;
          out.dk.touched[key] = out.dv.touched[key] = 1;
          if (taint[at] != Taint::none)
            for (Index d = 0; d < s.dim; ++d) {
              Taint& x = out.dk.taint[key * static_cast<std::size_t>(s.dim) + static_cast<std::size_t>(d)];
              x = worse(x, taint[at]);
            }
          if (score_taint[at] != Taint::none || some_d_o_not_finite[at])
            for (Index col = 0; col < s.value_dim; ++col) {
              const double x = load(input_.d_o, input_.d_o.at(b, h, i, col));
              Taint& e = out.dv.taint[key * static_cast<std::size_t>(s.value_dim) + static_cast<std::size_t>(col)];
              e = worse(e, worse(score_taint[at], std::isfinite(x) ? Taint::none : std::isnan(x) ? Taint::nan : Taint::anything));
            }
        }
      }

      add_to(dq, first, dot_gradient * keys.middleRows(key0, n), to_dq * keys_absolute.middleRows(key0, n));
      if (all_rows) {
        dk.middleRows(key0, n).noalias() += dot_gradient.transpose() * q;
        dk_bound.middleRows(key0, n).noalias() += to_dk.transpose() * q.cwiseAbs();
        dv.middleRows(key0, n).noalias() += kept_weight.transpose() * d_o.leftCols(s.value_dim);
        dv_bound.middleRows(key0, n).noalias() += to_dv.transpose() * d_o.leftCols(s.value_dim).cwiseAbs();
      }
    }
    finish_gradient(c, context_.keys_length, context_.forward.scale, gamma_factor(dot_roundings(c, context_.keys_length), c.dot_roundoff), dq);
  }
  if (all_rows) {
    add_to(out.dk, 0, dk, dk_bound);
    add_to(out.dv, 0, dv, dv_bound);
    const double gamma = gamma_factor(dot_roundings(c, context_.rows_length), c.dot_roundoff);
    for (Gradient* m : {&out.dk, &out.dv}) {
      std::fill(m->ratio.begin(), m->ratio.end(), key_ratio);
      std::fill(m->slack.begin(), m->slack.end(), key_slack);
    }
    finish_gradient(c, context_.rows_length, context_.forward.scale, gamma, out.dk);
    finish_gradient(c, context_.rows_length, 1, gamma, out.dv);
  }
  return out;
}

}  // namespace assay
