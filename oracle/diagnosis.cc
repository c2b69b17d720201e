#include "oracle/diagnosis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <tuple>

#include "oracle/alteration.h"
#include "oracle/evidence_rows.h"
#include "oracle/explain.h"
#include "oracle/suspicions.h"
#include "oracle/weigh.h"

namespace assay {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// About as many products of numbers as the evaluation of one hypothesis may take.
constexpr double hypothesis_budget = 0x1p19;

// Loads each head of each K and V once. The tensors outlive it.
class HeadCache {
 public:
  std::shared_ptr<const KeyValues> load(const Reference& reference, Index b, Index g) {
    const ProjectedAttention& p = reference.problem();
    const auto tensor = [](const TensorView& t) {
      return std::tuple(t.data, t.dtype, t.shape, t.stride, t.origin);
    };
    std::shared_ptr<const KeyValues>& kv =
        heads_[{tensor(p.k), tensor(p.v), p.dropout, p.shape.dim, b, g}];
    if (!kv) kv = reference.load_head(b, g);
    return kv;
  }

 private:
  using TensorKey = std::tuple<void*, Dtype, Extents, Extents, Index>;
  std::map<std::tuple<TensorKey, TensorKey, float, Index, Index, Index>,
           std::shared_ptr<const KeyValues>>
      heads_;
};

// The exact outputs of some rows.
struct ExactRows {
  RowMajor o;
  Eigen::VectorXd lse;
  std::vector<Foreseen> known;
};

// What a problem, altered or not, gives in the rows that are compared.
struct Prediction {
  EvidenceRows rows;         // the rows that the compared rows get their outputs from
  std::vector<Index> taken;  // for each compared row, its index in `rows`; -1: its outputs are NaN
  ExactRows exact;           // of the compared rows
  RowMajor got;
  Eigen::VectorXd got_lse;
  bool of_o = true;  // O is altered
};

double number_of(const Certified& x) {
  switch (x.kind) {
    case Kind::nan: return nan;
    case Kind::plus_infinity: return inf;
    case Kind::minus_infinity: return -inf;
    default: return x.value;
  }
}

bool is_known(const BlockRow& row) {
  return row.domain == Domain::bounded || row.domain == Domain::vacuous;
}

// The keys that some row of a tile of rows sees, if only intervals mask.
KeyInterval loaded_by_tile(const Attention& p, Index b, Index row, Index row_tile) {
  KeyInterval all{p.shape.keys, 0};
  const Index first = row / row_tile * row_tile;
  for (Index i = first; i < std::min(first + row_tile, p.shape.rows); ++i) {
    const KeyInterval own = visible_interval(p, b, i);
    if (own.begin >= own.end) continue;
    all = {std::min(all.begin, own.begin), std::max(all.end, own.end)};
  }
  return all;
}

// The outputs of an evaluated row with the altered sums.
Foreseen sum_row(const Attention& p, const TiledSoftmax& how, Index row_tile,
                 const EvidenceHead& head, Index r, Eigen::Ref<Eigen::RowVectorXd> o, double& lse) {
  const Block& k = head.block;
  const Index i = k.row(r).index;
  // This kernel also sums the masked keys of the tiles that it loads.
  Index begin = k.key0, end = k.key0 + k.count;
  SoftmaxRow row;
  if (how.loads_masked_keys()) {
    const KeyInterval own = loaded_by_tile(p, k.b, i, row_tile);
    if (own.begin >= own.end) return Foreseen::outputs;
    begin = own.begin / how.tile * how.tile;
    end = (own.end + how.tile - 1) / how.tile * how.tile;
    const Index columns = end - begin;
    begin = how.fills_zeros ? own.begin : begin;
    end = std::min(how.fills_zeros ? own.end : end, p.shape.keys);
    row.padding = columns - (end - begin);
  }
  if (begin >= end) return Foreseen::outputs;
  std::vector<double> scores(usize(end - begin), how.fill);
  std::vector<char> kept(scores.size(), 1);
  for (Index j = begin; j < end; ++j) {
    const Index of_block = j - k.key0;
    const auto at = usize(j - begin);
    kept[at] = keeps_weight(p, k.b, k.h, i, j);
    if (of_block < 0 || of_block >= k.count || !k.visible[k.pair(r, of_block)]) continue;
    scores[at] = k.row(r).max - k.gap[k.pair(r, of_block)];
  }
  row.key0 = begin;
  row.all_keys = p.shape.keys;
  row.scores = scores;
  row.kept = kept.data();
  row.scale = static_cast<double>(p.scale);
  if (!p.sink.empty()) row.sink = static_cast<double>(p.sink[usize(k.h)]);
  return sum_in_tiles(how, row, head.kv->values.middleRows(begin, end - begin).leftCols(o.size()),
                      o, lse);
}

class Attentions {
 public:
  Attentions(const ProjectedAttention& problem, const AttentionOutput& out, const Contract& strict,
             const Verdict& failed, const JudgeOptions& options)
      : problem_(problem), out_(out), strict_(strict) {
    const AttentionShape& s = problem.shape;
    std::vector<SuspectRow> suspects = failed.suspects;
    const auto suspect = [&](const Element& e) {
      if (e.output == Output::o || e.output == Output::lse)
        suspects.push_back({e.b, e.h, e.row, 0});
    };
    if (failed.outside > 0) suspect(failed.first_failure);
    for (const auto& [output, compared] : failed.outputs)
      if (compared.worst.bound > 0) suspect(compared.worst);
    const double budget = hypothesis_budget / static_cast<double>(s.dim + s.value_dim);
    asked_ = choose_rows(s, suspects, budget, options);
    for (const auto& [head, rows] : asked_)
      for (const Index row : rows) places_.push_back({head.first, head.second, row});
  }

