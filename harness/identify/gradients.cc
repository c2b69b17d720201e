#include "harness/identify/gradients.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "harness/identify/formats.h"
#include "harness/identify/sums.h"

namespace assay {
namespace {

// Its product with a key of -64 in the same column is so low a score that the weight is 0.
constexpr double mask = 64;

double zeros(Index, Index, Index) { return 0; }

// Every row sees the first `seen` keys alone, with equal weights: the last column of Q and K hides
// the others. V, dO and O are 0.
GradientQuestion first_keys(const BackwardProbe& probe, Index seen) {
  const Index last = probe.dim() - 1;
  GradientQuestion x{zeros, zeros, zeros, zeros, zeros, {}};
  x.q = [=](Index, Index, Index d) { return d == last ? mask : 0.0; };
  x.k = [=](Index, Index j, Index d) { return d == last && j >= seen ? -mask : 0.0; };
  x.lse = [lse = std::log(static_cast<double>(seen))](Index, Index) { return lse; };
  return x;
}

// The sums of one call: as many as there are columns or rows to hold them.
using AskSome = std::function<std::vector<double>(const std::function<double(Index n, Index at)>&)>;
VisibleSums visible_sums(const BackwardProbe& probe, std::string name, std::string summand,
                         Index length, Index at_once, const AskSome& ask) {
  VisibleSums sums;
  sums.name = std::move(name);
  sums.summand = std::move(summand);
  sums.length = length;
  sums.large = probe.dtype() == Dtype::f16 ? 0x1p15 : 0x1p30;
  sums.unit = sums.large * (probe.dtype() == Dtype::f16 ? 0x1p-31 : 0x1p-40);
  sums.free_unit = true;
  sums.ask = [=](const std::vector<Summands>& all) {
    std::vector<double> result;
    const Index count = std::ssize(all);
    for (Index first = 0; first < count; first += at_once) {
      const std::vector<double> some = ask([&](Index n, Index at) {
        return n < at_once && first + n < count ? all[usize(first + n)](at) : 0.0;
      });
      for (Index n = 0; n < at_once && first + n < count; ++n) result.push_back(some[usize(n)]);
    }
    return result;
  };
  return sums;
}

// One key has all the weight, so dV of it is the sum of dO over the rows.
VisibleSums sums_of_dv(const BackwardProbe& probe) {
  const Index columns = probe.shape().shape.value_dim;
  return visible_sums(probe, "dV", "row", probe.rows(), columns, [&probe](const auto& summand) {
    GradientQuestion x = first_keys(probe, 1);
    x.d_o = [&](Index, Index i, Index c) { return summand(c, i); };
    return probe.ask(x).dv;
  });
}

// Two keys have half of the weight each, V of 2 and -2, and so dS of 1 and -1: dK of the first is
// the sum of Q over the rows, times the scale.
VisibleSums sums_of_dk(const BackwardProbe& probe) {
  const Index columns = probe.dim() - 1;
  return visible_sums(probe, "dK", "row", probe.rows(), columns, [&probe](const auto& summand) {
    GradientQuestion x = first_keys(probe, 2);
    const HeadEntries hides = x.q;
    x.q = [&, hides](Index h, Index i, Index d) { return hides(h, i, d) + summand(d, i); };
    x.v = [](Index, Index j, Index c) { return c > 0 || j > 1 ? 0.0 : j == 0 ? 2.0 : -2.0; };
    x.d_o = [](Index, Index, Index c) { return c == 0 ? 1.0 : 0.0; };
    std::vector<double> dk = probe.ask(x).dk;
    for (double& sum : dk) sum /= probe.scale();
    return dk;
  });
}

// All keys have the same weight, and V whose signs change from key to key makes dS 1 and -1. dQ is
// the sum of K with these signs, times the scale.
VisibleSums sums_of_dq(const BackwardProbe& probe) {
  return visible_sums(probe, "dQ", "key", probe.keys(), probe.dim(), [&probe](const auto& summand) {
    const auto sign = [](Index j) { return j % 2 == 0 ? 1.0 : -1.0; };
    GradientQuestion x = first_keys(probe, probe.keys());
    x.q = zeros;
    x.k = [&](Index, Index j, Index d) { return sign(j) * summand(d, j); };
    x.v = [&](Index, Index j, Index c) {
      return c == 0 ? sign(j) * static_cast<double>(probe.keys()) : 0.0;
    };
    x.d_o = [](Index, Index, Index c) { return c == 0 ? 1.0 : 0.0; };
    std::vector<double> dq = probe.ask(x).dq;
    for (double& sum : dq) sum /= probe.scale();
    return dq;
  });
}

// Two keys have half of the weight each, and V of 1 and -1 in every column, so dP is the sum of dO
// over the columns, and its negative. K of the first is 2, so dQ is dP times the scale.
VisibleSums sums_of_dp(const BackwardProbe& probe) {
  const Index columns = probe.shape().shape.value_dim;
  return visible_sums(probe, "dP", "column", columns, probe.rows(), [&probe](const auto& summand) {
    GradientQuestion x = first_keys(probe, 2);
    const HeadEntries hides = x.k;
    x.k = [=](Index h, Index j, Index d) { return j == 0 && d == 0 ? 2.0 : hides(h, j, d); };
    x.v = [](Index, Index j, Index) { return j == 0 ? 1.0 : j == 1 ? -1.0 : 0.0; };
    x.d_o = [&](Index, Index i, Index c) { return summand(i, c); };
    const GradientAnswer answer = probe.ask(x);
    std::vector<double> first_column;
    for (Index i = 0; i < probe.rows(); ++i)
      first_column.push_back(answer.at(answer.dq, i, 0) / probe.scale());
    return first_column;
  });
}

constexpr Index tests = 64;

// Row 2n of a question gives key 0 the score 0 and key 1 the score -t; few bits of the query make a
// score that every kernel has.
struct TestRows {
  std::vector<double> query, p;  // e^-t

