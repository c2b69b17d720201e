// Benchmarks of low-bit products. Few rows are bound by reading, so their limit is plain reads of
// the packed bytes; many rows are compared with the multiply-add rate.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>

#include "bench/data.h"
#include "bench/machine.h"
#include "bench/modes.h"
#include "bench/peers.h"
#include "bench/table.h"
#include "kernels/product/product.h"
#include "kernels/simd/targets.h"

namespace assay::bench {
namespace {

struct Shape {
  Index m, n, k;
  double flops() const {
    return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }
};

// Weights of one K and N in every format, and activations for the largest number of rows.
struct Weights {
  Weights(Index k_, Index n_, Index most_rows)
      : k(k_), n(n_), plain(usize(k_ * n_)), a(usize(most_rows * k_)) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (float& x : plain) x = 0.02f * normal(random);
    for (float& x : a) x = normal(random);
  }
  TensorView view() { return {plain.data(), Dtype::f32, {1, 1, k, n}, {0, 0, n, 1}, 0}; }
  const kernels::LowBitBytes& bytes(LowBit format) {
    kernels::LowBitBytes& b = bytes_[format];
    if (b.codes.empty()) {
      expect_success("quantize_weights", kernels::quantize_weights(view(), format, {}, b));
    }
    return b;
  }
  std::shared_ptr<const kernels::PackedWeights> packed(LowBit format) {
    std::shared_ptr<const kernels::PackedWeights>& p = packed_[format];
    if (!p) expect_success("pack", kernels::PackedWeights::pack(bytes(format).view(), p));
    return p;
  }

  Index k, n;
  std::vector<float> plain, a;