  Prediction right() { return evaluate(Alteration(problem_, out_)); }

  Prediction predict(const Alteration& a, const ExactRows& right) {
    Prediction x = evaluate(a);
    x.of_o = a.of_o;
    // What a kernel gives in a row whose keys it masks by mistake is its own, as 0 or NaN.
    for (Index at = 0; at < rows(); ++at)
      if (x.exact.known[usize(at)] == Foreseen::outputs && x.exact.lse(at) == -inf &&
          right.lse(at) > -inf)
        x.exact.known[usize(at)] = Foreseen::wrong;
    if (!a.of_o) x.exact.o = right.o;
    if (!a.of_lse) x.exact.lse = right.lse;
    return x;
  }

  Index rows() const { return std::ssize(places_); }
  const RowPlace& place(Index at) const { return places_[usize(at)]; }
  std::span<const RowPlace> places() const { return places_; }

 private:
  std::optional<RowPlace> source_of(const Alteration& a, const RowPlace& at) const {
    return a.source ? a.source(at) : at;
  }

  Prediction evaluate(const Alteration& a) {
    RowsOfHeads sources;
    for (const RowPlace& at : places_)
      if (const auto from = source_of(a, at)) sources[{from->b, from->h}].insert(from->row);
    const Index group = problem_.shape.group();
    // Heads of altered tensors must not stay in the cache. Their storage is freed with the
    // alteration, and the tensors of the next alteration may lie at the same address.
    const bool original =
        a.problem.k.data == problem_.k.data && a.problem.v.data == problem_.v.data;
    HeadCache altered;
    const auto load_head = [&](const Reference& reference, Index b, Index h) {
      return (original ? cache_ : altered)
          .load(reference, b, a.key_head ? a.key_head(h) : h / group);
    };
    Prediction x;
    // One thread: the cache is not locked, and there are few rows.
    x.rows = evaluate_rows(a.problem, sources, out_.o.dtype, strict_, 1, load_head);
    take_sources(a, x);
    take_outputs(a.out, x);
    return x;
  }

