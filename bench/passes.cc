// Benchmarks of forward and backward attention, against the same computed with linear-algebra
// libraries and against the machine's limits.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <string_view>

#include "bench/data.h"
#include "bench/library_peer.h"
#include "bench/machine.h"
#include "bench/modes.h"
#include "bench/peers.h"
#include "bench/table.h"
#include "kernels/simd/targets.h"

namespace assay::bench {
namespace {

constexpr Index heads = 8;

struct Problem {
  int threads = 1;
  Index dim = 64, length = 1024;
  bool causal = false;

  AttentionShape shape() const { return {1, heads, heads, length, length, dim, dim}; }
  PlainAttention plain() const {
    return {heads, length, length, dim, dim, causal, default_scale(dim)};
  }
  std::string name() const {
    return fmt::format("L:{}/D:{}/causal:{:d}/threads:{}", length, dim, causal, threads);
  }
  std::string label() const {
    return fmt::format("{:>7} {:>5} {:>4} {:<6}", threads, length, dim, causal ? "causal" : "none");
  }
};
constexpr const char* labels = "threads     L    D mask  ";

// Computes O and LSE.
Run forward_ours(const Problem& p, const Data& data) {
  return [&data, threads = p.threads] {
    expect_success("attention_forward",
                   kernels::attention_forward(data.problem, data.out(), threads));
  };
}

// Computes dQ, dK and dV from the given O and LSE.
Run backward_ours(const Problem& p, const Data& data) {
  forward_ours(p, data)();
  return [&data, threads = p.threads] {
    expect_success(
        "attention_backward",
        kernels::attention_backward(data.problem, data.backward_in(), data.gradients(), threads));
  };
}

Run both_ours(const Problem& p, const Data& data) {
  return [forward = forward_ours(p, data), backward = backward_ours(p, data)] {
    forward();
    backward();
  };
}

// The table of a peer's library, which is loaded once; null if the library is not there.
template <const char* name>
const assay_kernel* peer() {
  static const assay_kernel* const table = load_peer(name);
  return table;
}
template <const char* name>
Run forward_peer(const Problem& p, const Data& data) {
  return peer_forward(*peer<name>(), data, p.threads);
}
template <const char* name>
Run backward_peer(const Problem& p, const Data& data) {
  forward_ours(p, data)();
  return peer_backward(*peer<name>(), data, p.threads);
}
constexpr char openblas[] = "openblas", onednn[] = "onednn", torch[] = "torch", ggml[] = "ggml";

struct Candidate {
  std::string_view name;
  Dtype dtype;
  Run (*prepare)(const Problem&, const Data&);  // null if it was not built
  bool lse = true;
};

// Our own candidates, and the peers whose library was found.
using Prepare = Run (*)(const Problem&, const Data&);
Prepare if_there(const assay_kernel* table, Prepare prepare) { return table ? prepare : nullptr; }

const std::vector<Candidate>& forward_candidates() {
  static const std::vector<Candidate> all = {
      {"fp32", Dtype::f32, forward_ours},
      {"fp16", Dtype::f16, forward_ours},
      {"bf16", Dtype::bf16, forward_ours},
      {"openblas", Dtype::f32, if_there(peer<openblas>(), forward_peer<openblas>)},
      {"onednn", Dtype::f32, if_there(peer<onednn>(), forward_peer<onednn>)},
      {"torch", Dtype::f32, if_there(peer<torch>(), forward_peer<torch>), false},
      {"ggml", Dtype::f32, if_there(peer<ggml>(), forward_peer<ggml>), false},
  };
  return all;
}
const std::vector<Candidate>& backward_candidates() {
  static const std::vector<Candidate> all = {
      {"fp32", Dtype::f32, backward_ours},
      {"fp16", Dtype::f16, backward_ours},
      {"bf16", Dtype::bf16, backward_ours},
      {"openblas", Dtype::f32, if_there(peer<openblas>(), backward_peer<openblas>)},
  };
  return all;
}
constexpr Candidate timed_candidates[] = {
    {"fwd-fp32", Dtype::f32, forward_ours},  {"fwd-fp16", Dtype::f16, forward_ours},
    {"fwd-bf16", Dtype::bf16, forward_ours}, {"fwd+bwd-fp32", Dtype::f32, both_ours},
    {"fwd+bwd-fp16", Dtype::f16, both_ours}, {"fwd+bwd-bf16", Dtype::bf16, both_ours},
};

struct DataOfDtypes {
  explicit DataOfDtypes(const Problem& p, bool backward)
      : f32(p.shape(), Dtype::f32, p.causal, backward),
        f16(p.shape(), Dtype::f16, p.causal, backward),
        bf16(p.shape(), Dtype::bf16, p.causal, backward) {}
  const Data& of(Dtype dtype) const {
    return dtype == Dtype::f32 ? f32 : dtype == Dtype::f16 ? f16 : bf16;
  }
  Data f32, f16, bf16;
};

std::vector<float> as_floats(const Tensor& t) {
  std::vector<float> x(usize(element_count(t.view().shape)));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(load(t.view(), static_cast<Index>(i)));
  return x;
}

// Returns the largest difference over the largest number of `exact`, or infinity where something is
// not a number.
double relative_difference(const Tensor& t, const std::vector<double>& exact) {
  double largest = 0, scale = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double d = std::abs(load(t.view(), static_cast<Index>(i)) - exact[i]);
    if (!(d <= largest)) largest = std::isnan(d) ? INFINITY : d;
    scale = std::max(scale, std::abs(exact[i]));
  }
  return largest / scale;
}

// Throws if a candidate is wrong against fp64, because the time of a wrong kernel says nothing.
void check(std::span<const Candidate> candidates, const Problem& p, const DataOfDtypes& all,
           bool backward) {
  for (const Candidate& candidate : candidates) {
    if (candidate.prepare == nullptr) continue;
    const Data& data = all.of(candidate.dtype);
    const auto q = as_floats(data.q), k = as_floats(data.k), v = as_floats(data.v);
    std::vector<double> o(q.size()), lse(q.size() / usize(p.dim)), dq(q.size()), dk(q.size()),
        dv(q.size());
    eigen_attention(p.plain(), q.data(), k.data(), v.data(), o.data(), lse.data(), p.threads);
    if (backward)
      eigen_backward(p.plain(), q.data(), k.data(), v.data(), o.data(), lse.data(),
                     as_floats(data.d_o).data(), dq.data(), dk.data(), dv.data(), p.threads);
    const auto run = candidate.prepare(p, data);
    using Output = std::pair<const Tensor*, const std::vector<double>*>;
    const auto outputs =
        backward        ? std::vector<Output>{{&data.dq, &dq}, {&data.dk, &dk}, {&data.dv, &dv}}
        : candidate.lse ? std::vector<Output>{{&data.o, &o}, {&data.lse, &lse}}
                        : std::vector<Output>{{&data.o, &o}};
    // NaN in every dtype
    for (const auto& [tensor, exact] : outputs)
      std::memset(tensor->bytes(), 0xff, tensor->size_in_bytes());
    run();
    // The error of a right fp32 kernel stays below 1e-5 here. In 16-bit dtypes, rounding O for the
    // backward pass adds a few roundings.
    const double tolerance = std::max(1e-4, 8 * unit_roundoff(candidate.dtype));
    for (const auto& [tensor, exact] : outputs)
      if (const double error = relative_difference(*tensor, *exact); !(error <= tolerance))
        throw std::runtime_error(
            fmt::format("{}/{} is wrong: it differs from fp64 by {:.2g} of the largest element; at "
                        "most {:.2g} is allowed",
                        candidate.name, p.name(), error, tolerance));
  }
}

// Makes the entries of a pass. The bytes of an entry count every tensor of the pass once.
std::vector<Entry> entries_of(std::span<const Candidate> candidates, const Problem& p,
                              const DataOfDtypes& all, const char* pass, double flops,
                              int tensors) {
  std::vector<Entry> entries;
  for (const Candidate& c : candidates) {
    const double elements =
                     static_cast<double>(tensors) * static_cast<double>(heads * p.length * p.dim),
                 lse = 4 * static_cast<double>(heads * p.length);
    Entry e{fmt::format("{}/{}/{}", pass, c.name, p.name()),
            nullptr,
            flops,
            elements * format(c.dtype).bits / 8 + lse,
            Entry::Limit::flops,
            [threads = p.threads](double seconds) { return fma_gflops(threads, seconds); }};
    if (c.prepare != nullptr) e.prepare = [&p, &c, &all] { return c.prepare(p, all.of(c.dtype)); };
    entries.push_back(std::move(e));
  }
  return entries;
}

std::vector<std::string> names_of(std::span<const Candidate> candidates) {
  std::vector<std::string> names;
  for (const Candidate& c : candidates) names.emplace_back(c.name);
  return names;
}

void measure_pass(Rounds& rounds, const Settings& settings, std::span<const Candidate> candidates,
                  bool backward) {
  fmt::print(rounds.tables(),
             "\nAttention {}, B = 1, H = {}, on {}. Medians of GFLOP/s of {} products over the "
             "visible pairs, and of\n"
             "this rate as a fraction of the fp32 multiply-add rate around each repetition. Peers "
             "are in fp32.\n",
             backward ? "backward" : "forward", heads, kernels::Target().name(),
             backward ? "five" : "two");
  std::vector<std::size_t> others;
  for (std::size_t k = 1; k < candidates.size(); ++k) others.push_back(k);
  Table table(rounds, Table::Cell::rate, labels, names_of(candidates), others);
  const std::vector<Index> lengths =
      settings.full ? std::vector<Index>{1024, 2048, 4096} : std::vector<Index>{1024};
  for (const int threads : settings.threads)
    for (const Index dim : {64, 128})
      for (const Index length : lengths)
        for (const bool causal : {false, true}) {
          const Problem p{threads, dim, length, causal};
          const DataOfDtypes data(p, backward);
          if (length == lengths.front() && !rounds.lists_only())
            check(candidates, p, data, backward);
          table.line(p.label(),
                     entries_of(candidates, p, data, backward ? "backward" : "forward",
                                backward ? p.plain().backward_flops() : p.plain().flops(),
                                backward ? 8 : 4));
        }
  table.summary();
}

}  // namespace

void forward_mode(Rounds& rounds, const Settings& settings) {
  measure_pass(rounds, settings, forward_candidates(), false);
}
void backward_mode(Rounds& rounds, const Settings& settings) {
  measure_pass(rounds, settings, backward_candidates(), true);
}

void times_mode(Rounds& rounds, const Settings& settings) {
  fmt::print(rounds.tables(), "\nAttention, B = 1, H = {}, on {}: medians of milliseconds.\n",
             heads, kernels::Target().name());
  Table table(rounds, Table::Cell::milliseconds, labels, names_of(timed_candidates));
  for (const int threads : settings.threads)
    for (const Index dim : settings.full ? std::vector<Index>{64, 128} : std::vector<Index>{64})
      for (const Index length : {128, 2048, 4096})
        for (const bool causal : {false, true}) {
          const Problem p{threads, dim, length, causal};
          const DataOfDtypes data(p, true);
          table.line(p.label(),
                     entries_of(timed_candidates, p, data, "times", p.plain().flops(), 4));
        }
}

}  // namespace assay::bench