 private:
  std::map<LowBit, kernels::LowBitBytes> bytes_;
  std::map<LowBit, std::shared_ptr<const kernels::PackedWeights>> packed_;
};

struct Ours {
  const char* name;
  LowBit format;
  Dtype activations;
};
constexpr Ours ours[] = {
    {"mxfp4", LowBit::mxfp4, Dtype::f32},  {"nvfp4", LowBit::nvfp4, Dtype::f32},
    {"fp4", LowBit::fp4, Dtype::f32},      {"mxfp4-bf16", LowBit::mxfp4, Dtype::bf16},
    {"int4", LowBit::int4, Dtype::f32},    {"int8", LowBit::int8, Dtype::f32},
    {"f8e4m3", LowBit::f8e4m3, Dtype::f32}};

Run ours_run(const Ours& which, const Shape& s, Weights& w, std::vector<float>& c, int threads) {
  auto a = std::make_shared<Tensor>(which.activations, Extents{1, 1, s.m, s.k},
                                    Layout{{0, 0, s.k, 1}, 0, s.m * s.k});
  for (Index e = 0; e < s.m * s.k; ++e) store(a->view(), e, static_cast<double>(w.a[usize(e)]));
  return [a, s, &c, threads, packed = w.packed(which.format)] {
    const TensorView out{c.data(), Dtype::f32, {1, 1, s.m, s.n}, {0, 0, s.n, 1}, 0};
    expect_success("product", kernels::product(a->view(), *packed, out, threads));
  };
}

using MakePeer = std::unique_ptr<ProductPeer> (*)(const PlainProduct&, int);
struct Peer {
  const char* name;
  MakePeer make;     // null if it was not built
  double tolerance;  // the largest error that is allowed, over the largest element
};
#ifdef ASSAY_BENCH_OPENBLAS
constexpr MakePeer openblas = make_openblas_product;
#else
constexpr MakePeer openblas = nullptr;
#endif
#ifdef ASSAY_BENCH_ONEDNN
constexpr MakePeer onednn = make_onednn_product;
#else
constexpr MakePeer onednn = nullptr;
#endif
#ifdef ASSAY_BENCH_GGML
constexpr MakePeer ggml = make_ggml_product;
#else
constexpr MakePeer ggml = nullptr;
#endif
// ggml rounds activations to eight bits.
constexpr Peer peers[] = {
    {"deq+openblas", openblas, 1e-4}, {"onednn-fp32", onednn, 1e-4}, {"ggml", ggml, 0.05}};

// Throws if a candidate is wrong, because the time of a wrong kernel says nothing. Compares some
// columns with fp64.
void check(const char* name, double tolerance, const Shape& s, const std::vector<float>& a,
           const kernels::PackedWeights& w, const std::vector<float>& c) {
  double largest = 0, size = 0;
  for (Index m = 0; m < s.m; m += 1 + s.m / 5)
    for (Index n = 0; n < s.n; n += 1 + s.n / 37) {
      double exact = 0;
      for (Index k = 0; k < s.k; ++k)
        exact += static_cast<double>(a[usize(m * s.k + k)]) * static_cast<double>(w.value(k, n)) *
                 static_cast<double>(w.scale(k / w.group(), n)) *
                 static_cast<double>(w.tensor_scale());
      const double error = std::fabs(static_cast<double>(c[usize(m * s.n + n)]) - exact);
      if (!(error <= largest)) largest = std::isnan(error) ? INFINITY : error;
      size = std::max(size, std::fabs(exact));
    }
  if (!(largest <= tolerance * size))
    throw std::runtime_error(fmt::format(
        "{} is wrong: it is off by {:.2g} of the largest element; at most {:.2g} is allowed", name,
        largest / size, tolerance));
}

// One thread quantizes W, and packs the bytes: the limit is to read W in f32.
void weights_table(Rounds& rounds, Index k, Index n) {
  Weights w(k, n, 1);
  std::vector<std::string> names;
  for (const Ours& o : ours)
    if (o.activations == Dtype::f32) names.emplace_back(o.name);
  fmt::print(
      rounds.tables(),
      "\nWeights, K = {}, N = {}, one thread. Medians of GB/s (1e9) of W in f32, so four times "
      "the weights a second, and of this rate over that of plain reads of W\n",
      k, n);
  Table table(rounds, Table::Cell::rate, "            ", names, {});
  const auto line = [&](const char* what, const auto& make) {
    std::vector<Entry> entries;
    for (const Ours& o : ours) {
      if (o.activations != Dtype::f32) continue;
      const double bytes = 4 * static_cast<double>(k * n);
      entries.push_back(
          {fmt::format("weights/{}/{}/N:{}/K:{}", what, o.name, n, k),
           [&w, format = o.format, make] { return make(w, format); }, 0, bytes, Entry::Limit::bytes,
           [reader = Reader(w.plain.data(), static_cast<std::size_t>(bytes), 1)](
               double seconds) mutable { return reader.gigabytes_per_second(seconds); }});
    }
    table.line(fmt::format("{:<12}", what), entries);
  };
  line("quantize", [](Weights& weights, LowBit format) -> Run {
    return [&weights, format] {
      kernels::LowBitBytes bytes;
      expect_success("quantize_weights",
                     kernels::quantize_weights(weights.view(), format, {}, bytes));
    };
  });
  line("pack", [](Weights& weights, LowBit format) -> Run {
    return [view = weights.bytes(format).view()] {
      std::shared_ptr<const kernels::PackedWeights> packed;
      expect_success("pack", kernels::PackedWeights::pack(view, packed));
    };
  });
}

}  // namespace