  // Gives each compared row the outputs of the row that it gets them from.
  void take_sources(const Alteration& a, Prediction& x) const {
    const ExactRows all = outputs_of(a, x.rows);
    std::map<RowPlace, Index> index;
    for (const EvidenceHead& head : x.rows.heads)
      for (Index r = 0; r < head.rows(); ++r)
        index[{head.block.b, head.block.h, head.block.row(r).index}] = head.first + r;
    const Index n = rows();
    x.exact = {RowMajor::Constant(n, problem_.shape.value_dim, nan),
               Eigen::VectorXd::Constant(n, nan),
               std::vector<Foreseen>(usize(n), Foreseen::outputs)};
    for (Index at = 0; at < n; ++at) {
      const auto from = source_of(a, places_[usize(at)]);
      x.taken.push_back(from ? index.at(*from) : -1);
      if (!from) continue;
      x.exact.o.row(at) = all.o.row(x.taken.back());
      x.exact.lse(at) = all.lse(x.taken.back());
      x.exact.known[usize(at)] = all.known[usize(x.taken.back())];
    }
    for (Index at = 0; a.tells && at < n; ++at)
      if (!a.tells(places_[usize(at)])) x.exact.known[usize(at)] = Foreseen::nothing;
  }

  // Reads what the kernel gave.
  void take_outputs(const AttentionOutput& out, Prediction& x) const {
    x.got = RowMajor::Zero(rows(), problem_.shape.value_dim);
    x.got_lse = Eigen::VectorXd::Zero(rows());
    for (Index at = 0; at < rows(); ++at) {
      const RowPlace& place = places_[usize(at)];
      for (Index c = 0; c < x.got.cols(); ++c)
        x.got(at, c) = load(out.o, out.o.at(place.b, place.h, place.row, c));
      if (out.lse) x.got_lse(at) = load(out.lse, out.lse.at(place.b, place.h, place.row, 0));
    }
  }

  ExactRows outputs_of(const Alteration& a, const EvidenceRows& rows) const {
    ExactRows all{rows.exact, rows.lse,
                  std::vector<Foreseen>(usize(rows.rows()), Foreseen::nothing)};
    Eigen::RowVectorXd o(rows.exact.cols());
    for (const EvidenceHead& head : rows.heads)
      for (Index r = 0; r < head.rows(); ++r) {
        const Index at = head.first + r;
        const BlockRow& row = head.block.row(r);
        for (Index c = 0; c < o.size(); ++c) o(c) = number_of(head.block.element(r, c));
        double lse = number_of(row.lse);
        Foreseen foreseen = Foreseen::outputs;
        if (a.softmax) foreseen = sum_row(a.problem, *a.softmax, strict_.row_tile, head, r, o, lse);
        for (Index c = 0; c < o.size(); ++c)
          if (std::fabs(o(c)) >= overflow_threshold(out_.o.dtype)) o(c) = std::copysign(inf, o(c));
        if (a.change) a.change({head.block.b, head.block.h, row.index}, row.fully_masked, o, lse);
        all.o.row(at) = o;
        all.lse(at) = lse;
        if (is_known(row)) all.known[usize(at)] = foreseen;
      }
    return all;
  }