  explicit TestRows(const BackwardProbe& probe) {
    for (Index n = 0; n < tests; ++n) {
      const double wanted = 0.75 + 4.25 * static_cast<double>(n) / tests;  // between 0.75 and 5
      query.push_back(round_to(Dtype::bf16, wanted / probe.scale()));
      p.push_back(std::exp(-probe.scale() * query.back()));
    }
  }
};

}  // namespace

void tell_gradient_weights(const BackwardProbe& probe, Identification& told) {
  const TestRows rows(probe);
  const Index width = std::min({probe.shape().shape.value_dim, probe.rows() / 2, tests});
  std::array<Agreement, stored_formats.size()> fits;
  for (Index first = 0; first < tests; first += width) {
    const auto here = [=](Index n) { return n < width && first + n < tests; };
    const auto weight = [&](Index n) {
      const double p = rows.p[usize(first + n)];
      return p / (1 + p);
    };
    // The row behind gives key 1 all the weight, and dO of minus the weight, in the dtype.
    GradientQuestion x = first_keys(probe, 2);
    const HeadEntries hides_q = x.q, hides_k = x.k;
    x.q = [&](Index h, Index i, Index d) {
      if (d == 0 && i % 2 == 0 && here(i / 2)) return rows.query[usize(first + i / 2)];
      return d == 1 && i % 2 == 1 ? mask : hides_q(h, i, d);
    };
    x.k = [&](Index h, Index j, Index d) {
      if (d == 0 && j == 1) return -1.0;
      return d == 1 && j == 0 ? -mask : hides_k(h, j, d);
    };
    x.lse = [&](Index, Index i) {
      if (i % 2 == 1) return 0.0;
      return here(i / 2) ? std::log1p(rows.p[usize(first + i / 2)]) : std::log(2.0);
    };
    const auto rounded = [&](Index n) { return round_to(probe.dtype(), weight(n)); };
    x.d_o = [&](Index, Index i, Index c) {
      return c != i / 2 || !here(c) ? 0.0 : i % 2 == 0 ? 1.0 : -rounded(c);
    };
    const GradientAnswer answer = probe.ask(x);
    for (Index n = 0; here(n); ++n)
      for (std::size_t f = 0; f < stored_formats.size(); ++f) {
        const double model = stored(stored_formats[f], weight(n)) - rounded(n);
        fits[f].add(answer.dv[usize(answer.shape[3] + n)], model,
                    1.01 * half_ulp(probe.dtype(), model) + weight_error * weight(n));
      }
  }
  const std::string input = fmt::format(
      "64 rows of two keys, scores 0 and -t, t from 0.75 to 5, beside 64 rows with all weight on "
      "the "
      "second; dO = 1 and -w with w = P in {}: ",
      format(probe.dtype()).name);
  const auto fit = std::ranges::find_if(fits, &Agreement::fits);
  if (fit == fits.end()) {
    told.not_told.push_back("P before dV: none of the formats gives dV of " + input);
    return;
  }
  told.statements.push_back(
      {"P before dV", words_for(stored_formats[usize(fit - fits.begin())]),
       fmt::format("{}{} of {} dV are those of this format", input, fit->agree, fit->asked)});
}

namespace {

// What a kernel may have rounded before dK: P, then dS.
struct ScoreGradientModel {
  StoredFormat weights, gradients;
  std::string words() const {
    return words_for(gradients) + (weights ? ", from P in " + words_for(weights) : "");
  }
};

std::vector<ScoreGradientModel> score_gradient_models() {
  std::vector<ScoreGradientModel> all;
  for (const StoredFormat weights :
       {StoredFormat(), StoredFormat(Dtype::f16), StoredFormat(Dtype::bf16)})
    for (const StoredFormat gradients : stored_formats) all.push_back({weights, gradients});
  return all;
}

}  // namespace

void tell_score_gradients(const BackwardProbe& probe, Identification& told) {
  const TestRows rows(probe);
  const Index columns = probe.shape().shape.value_dim, last = columns - 1;
  const Index width = std::min({columns - 1, probe.dim() - 2, probe.rows() / 2, tests});
  const std::vector<ScoreGradientModel> models = score_gradient_models();
  std::vector<Agreement> fits(models.size());
  for (Index first = 0; first < tests; first += width) {
    const auto here = [=](Index n) { return n < width && first + n < tests; };
    const auto p = [&](Index n) { return here(n) ? rows.p[usize(first + n)] : 1.0; };
    const auto rounded = [&](double y) { return round_to(probe.dtype(), y); };
    // In column n, V is -w and y, where w is y e^-t in the dtype, so that O and D are nearly 0. P
    // times y is rounded otherwise than P.
    constexpr double y = 1.375;
    const auto value = [&](Index j, Index c) {
      if (c == last) return j == 0 ? -1.0 : 1.0;
      return !here(c) ? 0.0 : j == 0 ? -rounded(y * p(c)) : y;
    };
    const auto output = [&](Index i, Index c) {
      const double weight = i % 2 == 0 ? p(i / 2) : 1.0;
      return rounded((value(0, c) + weight * value(1, c)) / (1 + weight));
    };
    const auto d_score = [&](Index n, StoredFormat weights) {
      return stored(weights, p(n) / (1 + p(n))) * (y - output(2 * n, n));
    };
    // The row behind has equal weights, and a dO that makes its dS minus nearly the same number,
    // with the few bits of E4M3, which every format has.
    const auto beside = [&](Index n) { return 2 * round_to(Dtype::f8e4m3, d_score(n, {})); };
    GradientQuestion x = first_keys(probe, 2);
    x.q = [&](Index, Index i, Index d) {
      if (d == 1) return mask;
      if (d == 0) return i % 2 == 0 && here(i / 2) ? rows.query[usize(first + i / 2)] : 0.0;
      return d - 2 != i / 2 || !here(i / 2) ? 0.0 : i % 2 == 0 ? 1.0 : -1.0;
    };
    x.k = [](Index, Index j, Index d) {
      return d == 0 && j == 1 ? -1.0 : d == 1 && j > 1 ? -mask : 0.0;
    };
    x.v = [&](Index, Index j, Index c) { return j > 1 ? 0.0 : value(j, c); };
    x.o = [&](Index, Index i, Index c) { return output(i, c); };
    x.lse = [&](Index, Index i) { return std::log1p(i % 2 == 0 ? p(i / 2) : 1.0); };
    x.d_o = [&](Index, Index i, Index c) {
      if (!here(i / 2)) return 0.0;
      return i % 2 == 0 ? (c == i / 2 ? 1.0 : 0.0) : c == last ? beside(i / 2) : 0.0;
    };
    const GradientAnswer answer = probe.ask(x);
    for (Index n = 0; here(n); ++n)
      for (std::size_t m = 0; m < models.size(); ++m) {
        const double own = d_score(n, models[m].weights);
        const double model = probe.scale() * (stored(models[m].gradients, own) -
                                              stored(models[m].gradients, beside(n) / 2));
        fits[m].add(answer.at(answer.dk, 1, 2 + n), model,
                    1.01 * half_ulp(probe.dtype(), model) + weight_error * probe.scale() * own);
      }
  }
  const std::string input =
      "64 rows of two keys, scores 0 and -t, t from 0.75 to 5, V = -w and 1.375, beside 64 rows "
      "with "
      "equal weights whose dS is minus nearly the same number: ";
  const auto fit = std::ranges::find_if(fits, &Agreement::fits);
  if (fit == fits.end()) {
    told.not_told.push_back("dS before dK: none of the formats gives dK of " + input);
    return;
  }
  told.statements.push_back(
      {"dS before dK", models[usize(fit - fits.begin())].words(),
       fmt::format("{}{} of {} dK are those of this format", input, fit->agree, fit->asked)});
}

void tell_gradient_sums(const BackwardProbe& probe, Identification& told) {
  for (const VisibleSums& sums :
       {sums_of_dp(probe), sums_of_dv(probe), sums_of_dk(probe), sums_of_dq(probe)}) {
    tell_input_bits(sums, probe.dtype(), told);
    tell_sums(sums, told);
  }
}

void tell_grouped_heads(const BackwardProbe& probe, Identification& told) {
  const Index heads = probe.shape().shape.group();
  // Half a unit in the last place of 1.
  const double half = unit_roundoff(probe.dtype());
  const std::string name(format(probe.dtype()).name);
  GradientQuestion x = first_keys(probe, 1);
  // Column 0: one head gives 1 and `half`, another one -1. Columns from 1 on: one head gives 1,
  // another one -1, for every pair of heads, and all others `half`.
  const auto pair_of = [=](Index c) { return std::pair((c - 1) / heads, (c - 1) % heads); };
  x.d_o = [=](Index h, Index i, Index c) {
    if (c > heads * heads || i > 1) return 0.0;
    if (c == 0) return h == 0 ? (i == 0 ? 1.0 : half) : h == 1 && i == 0 ? -1.0 : 0.0;
    const auto [one, minus_one] = pair_of(c);
    if (i > 0 || one == minus_one) return 0.0;
    return h == one ? 1.0 : h == minus_one ? -1.0 : half;
  };
  const GradientAnswer answer = probe.ask(x);
  const bool whole = answer.dv[0] == half;
  bool wide = true;
  for (Index c = 1; c <= heads * heads; ++c)
    if (const auto [one, minus_one] = pair_of(c); one != minus_one)
      wide = wide && answer.dv[usize(c)] == half * static_cast<double>(heads - 2);
  told.statements.push_back(
      {"dV, grouped heads",
       whole  ? "added before they are rounded"
       : wide ? fmt::format("each rounded to {}, then added in more bits", name)
              : fmt::format("each rounded to {}, and added in {}", name, name),
       fmt::format(
           "{0} query heads share a key. One gives 1 + {1}, another one -1: {1} is {2}. One "
           "gives 1, another one -1, the others {1}: they are {3}",
           heads, power(half), whole ? "left" : "lost", wide ? "left" : "lost")});
}

}  // namespace assay
