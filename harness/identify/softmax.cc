#include "harness/identify/softmax.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "harness/identify/formats.h"

namespace assay {
namespace {

// Rows of two keys that count: key 0 with the score 0, key 1 with the score -t; the others are far
// below. V is -w in key 0 and 1 in key 1, where w is e^-t rounded to the dtype. O is then what the
// kernel's weight differs from w, over the row sum.
struct TwoWeights {
  std::vector<double> t, w, o;
};

TwoWeights ask_two_weights(const Probe& probe) {
  constexpr Index count = 64;
  TwoWeights all;
  std::vector<double> queries;
  for (Index n = 0; n < count; ++n) {
    // Between 0.75 and 5.
    const double wanted = 0.75 + 4.25 * static_cast<double>(n) / count;
    // Few bits, which a kernel that stores the scaled query keeps.
    queries.push_back(round_to(Dtype::bf16, wanted / probe.scale()));
    all.t.push_back(probe.scale() * queries.back());
    all.w.push_back(round_to(probe.dtype(), std::exp(-all.t.back())));
  }
  const Index width = std::min(probe.rows(), probe.shape().shape.value_dim);
  for (Index first = 0; first < count; first += width) {
    const auto here = [=](Index n) { return n < width && first + n < count; };
    const ProbeAnswer answer = probe.ask(
        [&](Index i, Index d) { return d == 0 && here(i) ? queries[usize(first + i)] : 0.0; },
        [](Index j, Index d) { return d > 0 || j == 0 ? 0.0
                                      : j == 1        ? -1.0
                                                      : -64.0; },
        [&](Index j, Index c) {
          return j > 1 || !here(c) ? 0.0 : j == 0 ? -all.w[usize(first + c)] : 1.0;
        });
    for (Index n = 0; here(n); ++n) all.o.push_back(answer.at(n, n));
  }
  return all;
}

Agreement fit_weights(const TwoWeights& all, Dtype out, StoredFormat dtype, bool divided) {
  Agreement fit;
  for (std::size_t n = 0; n < all.o.size(); ++n) {
    const double p = std::exp(-all.t[n]), sum = 1 + p;
    const double model = divided ? stored(dtype, p / sum) - all.w[n] * stored(dtype, 1 / sum)
                                 : (stored(dtype, p) - all.w[n]) / sum;
    fit.add(all.o[n], model, 1.01 * half_ulp(out, model) + weight_error * p);
  }
  return fit;
}

// The largest relative error of the weights, in units of 2^-23.
double largest_error(const TwoWeights& all) {
  double largest = 0;
  for (std::size_t n = 0; n < all.o.size(); ++n) {
    const double p = std::exp(-all.t[n]);
    const double error = (all.w[n] + all.o[n] * (1 + p)) / p - 1;
    largest = std::max(largest, std::fabs(error) * 0x1p23);
  }
  return largest;
}

}  // namespace

std::optional<Dtype> tell_weights(const Probe& probe, Identification& told) {
  const TwoWeights all = ask_two_weights(probe);
  const std::string input =
      "64 rows of two keys, scores 0 and -t, t from 0.75 to 5; V = -w and 1 with w = e^-t in " +
      std::string(format(probe.dtype()).name);
  for (const bool divided : {false, true})
    for (const StoredFormat dtype : stored_formats) {
      const Agreement fit = fit_weights(all, probe.dtype(), dtype, divided);
      if (!fit.fits()) continue;
      told.statements.push_back(
          {"P", words_for(dtype) + (divided ? ", after it was divided by the row sum" : ""),
           fmt::format("{}: {} of {} outputs are those of this format", input, fit.agree,
                       fit.asked)});
      if (!dtype && probe.dtype() == Dtype::f32)
        told.statements.push_back(
            {"exp", fmt::format("errs by at most {:.2g} ulp in 64 weights", largest_error(all)),
             input});
      return dtype;
    }
  told.not_told.push_back("P: none of the formats gives the outputs of 64 rows of two keys");
  return std::nullopt;
}

void tell_row_sum(const Probe& probe, Identification& told) {
  if (probe.dtype() == Dtype::f32 && !told.statements.empty() &&
      std::ranges::any_of(told.statements, [](const Statement& s) {
        return s.subject == "P" && s.answer == "not rounded";
      }))
    return;  // there is nothing to add that was rounded
  std::vector<double> queries, lse;
  constexpr Index count = 64;
  for (Index first = 0; first < count; first += probe.rows()) {
    const auto query = [&](Index i) {
      return round_to(Dtype::bf16,
                      (0.75 + 4.25 * static_cast<double>(first + i) / count) / probe.scale());
    };
    const ProbeAnswer answer =
        probe.ask([&](Index i, Index d) { return d == 0 ? query(i) : 0.0; },
                  [](Index j, Index d) { return d == 0 && j > 0 ? -1.0 : 0.0; },
                  [](Index, Index) { return 0.0; });
    if (answer.lse.empty()) {
      told.not_told.emplace_back("row sum: only LSE shows it, and the kernel gives none");
      return;
    }
    for (Index i = 0; i < probe.rows() && first + i < count; ++i) {
      queries.push_back(query(i));
      lse.push_back(answer.lse[usize(i)]);
    }
  }
  const double others = static_cast<double>(probe.keys() - 1);
  const std::string input =
      fmt::format("64 rows of {} keys, one score 0, the others -t, t from 0.75 to 5", probe.keys());
  for (const StoredFormat dtype : stored_formats) {
    Agreement fit;
    for (std::size_t n = 0; n < lse.size(); ++n) {
      const double p = std::exp(-probe.scale() * queries[n]);
      fit.add(lse[n], std::log(1 + others * stored(dtype, p)), weight_error);
    }
    if (!fit.fits()) continue;
    told.statements.push_back(
        {"row sum",
         dtype ? "of weights rounded to " + words_for(dtype) : "of weights that are not rounded",
         fmt::format("{}: {} of {} LSE are those of this sum", input, fit.agree, fit.asked)});
    return;
  }
  told.not_told.push_back("row sum: LSE of " + input + " fits no format");
}

void tell_scores(const Probe& probe, bool by_lse, Identification& told) {
  // Key 0 has a score between 64 and 128, key 1 one that is lower by t, the others are far below.
  constexpr Index count = 64;
  const double key = 32, lower = 7;
  Agreement fits[stored_formats.size()];
  for (Index first = 0; first < count; first += probe.rows()) {
    const auto high = [&](Index i) {
      return round_to(probe.dtype(), (64 + static_cast<double>(first + i)) / (key * probe.scale()));
    };
    const auto low = [&](Index i) {
      return round_to(probe.dtype(),
                      (1 + static_cast<double>(first + i) / count) / (8 * probe.scale()));
    };
    const ProbeAnswer answer =
        probe.ask([&](Index i, Index d) { return d == 0   ? high(i)
                                                 : d == 1 ? low(i)
                                                          : 0.0; },
                  [&](Index j, Index d) {
                    return d == 0 ? (j < 2 ? key : -key) : d == 1 && j == 1 ? -lower : 0.0;
                  },
                  [](Index j, Index c) { return j == 1 && c == 0 ? 1.0 : 0.0; });
    for (Index i = 0; i < probe.rows() && first + i < count; ++i) {
      const double s = probe.scale() * high(i) * key, t = probe.scale() * low(i) * lower;
      for (std::size_t f = 0; f < stored_formats.size(); ++f) {
        const double p = std::exp(stored(stored_formats[f], s - t) - stored(stored_formats[f], s));
        if (!by_lse) fits[f].add(answer.at(i, 0), p / (1 + p), 0x1p-7 * p / (1 + p));
        else
          fits[f].add(answer.lse[usize(i)], stored(stored_formats[f], s) + std::log1p(p), 0x1p-13);
      }
    }
  }
  const std::string input =
      "64 rows of two keys with scores between 64 and 128 that differ by t, "
      "t from 0.9 to 1.8";
  for (std::size_t f = 0; f < stored_formats.size(); ++f)
    if (fits[f].fits()) {
      told.statements.push_back({"scores", words_for(stored_formats[f]),
                                 fmt::format("{}: {} of {} outputs are those of this format", input,
                                             fits[f].agree, fits[f].asked)});
      return;
    }
  told.not_told.push_back("scores: no format gives the outputs of " + input);
}

}  // namespace assay