  const ProjectedAttention& problem_;
  const AttentionOutput& out_;
  const Contract& strict_;
  RowsOfHeads asked_;
  std::vector<RowPlace> places_;
  HeadCache cache_;
};

// The errors that are typical of the evaluated rows; infinite where a row is not compared.
struct Typical {
  Eigen::VectorXd o, lse;
};

// The typical error of an altered row, which grows with the row, from that of the row before.
double typical_after(double before, double after, double typical) {
  const double grown = before > 0 && after > before && std::isfinite(after) ? after / before : 1;
  return grown * typical;
}

// Whether outputs are predicted for some row that has weights.
bool foresees(const ExactRows& x) {
  for (Index at = 0; at < x.lse.size(); ++at)
    if (x.known[usize(at)] == Foreseen::outputs && x.lse(at) != -inf) return true;
  return std::ranges::find(x.known, Foreseen::wrong) == x.known.end();
}

// Whether a row is wrong, if its typical errors are those of row `from` in `typical`.
bool is_wrong(const Prediction& right, Index at, const Typical& typical, Index from, double limit,
              bool with_lse) {
  const double error = rms_error(right.got.row(at), right.exact.o.row(at));
  if (!(error <= limit * typical.o(from))) return true;
  return with_lse &&
         !(error_of(right.got_lse(at), right.exact.lse(at)) <= lse_limit * typical.lse(from));
}
// A row that is predicted to be wrong fits if it is wrong, but only just: nothing more is known.
void add_wrong_row(Fits& fits, bool wrong, double limit) {
  fits.add(wrong ? 0.99 * limit : inf, wrong ? inf : 0, 1, limit);
}

// The s of all compared rows, O before LSE, against the prediction and against the right outputs.
Fits fits_of(const Prediction& x, const Prediction& right, const Typical& typical, Dtype out,
             bool with_lse) {
  Fits fits;
  const double limit = row_limit_of(out, x.exact.o.cols());
  // The sums that the alteration adds have roundings of their own.
  const double roundoff = 2 * unit_roundoff(Dtype::f32);
  if (!foresees(x.exact)) return fits;
  for (Index at = 0; at < x.exact.o.rows(); ++at) {
    if (x.exact.known[usize(at)] == Foreseen::nothing) continue;
    if (x.exact.known[usize(at)] == Foreseen::wrong) {
      add_wrong_row(fits, is_wrong(right, at, typical, x.taken[usize(at)], limit, with_lse), limit);
      continue;
    }
    const Index from = x.taken[usize(at)];
    const auto o = x.exact.o.row(at);
    const double before = from < 0 ? 0 : x.rows.exact.row(from).norm();
    const double largest = o.cwiseAbs().maxCoeff();
    double floor = largest > 0 && std::isfinite(largest) ? floor_of_row(out, largest) : 0;
    if (from >= 0 && before == 0 && floor > 0) floor += roundoff * largest;
    const double sigma = from < 0 ? 0 : typical_after(before, o.norm(), typical.o(from));
    if (x.of_o || from >= 0)
      fits.add(rms_error(x.got.row(at), o), rms_error(right.got.row(at), right.exact.o.row(at)),
               std::max(sigma, floor), limit);
    if (x.of_o || from >= 0)
      fits.add_share(right.got.row(at) - right.exact.o.row(at), o - right.exact.o.row(at),
                     std::max(sigma, floor));
    if (!with_lse) continue;
    const double lse = x.exact.lse(at);
    const double lse_sigma =
        from < 0 ? 0
                 : typical_after(std::fabs(x.rows.lse(from)), std::fabs(lse), typical.lse(from));
    fits.add(error_of(x.got_lse(at), lse), error_of(right.got_lse(at), right.exact.lse(at)),
             std::isfinite(lse) ? std::max(lse_sigma, floor_of_lse(lse)) : 0, lse_limit);
  }
  return fits;
}

// Where no replicates can be made, every error that is inside its bound counts as typical.
Typical typical_by_bounds(const EvidenceRows& rows) {
  return {rows.bound / row_limit_of(rows.out_dtype, rows.exact.cols()), rows.lse_bound / lse_limit};
}

Typical typical_by_replicates(Prediction& x, const Contract& c, const JudgeOptions& options) {
  EvidenceRows& rows = x.rows;
  for (const EvidenceHead& head : rows.heads)
    for (Index r = 0; r < head.rows(); ++r) {
      const auto at = usize(head.first + r);
      bool finite = is_known(head.block.row(r));
      for (Index col = 0; col < rows.exact.cols(); ++col)
        finite = finite && head.block.element(r, col).kind == Kind::finite;
      rows.asked[at] = finite;
      rows.lse_asked[at] = finite && head.block.row(r).lse.kind == Kind::finite;
    }
  const Replicates all = replicate(rows, c, replicate_count, options.seed, options.threads);
  Typical typical{all.sigma, all.lse_sigma};
  for (Index r = 0; r < rows.rows(); ++r)
    if (rows.asked[usize(r)] && !all.usable[usize(r)]) typical.o(r) = typical.lse(r) = inf;
  return typical;
}

bool same(const Prediction& a, const Prediction& b) {
  return same_numbers(a.exact.o, b.exact.o) && same_numbers(a.exact.lse, b.exact.lse) &&
         same_numbers(a.got, b.got) && same_numbers(a.got_lse, b.got_lse);
}

bool has_replicates(const ProjectedAttention& p, const AttentionOutput& out) {
  const auto wide = [](Dtype d) { return d == Dtype::f64; };
  return !p.projection && !wide(p.q.dtype) && !wide(p.k.dtype) && !wide(p.v.dtype) &&
         !wide(out.o.dtype);
}

template <class Visit>
void for_each_hypothesis(const Visit& visit) {
  for (const std::span<const Hypothesis> table :
       {mask_hypotheses(), sum_hypotheses(), cache_hypotheses()})
    for (const Hypothesis& h : table) visit(h);
}

// The coarser products that LSE fits, and whose errors of O are as large as the candidate's.
std::vector<Explanation> told_products(Attentions& attentions, const ProjectedAttention& problem,
                                       const AttentionOutput& out, const Contract& strict,
                                       const Prediction& right, const JudgeOptions& options) {
  std::vector<Explanation> found;
  for (const CoarseProducts& h : coarse_products()) {
    Alteration a(problem, out);
    if (!round_inputs(a, h.rounded)) continue;
    Contract c = strict;
    c.weight_dtype = h.weight_dtype;
    Prediction x = attentions.predict(a, right.exact);
    const Typical typical = typical_by_replicates(x, c, options);
    const Fits of_o = fits_of(x, right, typical, out.o.dtype, false),
               all = fits_of(x, right, typical, out.o.dtype, true);
    if (of_o.has_the_size() && all.explains())
      found.push_back(explanation_of(h.name, std::string(h.words), {}, strict.name, of_o));
  }
  sort_by_size(found);
  return found;
}

// The attempts to explain one wrong output.
class Attempts {
 public:
  Attempts(const ProjectedAttention& problem, const AttentionOutput& out,
           const std::vector<Contract>& ladder, const Verdict& failed, const JudgeOptions& options,
           const StoredTokens* stored)
      : problem_(problem),
        out_(out),
        ladder_(ladder),
        options_(options),
        stored_(stored),
        unwritten_(failed.failures.contains("O was not written")),
        replicates_(has_replicates(problem, out)),
        attentions_(problem, out, ladder.front(), failed, options),
        right_(attentions_.right()),
        typical_(replicates_ ? typical_by_replicates(right_, ladder.front(), options)
                             : typical_by_bounds(right_.rows)) {
    find_failing_rows();
  }

