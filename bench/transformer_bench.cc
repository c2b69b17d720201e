// Benchmarks of the small transformer as a whole: prefill and decode, with and without caches, with
// one process for each configuration.
//
//   transformer_bench [--threads N] [--tokens N,...] [--json FILE]
//
// The file has the form of Google Benchmark's, so `assay store --benchmarks FILE` takes it.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/own_process.h"
#include "harness/files.h"
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

struct Options {
  int threads = 1;
  std::vector<Index> tokens = {128, 512, 1024};
  std::string json;
};

std::vector<Configuration> configurations(const std::vector<Index>& tokens) {
  std::vector<Configuration> all;
  for (const LowBit format : {LowBit::mxfp4, LowBit::nvfp4, LowBit::int4})
    for (const Dtype cache : {Dtype::f32, Dtype::f4e2m1})
      for (const Index n : tokens)
        if (cache == Dtype::f32 || format == LowBit::mxfp4) all.push_back({format, n, cache});
  return all;
}

void add_to(nlohmann::json& benchmarks, const Configuration& c, const Result& r) {
  for (const auto& [what, time] : {std::pair{"first-prefill", r.first_prefill},
                                   {"prefill", r.prefill},
                                   {"decode", r.decode},
                                   {"decode-without-cache", r.decode_without_cache}})
    benchmarks.push_back({{"name", fmt::format("transformer/{}/{}/{}/{}", traits(c.format).name,
                                               format(c.cache).name, c.tokens, what)},
                          {"run_type", "iteration"},
                          {"real_time", time},
                          {"time_unit", "ms"},
                          {"peak_mib", r.peak}});
}

int bench_main(const Options& options) {
  fmt::print(
      "Small transformer: 4 layers, width 256, 8 heads of 32 (2 of keys and values), hidden 1,024, "
      "vocabulary 512; {} thread(s), {}.\n",
      options.threads, kernels::Target().name());
  fmt::print(
      "Milliseconds. first: the first prefill of a process, which also quantizes and packs the "
      "weights; decode: one token through the cache;\n"
      "without: the same token, with the whole sequence computed again. The peak memory is that of "
      "the process while it has caches.\n\n");
  fmt::print("{:<10} {:<7} {:>6} | {:>8} {:>8} {:>9} | {:>8} {:>8} {:>7} | {:>9}\n", "weights",
             "cache", "tokens", "first", "prefill", "tokens/s", "decode", "without", "ratio",
             "peak MiB");
  nlohmann::json benchmarks = nlohmann::json::array();
  for (const Configuration& c : configurations(options.tokens)) {
    const Result r =
        bench::in_own_process("a configuration", [&] { return measure(c, options.threads); });
    fmt::print(
        "{:<10} {:<7} {:>6} | {:>8.2f} {:>8.2f} {:>9.0f} | {:>8.3f} {:>8.2f} {:>7.0f} | "
        "{:>9.1f}\n",
        traits(c.format).name, format(c.cache).name, c.tokens, r.first_prefill, r.prefill,
        1e3 * static_cast<double>(c.tokens) / r.prefill, r.decode, r.decode_without_cache,
        r.decode_without_cache / r.decode, r.peak);
    std::fflush(stdout);
    add_to(benchmarks, c, r);
  }
  if (!options.json.empty())
    write_file(options.json, nlohmann::json{{"context", {{"executable", "transformer_bench"}}},
                                            {"benchmarks", benchmarks}}
                                     .dump(1) +
                                 "\n");
  return 0;
}

// Throws std::invalid_argument for anything else than a number from 1 to the largest.
Index number(std::string_view text, Index largest) {
  Index n = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || stop != text.data() + text.size() || n < 1 || n > largest)
    throw std::invalid_argument(fmt::format("'{}' is no number from 1 to {}", text, largest));
  return n;
}

Options parsed(const std::vector<std::string_view>& words) {
  Options options;
  if (words.size() % 2 != 0) throw std::invalid_argument("an option has no value");
  for (std::size_t k = 0; k < words.size(); k += 2) {
    std::string_view value = words[k + 1];
    if (words[k] == "--threads") {
      options.threads = static_cast<int>(number(value, 1024));
    } else if (words[k] == "--json") {
      options.json = value;
    } else if (words[k] == "--tokens") {
      options.tokens.clear();
      for (;;) {
        const std::size_t comma = value.find(',');
        options.tokens.push_back(number(value.substr(0, comma), 1 << 16));
        if (comma == std::string_view::npos) break;
        value.remove_prefix(comma + 1);
      }
    } else {
      throw std::invalid_argument(fmt::format("there is no option '{}'", words[k]));
    }
  }
  return options;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  constexpr const char* usage =
      "transformer_bench [--threads N] [--tokens N,...] [--json FILE]; by default 1 thread and "
      "128,512,1024 tokens";
  if (argc == 2 && std::string_view(argv[1]) == "--help") {
    fmt::print("{}\n", usage);
    return 0;
  }
  try {
    return assay::bench_main(assay::parsed({argv + 1, argv + argc}));
  } catch (const std::invalid_argument& e) {
    fmt::print(stderr, "transformer_bench: {}\n{}\n", e.what(), usage);
    return 2;
  } catch (const std::exception& e) {
    fmt::print(stderr, "transformer_bench: {}\n", e.what());
    return 1;
  }
}
