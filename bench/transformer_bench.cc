// Benchmarks of the small transformer as a whole: prefill and decode, with and without caches, with
// one process for each configuration.
//
//   transformer_bench [--threads N]
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <string_view>

#include "bench/own_process.h"
#include "testing/transformer.h"
#include "kernels/simd/targets.h"
#include "problem/clock.h"

namespace assay {
namespace {

struct Configuration {
  LowBit format;
  Index tokens;
  Dtype cache;
};

// Milliseconds, and MiB at the peak of the process.
struct Result {
  double first_prefill = 0, prefill = 0, decode = 0, decode_without_cache = 0, peak = 0;
};

template <class Body>
double milliseconds(const Body& body) {
  const auto start = Clock::now();
  body();
  return 1e3 * seconds_since(start);
}

double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + std::ssize(x) / 2, x.end());
  return x[x.size() / 2];
}

double peak_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

Result measure(const Configuration& c, int threads) {
  TransformerConfig config;
  config.vocabulary = 512;
  config.layers = 4;
  config.width = 256;
  config.query_heads = 8;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.hidden = 1024;
  config.format = c.format;
  config.skip_first_and_last = false;
  constexpr Index new_tokens = 16;
  Transformer<float> model(config, 1);
  const TokenBatch text = rule_batch(config, 1, c.tokens + new_tokens, 1);
  const std::vector<Index> prompt(text.tokens.begin(), text.tokens.begin() + c.tokens);
  Result r;
  std::vector<double> prefill, decode;
  for (int k = 0; k < 6; ++k) {
    Decoder decoder(model, c.tokens + new_tokens, c.cache, threads);
    const double t = milliseconds([&] { decoder.append(prompt); });
    if (k == 0) {
      r.first_prefill = t;
      continue;
    }
    prefill.push_back(t);
    for (Index i = 0; i < new_tokens; ++i)
      decode.push_back(milliseconds([&] { decoder.append({text.tokens[usize(c.tokens + i)]}); }));
  }
  r.prefill = median(prefill);
  r.decode = median(decode);
  r.peak = peak_mib();  // with caches; the following part keeps the activations of every layer
  std::vector<double> whole;
  for (int k = 0; k < 3; ++k)
    whole.push_back(milliseconds([&] {
      Decoder again(model, c.tokens + 1, c.cache, threads);
      again.append(std::vector<Index>(text.tokens.begin(), text.tokens.begin() + c.tokens + 1));
    }));
  r.decode_without_cache = median(whole);
  return r;
}

int bench_main(int threads) {
  fmt::print(
      "Small transformer: 4 layers, width 256, 8 heads of 32 (2 of keys and values), hidden 1,024, "
      "vocabulary 512; {} thread(s), {}.\n",
      threads, kernels::Target().name());
  fmt::print(
      "Milliseconds. first: the first prefill of a process, which also quantizes and packs the "
      "weights; decode: one token through the cache;\n"
      "without: the same token, with the whole sequence computed again. The peak memory is that of "
      "the process while it has caches.\n\n");
  fmt::print("{:<10} {:<7} {:>6} | {:>8} {:>8} {:>9} | {:>8} {:>8} {:>7} | {:>9}\n", "weights",
             "cache", "tokens", "first", "prefill", "tokens/s", "decode", "without", "ratio",
             "peak MiB");
  for (LowBit format : {LowBit::mxfp4, LowBit::nvfp4, LowBit::int4})
    for (Dtype cache : {Dtype::f32, Dtype::f4e2m1})
      for (Index tokens : {128, 512, 1024}) {
        if (cache != Dtype::f32 && format != LowBit::mxfp4) continue;
        const Result r = bench::in_own_process(
            "a configuration", [&] { return measure({format, tokens, cache}, threads); });
        fmt::print(
            "{:<10} {:<7} {:>6} | {:>8.2f} {:>8.2f} {:>9.0f} | {:>8.3f} {:>8.2f} {:>7.0f} | "
            "{:>9.1f}\n",
            traits(format).name, assay::format(cache).name, tokens, r.first_prefill, r.prefill,
            1e3 * static_cast<double>(tokens) / r.prefill, r.decode, r.decode_without_cache,
            r.decode_without_cache / r.decode, r.peak);
        std::fflush(stdout);
      }
  return 0;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  int threads = 1;
  if (argc > 1) {
    const std::string_view flag = argv[1], value = argc == 3 ? argv[2] : "";
    const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), threads);
    if (flag != "--threads" || error != std::errc() || stop != value.data() + value.size() ||
        threads < 1 || threads > 1024) {
      fmt::print(stderr, "transformer_bench [--threads N]: N is 1 to 1024\n");
      return flag == "--help" ? 0 : 2;
    }
  }
  try {
    return assay::bench_main(threads);
  } catch (const std::exception& e) {
    fmt::print(stderr, "transformer_bench: {}\n", e.what());
    return 1;
  }
}