  // The faults that any kernel may have, then the rarer ones, and those in some of the rows alone.
  Diagnosis diagnose() {
    const auto all = [&](const auto& attempt) {
      for_each_hypothesis([&](const Hypothesis& h) { attempt(h); });
    };
    const auto rarer = [&](const auto& attempt) {
      for (const Hypothesis& h : input_hypotheses()) attempt(h);
    };
    Diagnosis d = explain([&](Trials<Prediction>& trials) {
      all([&](const Hypothesis& h) { attempt(trials, h, &Attempts::attempt_everywhere); });
    });
    if (!is_clear(d))
      add_rarer(
          d, explain([&](Trials<Prediction>& trials) {
            rarer([&](const Hypothesis& h) { attempt(trials, h, &Attempts::attempt_everywhere); });
            suspect(trials, &Attempts::attempt_everywhere);
          }));
    if (d.explanations.empty() && std::ssize(failing_) < attentions_.rows())
      add_rarer(d, explain([&](Trials<Prediction>& trials) {
                  const auto in_some_rows = [&](const Hypothesis& h) {
                    attempt(trials, h, &Attempts::attempt_in_some_rows);
                  };
                  all(in_some_rows);
                  rarer(in_some_rows);
                  suspect(trials, &Attempts::attempt_in_some_rows);
                }));
    if (d.explanations.empty() && replicates_ && out_.lse)
      d.explanations =
          told_products(attentions_, problem_, out_, ladder_.front(), right_, options_);
    return d;
  }