void products_mode(Rounds& rounds, const Settings& settings) {
  std::vector<std::string> names;
  for (const Ours& o : ours) names.emplace_back(o.name);
  for (const Peer& p : peers) names.emplace_back(p.name);
  struct Matrix {
    Index n, k;
    std::vector<Index> rows;
  };
  const std::vector<Index> all = settings.full
                                     ? std::vector<Index>{1, 2, 4, 8, 16, 32, 64, 256, 512}
                                     : std::vector<Index>{1, 8, 256};
  std::vector<Matrix> matrices = {{4096, 4096, all}};
  if (settings.full) matrices.insert(matrices.end(), {{14336, 4096, all}, {4096, 14336, all}});
  // These take 62 MB or more in four bits, which is larger than the caches of most machines, as the
  // layers of a model are together.
  matrices.push_back({8192, 14336, {1}});
  weights_table(rounds, 4096, 4096);
  for (const auto& [n, k, rows] : matrices) {
    Weights w(k, n, rows.back());
    std::vector<float> c(usize(rows.back() * n));
    // The memory that the reads use for one row: a footprint of its own, as large as the weights.
    const Tensor footprint = uniform(Dtype::f32, {1, 1, k, n / 2}, 5);
    for (const bool reads : {true, false}) {
      if (!reads && rows.back() == 1) continue;
      fmt::print(rounds.tables(), "\nProducts, K = {}, N = {}, on {}: {}\n", k, n,
                 kernels::Target().name(),
                 reads ? "one row. Medians of GB/s (1e9) of packed bytes, and of this rate over "
                         "that of plain reads of as many bytes on as many threads"
                       : "several rows. Medians of GFLOP/s, and of this rate over the fp32 "
                         "multiply-add rate around each repetition");
      Table table(rounds, Table::Cell::rate, "threads     M", names, {7, 8, 9});
      for (const int threads : settings.threads)
        for (const Index m : rows) {
          if (reads != (m == 1)) continue;
          const Shape s{m, n, k};
          std::vector<Entry> entries;
          const auto entry = [&](const char* name, double bytes, std::function<Run()> prepare) {
            Entry e{fmt::format("products/{}/M:{}/N:{}/K:{}/threads:{}", name, m, n, k, threads),
                    std::move(prepare),
                    s.flops(),
                    bytes,
                    reads ? Entry::Limit::bytes : Entry::Limit::flops,
                    nullptr};
            if (reads)
              e.limit = [reader = Reader(
                             footprint.bytes(),
                             std::min(footprint.size_in_bytes(), static_cast<std::size_t>(bytes)) /
                                 usize(threads),
                             threads)](double seconds) mutable {
                return reader.gigabytes_per_second(seconds);
              };
            else e.limit = [threads](double seconds) { return fma_gflops(threads, seconds); };
            entries.push_back(std::move(e));
          };
          for (const Ours& o : ours) {
            const LowBitSizes sizes = sizes_of(o.format, k, n, traits(o.format).group);
            entry(o.name, static_cast<double>(sizes.codes + sizes.scales + sizes.extra),
                  [&, threads] {
                    Run run = ours_run(o, s, w, c, threads);
                    std::fill(c.begin(), c.end(), NAN);
                    run();
                    check(o.name, o.activations == Dtype::f32 ? 1e-4 : 1e-2, s, w.a,
                          *w.packed(o.format), c);
                    return run;
                  });
          }
          for (const Peer& p : peers) {
            PlainProduct plain{m, n, k, w.a.data(), c.data(), nullptr, w.plain.data()};
            // oneDNN reads fp32, which is four bytes for each weight.
            const double bytes = static_cast<double>(k * n) *
                                 (std::string_view(p.name) == "onednn-fp32" ? 4 : 0.53125);
            entry(
                p.name, bytes,
                p.make == nullptr ? std::function<Run()>() : [&, plain, threads]() mutable -> Run {
                  plain.mxfp4 = &w.bytes(LowBit::mxfp4);
                  std::shared_ptr<ProductPeer> peer = p.make(plain, threads);
                  std::fill(c.begin(), c.end(), NAN);
                  peer->run();
                  check(p.name, p.tolerance, s, w.a, *w.packed(LowBit::mxfp4), c);
                  return [peer] { peer->run(); };
                });
          }
          table.line(fmt::format("{:>7} {:>5}", threads, m), entries);
        }
      table.summary();
    }
  }
}

}  // namespace assay::bench