 private:
  using Attempt = void (Attempts::*)(Trials<Prediction>&, std::string_view name, std::string words,
                                     Prediction x);

  void find_failing_rows() {
    const double limit = row_limit_of(out_.o.dtype, right_.got.cols());
    std::vector<std::pair<double, Index>> by_distance;
    for (Index at = 0; at < attentions_.rows(); ++at) {
      const Index from = right_.taken[usize(at)];
      const bool wrong = is_wrong(right_, at, typical_, from, limit, bool{out_.lse});
      is_failing_.push_back(wrong);
      if (!wrong) continue;
      failing_places_.push_back(attentions_.place(at));
      const double s = rms_error(right_.got.row(at), right_.exact.o.row(at)) / typical_.o(from);
      by_distance.emplace_back(std::isfinite(s) ? -s : 0, at);
    }
    std::ranges::stable_sort(by_distance);
    for (const auto& [s, at] : by_distance) failing_.push_back(at);
  }

  template <class Try>
  Diagnosis explain(const Try& try_all) {
    Trials<Prediction> trials;
    try_all(trials);
    return trials.explain(attentions_.rows(), same, [&](Prediction& x, const auto& take) {
      if (!replicates_) {
        take(std::string(), fits(x, typical_by_bounds(x.rows)));
        return;
      }
      for (const Contract& c : ladder_)
        if (take(c.name, fits(x, typical_by_replicates(x, c, options_)))) return;
    });
  }
  Fits fits(const Prediction& x, const Typical& typical) const {
    return fits_of(x, right_, typical, out_.o.dtype, bool{out_.lse});
  }

  template <class Alter>
  void predict(Trials<Prediction>& trials, std::string_view name, const std::string& words,
               const Alter& alter, Attempt as) {
    Alteration a(problem_, out_, stored_);
    a.unwritten = unwritten_;
    a.failing = failing_places_;
    if (!alter(a)) return;
    Prediction x = attentions_.predict(a, right_.exact);
    if (!same(x, right_)) (this->*as)(trials, name, words, std::move(x));
  }
  void attempt(Trials<Prediction>& trials, const Hypothesis& h, Attempt as) {
    for_each_parameter(h.parameters, [&](Index parameter) {
      predict(
          trials, h.name, fmt::format(fmt::runtime(h.words), parameter),
          [&](Alteration& a) { return h.alter(a, parameter); }, as);
    });
  }
  void suspect(Trials<Prediction>& trials, Attempt as) {
    if (suspicions_.empty())
      suspicions_ = suspicions_of(problem_, {right_.rows, right_.taken, attentions_.places(),
                                             right_.exact.o, right_.got, failing_});
    for (const Suspicion& s : suspicions_) predict(trials, s.name, s.words, s.alter, as);
  }

  void attempt_everywhere(Trials<Prediction>& trials, std::string_view name, std::string words,
                          Prediction x) {
    add(trials, name, std::move(words), std::move(x), false);
  }
  void add(Trials<Prediction>& trials, std::string_view name, std::string words, Prediction x,
           bool of_a_part) {
    const double distance = fits(x, typical_by_bounds(x.rows)).given.excess();
    trials.add({name, std::move(words), distance, std::move(x), of_a_part});
  }

  // The failing rows alone have the fault. It would show in other rows too, and these are right.
  void attempt_in_some_rows(Trials<Prediction>& trials, std::string_view name, std::string words,
                            Prediction x) {
    constexpr Index fewest_numbers = 8;
    if (std::ssize(failing_) * right_.got.cols() < fewest_numbers) return;
    const double limit = row_limit_of(out_.o.dtype, right_.got.cols());
    std::vector<RowPlace> spared;
    for (Index at = 0; at < attentions_.rows(); ++at) {
      Foreseen& known = x.exact.known[usize(at)];
      if (is_failing_[usize(at)]) {
        if (known != Foreseen::outputs) return;
        continue;
      }
      const double step = rms_error(x.exact.o.row(at), right_.exact.o.row(at));
      const Index from = right_.taken[usize(at)];
      const bool shows_in_lse = out_.lse && !(error_of(x.exact.lse(at), right_.exact.lse(at)) <=
                                              lse_limit * typical_.lse(from));
      if (known == Foreseen::wrong || !(step <= limit * typical_.o(from)) || shows_in_lse)
        spared.push_back(attentions_.place(at));
      known = Foreseen::nothing;
    }
    if (spared.empty()) return;
    words += fmt::format(", {} alone", region_of(failing_places_, spared));
    add(trials, name, std::move(words), std::move(x), true);
  }

  const ProjectedAttention& problem_;
  const AttentionOutput& out_;
  const std::vector<Contract>& ladder_;
  const JudgeOptions& options_;
  const StoredTokens* stored_;
  const bool unwritten_, replicates_;
  Attentions attentions_;
  Prediction right_;
  const Typical typical_;
  std::vector<char> is_failing_;  // per row
  std::vector<Index> failing_;    // rows, the one that is furthest from typical first
  std::vector<RowPlace> failing_places_;
  std::vector<Suspicion> suspicions_;
};

}  // namespace

Diagnosis diagnose(const ProjectedAttention& problem, const AttentionOutput& out,
                   const Contract* contract, const Verdict& failed, const JudgeOptions& options,
                   const StoredTokens* stored) {
  if (problem.shape.batch == 0 || problem.shape.rows == 0) return undiagnosed("there is no row");
  std::vector<Contract> ladder =
      contract ? std::vector<Contract>{*contract} : contract_ladder(problem.q.dtype, 64);
  // The rungs before have replicates of such a kernel.
  if (!contract) std::erase_if(ladder, [](const Contract& c) { return c.weights_from_lse; });
  return Attempts(problem, out, ladder, failed, options, stored).diagnose();
}

Diagnosis diagnose(const ProjectedAttention& problem, const AttentionOutput& out,
                   const Contract* contract, const Verdict& failed, const JudgeOptions& options) {
  return diagnose(problem, out, contract, failed, options, nullptr);
}

std::string sentence_on(const Diagnosis& d) {
  if (!d.was_asked()) return "";
  if (!d.not_asked.empty()) return "no fault was looked for: " + d.not_asked;
  if (d.explanations.empty())
    return fmt::format("looks like none of {} known faults that would show", d.tried);
  std::vector<std::string> likes;
  for (const Explanation& e : d.explanations) {
    std::string like = e.words;
    if (!e.same.empty())
      like += fmt::format(", which is the same here as {}", fmt::join(e.same, ", "));
    if (e.limit > 0)
      like += fmt::format(" (errors against that are typical: s {:.2g}, at most {:.2g})", e.median,
                          e.largest);
    likes.push_back(like);
  }
  return fmt::format("looks like: {}", fmt::join(likes, "; or "));
}

std::vector<std::string_view> hypothesis_names() {
  std::vector<std::string_view> names;
  for_each_hypothesis([&](const Hypothesis& h) { names.push_back(h.name); });
  for (const Hypothesis& h : input_hypotheses()) names.push_back(h.name);
  for (const std::string_view name : suspicion_names()) names.push_back(name);
  for (const CoarseProducts& h : coarse_products()) names.push_back(h.name);
  add_gradient_hypotheses(names);
  add_product_hypotheses(names);
  add_shared_hypotheses(names);
  return names;
}

Index rank_of(const Diagnosis& d, std::string_view hypothesis) {
  for (std::size_t k = 0; k < d.explanations.size(); ++k) {
    const Explanation& e = d.explanations[k];
    if (e.hypothesis == hypothesis || std::ranges::find(e.same, hypothesis) != e.same.end())
      return static_cast<Index>(k) + 1;
  }
  return 0;
}

}  // namespace assay
