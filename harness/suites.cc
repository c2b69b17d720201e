#include "harness/suites.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>

#include "harness/covering.h"

namespace assay {
namespace {

// A feature and its levels; each level changes a case. Extents come first: later levels depend on them.
struct Factor {
  const char* name;
  std::vector<std::function<void(Case&)>> levels;
  bool structural;  // meets every two others in triples, not only in pairs
};

// Levels that cannot occur together, by the names of their factors.
struct Exclusion {
  std::string_view why;
  std::vector<std::pair<std::string_view, int>> levels;
};

void set_shape(Case& c, Index b, Index hq, Index hkv) {
  c.shape.batch = b;
  c.shape.query_heads = hq;
  c.shape.kv_heads = hkv;
}

// A list of lengths that differ from batch to batch, within the keys that there are.
std::vector<Index> ragged(const Case& c, std::initializer_list<double> fractions) {
  std::vector<Index> list;
  for (double f : fractions)
    if (static_cast<Index>(list.size()) < c.shape.batch) list.push_back(static_cast<Index>(f * static_cast<double>(c.shape.keys)));
  return list;
}

std::vector<Factor> forward_factors() {
  using Change = std::function<void(Case&)>;
  auto nothing = [](Case&) {};
  auto heads = [](Index b, Index hq, Index hkv) -> Change { return [=](Case& c) { set_shape(c, b, hq, hkv); }; };
  auto lengths = [](Index rows, Index keys) -> Change { return [=](Case& c) { c.shape.rows = rows, c.shape.keys = keys; }; };
  auto dims = [](Index d, Index dv) -> Change { return [=](Case& c) { c.shape.dim = d, c.shape.value_dim = dv; }; };
  auto dtype = [](Dtype in, Dtype out) -> Change {
    return [=](Case& c) {
      c.dtype = in;
      if (out != in) c.out = out;
    };
  };
  auto keep = [](MaskPattern p, std::array<bool, 4> varies) -> Change { return [=](Case& c) { c.keep = {p, varies}; }; };
  auto bias = [](MaskPattern p, std::array<bool, 4> varies) -> Change { return [=](Case& c) { c.bias = {p, varies}; }; };
  auto window = [](Index l, Index r) -> Change { return [=](Case& c) { c.window_left = l, c.window_right = r; }; };
  auto layout = [](LayoutKind q, LayoutKind k, LayoutKind v, LayoutKind o) -> Change {
    return [=](Case& c) { c.q_layout = q, c.k_layout = k, c.v_layout = v, c.o_layout = o; };
  };
  constexpr std::array<bool, 4> all{true, true, true, true};
  using enum LayoutKind;

  std::vector<Factor> factors = {
      {"heads", {heads(1, 1, 1), heads(2, 6, 2), heads(3, 5, 5), heads(2, 3, 1)}, true},
      // Pairwise different, odd, on both sides of the tiles of 64 and 128 keys and of 96 rows.
      {"lengths",
       {lengths(37, 53), lengths(1, 131), lengths(97, 64), lengths(130, 257), lengths(5, 2), lengths(2, 5), lengths(63, 128), lengths(41, 383),
        lengths(12, 191)},
       true},
      {"dims", {dims(64, 64), dims(40, 72), dims(128, 96), dims(17, 33), dims(1, 3), dims(80, 48), dims(192, 128)}, true},
      {"dtype", {dtype(Dtype::f32, Dtype::f32), dtype(Dtype::f16, Dtype::f16), dtype(Dtype::bf16, Dtype::bf16), dtype(Dtype::bf16, Dtype::f32)}, true},
      {"causal",
       {nothing, [](Case& c) { c.causal = true; },
        [](Case& c) {
          c.causal = true, c.offset = {OffsetSpec::Kind::end, 0};
        },
        [](Case& c) {
          c.causal = true, c.offset = {OffsetSpec::Kind::fixed, -3};
        }},
       true},
      {"window", {nothing, window(16, 0), window(5, 9), window(-1, 3)}, true},
      {"padding",
       {nothing,
        [](Case& c) {
          c.lengths = ragged(c, {0.6, 1, 0.31});
        },
        [](Case& c) {
          c.starts = ragged(c, {0.4, 0, 0.8});
        },
        [](Case& c) {
          c.lengths = ragged(c, {0.9, 0.7, 0}), c.starts = ragged(c, {0.2, 0.5, 0});
        }},
       true},
      {"boolean",
       {nothing, keep(MaskPattern::random, all), keep(MaskPattern::empty_rows, {false, false, true, true}), keep(MaskPattern::tiles, {true, false, true, true}),
        keep(MaskPattern::random, {true, false, false, true})},
       true},
      {"bias",
       {nothing, bias(MaskPattern::normal, all), bias(MaskPattern::minus_infinity, {false, true, true, true}),
        bias(MaskPattern::minimum, {true, true, true, true}),
        [=](Case& c) {
          c.bias = {MaskPattern::minimum_rows, all}, c.finite_min_masks = true;
        },
        bias(MaskPattern::large, {false, false, true, true})},
       true},
      {"hidden",
       {nothing, [](Case& c) { c.hidden = Hidden::nan; }, [](Case& c) { c.hidden = Hidden::infinity; }, [](Case& c) { c.hidden = Hidden::huge; }},
       true},
      {"alibi", {nothing, [](Case& c) { c.alibi = true; }}, false},
      {"softcap", {nothing, [](Case& c) { c.softcap = 50; }, [](Case& c) { c.softcap = 1; }}, false},
      {"sink", {nothing, [](Case& c) { c.sink = 0.5f; }, [](Case& c) { c.sink = 9; }}, false},
      {"documents",
       {nothing,
        [](Case& c) {
          c.documents = {7, 19, 11};
        }},
       false},
      {"dropout", {nothing, nothing, [](Case& c) { c.dropout = 0.3f, c.dropout_seed = 11; }}, false},
      {"scale", {nothing, nothing, [](Case& c) { c.scale = 0.25f; }}, false},
      {"layout",
       {nothing, layout(bshd, bshd, bshd, bshd), layout(packed, packed, packed, bhsd), layout(padded, strided, reversed, padded),
        layout(strided, shared_head, padded, reversed), layout(reversed, padded, shared_batch, strided)},
       false},
      {"threads", {nothing, [](Case& c) { c.threads = 2; }}, false},
  };
  Factor scores{"scores", {}, false}, values{"values", {}, false};
  for (int s = 0; s < scores_count; ++s) scores.levels.push_back([=](Case& c) { c.scores = static_cast<Scores>(s); });
  for (int v = 0; v < values_count; ++v) values.levels.push_back([=](Case& c) { c.values = static_cast<Values>(v); });
  factors.push_back(std::move(scores));
  factors.push_back(std::move(values));
  return factors;
}

CoveringPlan plan_of(const std::vector<Factor>& factors, int structural_strength, const std::vector<Exclusion>& exclusions = {}) {
  CoveringPlan plan;
  const auto index_of = [&](std::string_view name) {
    return static_cast<int>(std::ranges::find_if(factors, [&](const Factor& f) { return f.name == name; }) - factors.begin());
  };
  for (const Exclusion& e : exclusions) {
    plan.excluded.emplace_back();
    for (const auto& [name, level] : e.levels) plan.excluded.back().emplace_back(index_of(name), level);
  }
  std::vector<int> everything, structural;
  for (std::size_t f = 0; f < factors.size(); ++f) {
    plan.levels.push_back(static_cast<int>(factors[f].levels.size()));
    everything.push_back(static_cast<int>(f));
    if (factors[f].structural) structural.push_back(static_cast<int>(f));
  }
  plan.sets = all_sets(everything, 2);
  for (auto& set : all_sets(structural, structural_strength))
    if (set.size() > 2) plan.sets.push_back(std::move(set));
  return plan;
}

std::vector<Case> cover(const std::vector<Factor>& factors, const CoveringPlan& plan, std::uint64_t array_seed, std::uint64_t seed) {
  std::vector<Case> cases;
  // The array's own seed is not the suite's: a suite has the same shapes under every --seed.
  for (const std::vector<int>& row : covering_array(plan, array_seed)) {
    Case c;
    for (std::size_t f = 0; f < factors.size(); ++f) factors[f].levels[static_cast<std::size_t>(row[f])](c);
    c.seed = seed + cases.size();
    check_case(c);
    cases.push_back(std::move(c));
  }
  return cases;
}

std::vector<Case> cover(const std::vector<Factor>& factors, int structural_strength, std::uint64_t array_seed, std::uint64_t seed) {
  return cover(factors, plan_of(factors, structural_strength), array_seed, seed);
}

// A few families stand for all: those in which a maximum moves, a sum cancels or the answer is known exactly.
Suite smoke(std::uint64_t seed) {
  std::vector<Factor> factors = forward_factors();
  for (Factor& f : factors) {
    const std::string_view name = f.name;
    if (name == "scores") f.levels = {f.levels[0], f.levels[4], f.levels[5], f.levels[7], f.levels[19], f.levels[20]};
    if (name == "values") f.levels = {f.levels[0], f.levels[4], f.levels[6], f.levels[12], f.levels[15], f.levels[16]};
  }
  return {"smoke", "every pair of features once", {}, cover(factors, 2, 20261, seed)};
}

// Where a new kernel begins: shapes, dtypes, causality, and every family of inputs, without any other mask.
Suite plain(std::uint64_t seed) {
  std::vector<Factor> factors = forward_factors();
  std::erase_if(factors, [](const Factor& f) {
    static constexpr std::string_view left_out[] = {"window", "padding", "boolean", "bias", "hidden", "alibi", "softcap", "sink", "documents", "dropout", "layout", "threads"};
    return std::ranges::find(left_out, std::string_view(f.name)) != std::end(left_out);
  });
  return {"plain", "shapes, dtypes, causality and every family of inputs", {}, cover(factors, 2, 20266, seed)};
}

Suite standard(std::uint64_t seed) {
  Suite suite{
      "standard", "every pair of features and input families and every triple of structural features, twice over, and lanes of every kind of tile", {}, {}};
  // Two arrays: each combination meets in two different surroundings.
  for (std::uint64_t array_seed : {20261, 20262})
    for (Case& c : cover(forward_factors(), 3, array_seed, seed + 10000 * (array_seed - 20261))) suite.cases.push_back(std::move(c));
  // What arrays over features leave open of the adequacy of the suite: rows whose every lane has a weight that
  // shows, in each kind of tile, for each dtype and tile width.
  std::uint64_t k = 0;
  for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
    for (Index dim : {64, 128}) {
      const Index tile = dim == 64 ? 128 : 64;
      for (Index keys : {tile, tile - 1, 3 * tile, 4 * tile - 1})
        for (Scores scores : {Scores::normal, Scores::gather, Scores::huge}) {
          Case c;
          set_shape(c, 1, 2, 1);
          c.shape.rows = scores == Scores::normal ? 40 : keys;
          c.shape.keys = keys;
          c.shape.dim = c.shape.value_dim = dim;
          c.dtype = dtype;
          c.scores = scores;
          if (dtype != Dtype::f32 && scores == Scores::normal) c.out = Dtype::f32;
          c.seed = seed + 5000 + k++;
          suite.cases.push_back(c);
        }
    }
  // Offsets beyond 32 bits, each tensor alone and all together.
  for (const char* line : {"attention b=2 h=6/2 l=37x53 d=40/72 causal layout=distant", "attention b=1 h=2/1 l=97x131 d=64 dtype=bf16 layout=k:distant",
                           "attention b=2 h=3 l=12x191 d=17/33 dtype=f16 lengths=150,60 hidden=nan layout=v:distant",
                           "attention b=1 h=4/2 l=130x64 d=80/48 window=16,0 layout=o:distant,q:distant", "attention b=2 h=2/1 l=3x1024 d=64 layout=k:distant,v:distant"}) {
    Case c = parse_case(line);
    c.seed = seed + 7000 + k++;
    suite.cases.push_back(std::move(c));
  }
  return suite;
}

// Gradients: the features of the forward pass and families of dO. Tiles of rows and of keys are 96 wide, splits one to six tiles.
Suite backward(std::uint64_t seed) {
  std::vector<Factor> factors = forward_factors();
  Factor gradient{"gradient", {}, false};
  for (int v = 0; v < values_count; ++v) gradient.levels.push_back([=](Case& c) { c.operation = Operation::backward, c.gradient = static_cast<Values>(v); });
  factors.push_back(std::move(gradient));
  Suite suite{"backward", "gradients: every pair of features and input families, every triple of structural features", {}, cover(factors, 3, 20263, seed)};
  // Several splits of keys and tiles of rows, one short of a tile and one beyond.
  for (Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
    for (Index dim : {64, 128, 256})
      for (Index keys : {576, 577, 1151}) {
        Case c;
        set_shape(c, 1, 2, 1);
        c.operation = Operation::backward;
        c.shape.rows = keys == 577 ? 193 : 96;
        c.shape.keys = keys;
        c.shape.dim = c.shape.value_dim = dim;
        c.dtype = dtype;
        c.causal = keys == 577;
        c.offset.kind = OffsetSpec::Kind::end;
        c.seed = seed + suite.cases.size();
        suite.cases.push_back(c);
      }
  for (const char* line : {"backward b=2 h=6/2 l=37x53 d=40/72 causal layout=distant", "backward b=1 h=2 l=130x97 d=64 dtype=bf16 layout=k:distant,v:distant"}) {
    Case c = parse_case(line);
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  return suite;
}

void set_levels(std::vector<Factor>& factors, std::string_view name, std::vector<std::function<void(Case&)>> levels) {
  for (Factor& f : factors)
    if (f.name == name) f.levels = std::move(levels);
}

// Few rows against many keys: each split of 512 keys is computed for itself and merged.
Suite decode(std::uint64_t seed) {
  std::vector<Factor> factors = forward_factors();
  auto lengths = [](Index rows, Index keys) { return [=](Case& c) { c.shape.rows = rows, c.shape.keys = keys; }; };
  set_levels(factors, "lengths", {lengths(1, 1537), lengths(1, 511), lengths(3, 1024), lengths(2, 513), lengths(5, 2049), lengths(8, 700), lengths(1, 3000)});
  set_levels(factors, "padding",
             {[](Case&) {},
              [](Case& c) {
                c.lengths = ragged(c, {0.6, 1, 0.31});
              },
              [](Case& c) {
                c.starts = ragged(c, {0.9, 0, 0.4});
              },
              [](Case& c) {
                c.lengths = ragged(c, {0.9, 0.34, 0}), c.starts = ragged(c, {0.7, 0.3, 0});
              }});
  set_levels(factors, "causal",
             {[](Case&) {},
              [](Case& c) {
                c.causal = true, c.offset = {OffsetSpec::Kind::end, 0};
              },
              [](Case& c) {
                c.causal = true, c.offset = {OffsetSpec::Kind::fixed, 600};
              }});
  set_levels(factors, "window",
             {[](Case&) {}, [](Case& c) { c.window_left = 530, c.window_right = 0; }, [](Case& c) { c.window_left = 5, c.window_right = 9; },
              [](Case& c) { c.window_right = 3; }});
  Suite suite{"decode",
              "few rows against many keys: every pair of features and input families, every triple of structural features",
              {},
              cover(factors, 3, 20264, seed)};
  return suite;
}

// Levels of a cache.
auto cache_of(CacheSpec::Kind k, Index page, Index rank = 0, Index rotary = 0) {
  return [=](Case& c) {
    c.cache.kind = k, c.cache.page = page;
    if (k == CacheSpec::Kind::latent) c.cache.rank = rank, c.cache.rotary = std::min(rotary, c.shape.dim - 1);
  };
}
auto stored_as(std::optional<Dtype> dtype, Index group = 0) {
  return [=](Case& c) {
    c.cache.dtype = dtype, c.cache.group = group;
    if (dtype == Dtype::f4e2m1 && c.hidden != Hidden::generated) c.hidden = Hidden::huge;
  };
}
// Layouts of tensors that a cache takes token by token.
std::vector<std::function<void(Case&)>> layouts_of_tokens() {
  return {[](Case&) {}, [](Case& c) { c.q_layout = c.k_layout = c.v_layout = c.o_layout = LayoutKind::bshd; },
          [](Case& c) { c.q_layout = LayoutKind::packed, c.k_layout = c.v_layout = LayoutKind::packed; },
          [](Case& c) { c.q_layout = LayoutKind::padded, c.k_layout = LayoutKind::strided, c.v_layout = LayoutKind::reversed; }};
}

// Keys and values by way of a cache.
Suite caches(std::uint64_t seed) {
  using Kind = CacheSpec::Kind;
  std::vector<Factor> factors = forward_factors();
  auto lengths = [](Index rows, Index keys) { return [=](Case& c) { c.shape.rows = rows, c.shape.keys = keys, c.offset.kind = OffsetSpec::Kind::end; }; };
  set_levels(factors, "lengths", {lengths(37, 53), lengths(1, 131), lengths(64, 64), lengths(5, 257), lengths(130, 130), lengths(9, 600), lengths(1, 1)});
  set_levels(factors, "causal", {[](Case& c) { c.causal = true; }, [](Case&) {}});
  // Eviction drops a prefix; lengths are the cache's own.
  set_levels(factors, "padding",
             {[](Case&) {},
              [](Case& c) {
                for (Index& n : c.starts = ragged(c, {0.7, 0, 0.3})) n = std::min(n, c.shape.keys - c.shape.rows);
              }});
  set_levels(factors, "layout", layouts_of_tokens());
  auto chunks = [](std::vector<Index> list) { return [=](Case& c) { c.cache.chunks = can_chunk(c) ? list : std::vector<Index>{}; }; };
  factors.push_back({"cache",
                     {cache_of(Kind::contiguous, 16), cache_of(Kind::paged, 1), cache_of(Kind::paged, 16), cache_of(Kind::paged, 7), cache_of(Kind::latent, 16, 32, 8),
                      cache_of(Kind::latent, 5, 130, 16)},
                     true});
  factors.push_back({"store",
                     {stored_as({}), stored_as(Dtype::f32), stored_as(Dtype::f16), stored_as(Dtype::bf16), stored_as(Dtype::f8e4m3), stored_as(Dtype::f8e4m3, 32),
                      stored_as(Dtype::f8e5m2, 16), stored_as(Dtype::f4e2m1, 16), stored_as(Dtype::f4e2m1)},
                     true});
  factors.push_back({"chunks", {chunks({}), chunks({1}), chunks({5, 1}), chunks({17, 30})}, true});
  Suite suite{"caches",
              "prefill in chunks and decode through caches of every kind and dtype: every pair of features, every triple of structural ones",
              {},
              cover(factors, 3, 20265, seed)};
  // Cross attention: no mask hides the slots behind the last token of an open page.
  for (const char* cache : {"contiguous", "paged:16", "paged:16 store=f8e4m3/16", "paged:7 store=f4e2m1", "latent:16:32+8", "latent:5:130+16 store=f8e5m2"}) {
    Case c = parse_case(fmt::format("attention b=2 h=6/2 l=5x50 d=40/24 offset=end cache={}", cache));
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  // What is stored must not round up to 2^128. The scores stay small.
  for (const char* store : {"f8e4m3", "f8e5m2/16", "f4e2m1/16"}) {
    Case c = parse_case(fmt::format("attention b=1 h=2/1 l=3x20 d=24/16 offset=end scores=subnormal poke=k:0:0:3:5=-3.4028235e38 cache=paged:7 store={}", store));
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  return suite;
}

// Every way that keys take to a row, and what may go wrong on the way: tensors and caches of each kind and dtype, one call and several, one split of the keys
// and several, with every mask and feature, all in triples.
Suite paths(std::uint64_t seed) {
  using Kind = CacheSpec::Kind;
  using enum MaskPattern;
  std::vector<Factor> factors = forward_factors();
  std::erase_if(factors, [](const Factor& f) {
    static constexpr std::string_view left_out[] = {"lengths", "padding", "boolean", "bias", "hidden", "documents", "dropout", "scale"};
    return std::ranges::find(left_out, std::string_view(f.name)) != std::end(left_out);
  });
  for (Factor& f : factors) f.structural = f.name != std::string_view("scores") && f.name != std::string_view("values") && f.name != std::string_view("threads");
  auto keep_levels = [&](std::string_view name, std::initializer_list<std::size_t> which) {
    for (Factor& f : factors)
      if (f.name == name) {
        std::vector<std::function<void(Case&)>> kept;
        for (std::size_t level : which) kept.push_back(f.levels[level]);
        f.levels = std::move(kept);
      }
  };
  keep_levels("heads", {0, 1, 3});
  keep_levels("dims", {0, 1, 2});
  keep_levels("causal", {0, 2});
  keep_levels("softcap", {0, 1});
  keep_levels("sink", {0, 1});
  auto window = [](Index l, Index r) { return [=](Case& c) { c.window_left = l, c.window_right = r; }; };
  // Every triple is to be judged by its bound; sums of numbers at the end of their dtype may be judged by nothing. Other suites have them.
  for (Factor& f : factors) {
    if (f.name == std::string_view("scores")) f.levels.erase(f.levels.begin() + static_cast<int>(Scores::near_overflow));
    if (f.name == std::string_view("values")) f.levels.erase(f.levels.begin() + static_cast<int>(Values::near_overflow));
  }
  set_levels(factors, "window", {[](Case&) {}, window(16, 0), window(600, 0), window(5, 9)});
  set_levels(factors, "layout", layouts_of_tokens());
  // Splits are of 512 keys; the last one has one or two tiles, whole, less a key, or a key more.
  auto splits = [](Index n) { return [=](Case& c) { c.shape.keys = 512 * (n - 1), c.offset.kind = OffsetSpec::Kind::end; }; };
  auto tail = [](Index n) { return [=](Case& c) { c.shape.keys += n; }; };
  auto calls = [](Index rows, std::vector<Index> chunks) { return [=](Case& c) { c.shape.rows = rows, c.cache.chunks = chunks; }; };
  auto at_front = [&](Factor f) { factors.insert(factors.begin(), std::move(f)); };
  at_front({"tail", {tail(128), tail(127), tail(129)}, true});
  at_front({"splits", {splits(1), splits(2), splits(3)}, true});
  at_front({"calls", {calls(37, {}), calls(1, {}), calls(5, {}), calls(37, {17, 1})}, true});
  factors.push_back({"mask",
                     {[](Case&) {}, [](Case& c) { c.keep = {random, {true, true, true, true}}; }, [](Case& c) { c.bias = {minus_infinity, {true, true, true, true}}; },
                      [](Case& c) { c.lengths = ragged(c, {0.6, 1}), c.hidden = Hidden::nan; },
                      [](Case& c) {
                        c.hidden = Hidden::nan;
                        for (Index& n : c.starts = ragged(c, {0.7, 0.1})) n = std::min(n, c.shape.keys - c.shape.rows);
                      },
                      [](Case& c) {
                        // Rows count from the first document on, and stand at the end of the keys.
                        c.documents = c.shape.rows > 5 ? std::vector<Index>{3, c.shape.keys - 12} : std::vector<Index>{c.shape.keys - 9};
                      }},
                     true});
  factors.push_back(
      {"path", {[](Case&) {}, cache_of(Kind::contiguous, 16), cache_of(Kind::paged, 16), cache_of(Kind::paged, 5), cache_of(Kind::latent, 16, 32, 8)}, true});
  factors.push_back({"store", {stored_as({}), stored_as(Dtype::bf16), stored_as(Dtype::f8e4m3), stored_as(Dtype::f8e5m2, 16), stored_as(Dtype::f4e2m1, 16)}, true});
  // Levels by their numbers above. What needs a cache goes with no tensors, hence not with lengths either.
  std::vector<Exclusion> exclusions = {{"tensors in chunks: they are read by one call", {{"path", 0}, {"calls", 3}}}};
  for (int store = 1; store < 5; ++store) exclusions.push_back({"tensors in a cache's dtype: there is no cache", {{"path", 0}, {"store", store}}});
  const char* later_keys = "chunks without causality or window=...,0: a row of an early call cannot see keys of a later one";
  for (int level : {0, 3}) exclusions.push_back({later_keys, {{"calls", 3}, {"causal", 0}, {"window", level}}});
  const char* own_lengths = "lengths with a cache, its chunks or its dtypes: it has its own";
  exclusions.push_back({own_lengths, {{"calls", 3}, {"mask", 3}}});
  for (int level = 1; level < 5; ++level)
    for (const char* factor : {"path", "store"}) exclusions.push_back({own_lengths, {{factor, level}, {"mask", 3}}});
  const CoveringPlan plan = plan_of(factors, 3, exclusions);
  Suite suite{"paths", "every path of the keys with every mask, feature, layout and dtype: every triple", {}, cover(factors, plan, 20267, seed)};
  const Combinations count = count_combinations(plan);
  suite.notes.push_back(fmt::format("{} of {} pairs and triples cannot be:", count.excluded, count.all));
  for (const Exclusion& e : exclusions)
    if (std::string note = fmt::format("  {}", e.why); suite.notes.back() != note) suite.notes.push_back(std::move(note));
  return suite;
}

Suite padding(std::uint64_t seed) {
  Suite suite{"padding", "left, right and mixed padding, with and without causality, as intervals, boolean and additive masks", {}, {}};
  auto add = [&](const std::string& line) {
    Case c = parse_case(line);
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  };
  // Two sequences, nine and two tokens long, left-padded to eleven: positions 0 to 8 of the second are padding.
  // One-hot V reads off which keys each row attended; row 9 of the second must see key 9 alone.
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* causal : {" causal", ""})
      for (const char* rest : {" starts=2,9", " starts=2,9 hidden=nan", " starts=2,9 values=one-hot", " starts=2,9 values=one-hot hidden=inf",
                               " starts=2,9 scores=negative", " starts=2,9 bool=future@ij"})
        add(fmt::format("attention b=2 h=2 l=11 d=16 dtype={}{}{}", dtype, causal, rest));
  for (const char* causal : {"", " causal", " causal offset=end", " causal offset=lengths"})
    for (const char* where :
         {" lengths=90,150,1", " starts=70,0,149", " lengths=120,150,64 starts=30,149,0", " lengths=0,150,150", " lengths=64,128,127 starts=64,0,1"})
      for (const char* rest : {"", " hidden=nan", " hidden=huge scores=negative", " bool=empty-rows@bij scores=growing", " bias=minimum-rows finite-min-masks",
                               " values=one-hot dtype=bf16 out=f32"}) {
        if (std::string_view(causal) == " causal offset=lengths" && std::string_view(where).find("lengths") == std::string_view::npos) continue;
        add(fmt::format("attention b=3 h=4/2 l=77x150 d=40/24{}{}{}", causal, where, rest));
      }
  return suite;
}

Suite models(std::uint64_t seed) {
  Suite suite{"models", "the attention of real models: prefill, prefill in chunks and decode through a cache", {}, {}};
  struct Model {
    const char* name;
    const char* line;  // without b, l and dtype
    Index rows, keys;  // at full length
    const char* dtype;
    const char* cache;  // empty: no decoder
  };
  static constexpr Model table[] = {
      {"GPT-2", "h=12 d=64 causal", 1024, 1024, "f32", "cache=contiguous"},
      {"BERT base", "h=12 d=64 lengths=$k", 512, 512, "f32", ""},
      {"Llama 3 8B", "h=32/8 d=128 causal", 8192, 8192, "bf16", "cache=paged:16"},
      {"Mistral 7B", "h=32/8 d=128 causal window=4095,0", 8192, 8192, "bf16", "cache=paged:16"},
      {"Gemma 2 9B, local", "h=16/8 d=256 causal softcap=50 window=4095,0 scale=0.0625", 8192, 8192, "bf16", "cache=paged:16 store=f8e4m3"},
      {"Gemma 2 9B, global", "h=16/8 d=256 causal softcap=50 scale=0.0625", 8192, 8192, "bf16", "cache=paged:16 store=f8e4m3"},
      {"DeepSeek V3", "h=128 d=192/128 causal", 4096, 4096, "bf16", "cache=latent:64:512+64"},
      {"Whisper large, cross attention", "h=20 d=64", 448, 1500, "f16", ""},
      {"diffusion at 4,096 tokens", "h=8 d=40", 4096, 4096, "f16", ""},
  };
  std::uint64_t k = 0;
  for (const Model& m : table) {
    // Multiply-adds of a head grow with rows * keys; this budget keeps the whole suite near two minutes.
    Index rows = m.rows, keys = m.keys, factor = 1;
    while (rows * keys > Index{1024} * 1024) rows = (rows + 1) / 2, keys = (keys + 1) / 2, factor *= 2;
    std::string line = m.line;
    Index heads = std::stoll(line.substr(line.find("h=") + 2)), judged_rows = 48;
    if (const auto at = line.find("$k"); at != std::string::npos) line.replace(at, 2, fmt::format("{}", keys * 3 / 4));
    if (const auto at = line.find("window="); at != std::string::npos) line.replace(at, line.find(',', at) - at, fmt::format("window={}", 4096 / factor - 1));
    Case c = parse_case(fmt::format("attention b=1 l={}x{} dtype={} rows={} threads=0 {}", rows, keys, m.dtype, judged_rows, line));
    c.seed = seed + k++;
    suite.cases.push_back(c);
    suite.notes.push_back(fmt::format("{}: {} heads, {} x {}{}; {} rows of each head judged", m.name, heads, rows, keys,
                                      factor > 1 ? fmt::format(" (lengths and window scaled down by {})", factor) : "", judged_rows));
    if (*m.cache == '\0') continue;
    // Projected keys and values of every head are kept in f64: the latent cache is scaled down further.
    const bool latent = std::string_view(m.cache).find("latent") != std::string_view::npos;
    const Index chunked = latent ? 192 : 1024, tokens = latent ? 256 : m.keys;
    for (const auto& [shape, features] : {std::pair{fmt::format("l={} chunks={},{}", chunked, chunked * 3 / 10, chunked / 5), line},
                                          {fmt::format("l=1x{} offset=end", tokens), std::string(m.line)}}) {
      Case cached = parse_case(fmt::format("attention b=1 {} dtype={} rows={} threads=0 {} {}", shape, m.dtype, judged_rows, features, m.cache));
      cached.seed = seed + k++;
      suite.cases.push_back(cached);
    }
    suite.notes.push_back(fmt::format("{}: prefill of {} tokens in chunks and decode at {} tokens through {}", m.name, chunked, tokens, m.cache));
  }
  return suite;
}

// What one feature rules out of another.
void fit_product(Case& c) {
  ProductSpec& p = c.product;
  const LowBitTraits& t = traits(p.format);
  if (!t.group_free || (t.scale == Dtype::e8m0 && p.group && *p.group > 32)) p.group.reset();
  if (p.format == LowBit::fp4_sparse) p.k = (p.k + 3) / 4 * 4;
  if (p.weights == Weights::special && (t.integer || t.bits == 4)) p.weights = Weights::codes;
  if (p.scales == ScaleFamily::zero && t.scale == Dtype::e8m0) p.scales = ScaleFamily::smallest;
  if (p.weights == Weights::quantized || p.group_size() == 0) p.scales = ScaleFamily::unit;
  if (p.weights == Weights::quantized || !t.integer) p.zeros = ZeroFamily::random;
  if (p.a_format) {
    c.q_layout = {};
    c.pokes.clear();
    if (c.values == Values::near_overflow || c.values == Values::subnormal) c.values = Values::normal;
  }
  for (Poke& poke : c.pokes) poke.position = {0, 0, std::min(poke.position[2], p.m - 1), std::min(poke.position[3], p.k - 1)};
}

Suite products(std::uint64_t seed) {
  using Change = std::function<void(Case&)>;
  auto rows = [](Index m) -> Change { return [=](Case& c) { c.operation = Operation::product, c.product.m = m; }; };
  auto columns = [](Index n) -> Change { return [=](Case& c) { c.product.n = n; }; };
  auto depth = [](Index k) -> Change { return [=](Case& c) { c.product.k = k; }; };
  auto dtype = [](Dtype in, Dtype out) -> Change {
    return [=](Case& c) {
      c.dtype = in;
      if (out != in) c.out = out;
    };
  };
  auto group = [](std::optional<Index> g) -> Change { return [=](Case& c) { c.product.group = g; }; };
  auto a = [](std::optional<LowBit> f) -> Change { return [=](Case& c) { c.product.a_format = f; }; };
  auto layout = [](LayoutKind in, LayoutKind out) -> Change { return [=](Case& c) { c.q_layout = in, c.o_layout = out; }; };
  auto poke = [](double x) -> Change { return [=](Case& c) { c.pokes = {{'a', {0, 0, 2, 33}, x}}; }; };
  auto nothing = [](Case&) {};
  using enum LayoutKind;
  Factor format{"format", {}, true}, weights{"weights", {}, false}, scales{"scales", {}, false}, values{"values", {}, false};
  for (int f = 0; f < low_bit_count; ++f) format.levels.push_back([=](Case& c) { c.product.format = static_cast<LowBit>(f); });
  for (int w = 0; w < weights_count; ++w) weights.levels.push_back([=](Case& c) { c.product.weights = static_cast<Weights>(w); });
  for (int s = 0; s < scale_family_count; ++s) scales.levels.push_back([=](Case& c) { c.product.scales = static_cast<ScaleFamily>(s); });
  for (int v = 0; v < values_count; ++v) values.levels.push_back([=](Case& c) { c.values = static_cast<Values>(v); });
  const std::vector<Factor> factors = {
      // Every register block and its neighbours, the rows from which panels are decoded first, and two tiles.
      {"m", {rows(1), rows(2), rows(3), rows(4), rows(5), rows(7), rows(8), rows(9), rows(31), rows(32), rows(33), rows(65)}, true},
      // Panels of 64 columns.
      {"n", {columns(64), columns(1), columns(63), columns(65), columns(130), columns(24)}, true},
      // Blocks of 8, groups of 16, 32 and 128, and the depth of 256 up to which a panel is decoded at a time.
      {"k", {depth(128), depth(32), depth(33), depth(7), depth(300), depth(515), depth(96), depth(47)}, true},
      {"dtype", {dtype(Dtype::f32, Dtype::f32), dtype(Dtype::f16, Dtype::f16), dtype(Dtype::bf16, Dtype::f32), dtype(Dtype::bf16, Dtype::bf16)}, true},
      std::move(format),
      {"group", {group({}), group(8), group(32), group(48), group(0), group(64)}, true},
      {"a", {nothing, nothing, nothing, a(LowBit::mxfp4), a(LowBit::nvfp4), a(LowBit::f8e4m3), a(LowBit::f8e5m2)}, false},
      std::move(weights),
      std::move(scales),
      {"zeros", {nothing, [](Case& c) { c.product.zeros = ZeroFamily::symmetric; }, [](Case& c) { c.product.zeros = ZeroFamily::edges; }}, false},
      std::move(values),
      {"layout", {nothing, layout(padded, padded), layout(strided, reversed), layout(reversed, strided)}, false},
      {"poke", {nothing, nothing, nothing, poke(std::numeric_limits<double>::quiet_NaN()), poke(std::numeric_limits<double>::infinity())}, false},
      {"threads", {nothing, [](Case& c) { c.threads = 2; }}, false},
      // Last: it looks at what the others chose.
      {"fit",
       {[](Case& c) {
         if (c.product.group && *c.product.group == 0 && traits(c.product.format).scale != Dtype::e8m0) c.product.group.reset();
         fit_product(c);
       }},
       false},
  };
  Suite suite{"products", "low-bit products in every format: every pair of features and families, every triple of structural features", {}, cover(factors, 3, 20266, seed)};
  // Lanes of every kind of group, of every format and group size above.
  for (int f = 0; f < low_bit_count; ++f) {
    const auto format_of = static_cast<LowBit>(f);
    const LowBitTraits& t = traits(format_of);
    for (Index g : t.group_free ? (t.scale == Dtype::e8m0 ? std::vector<Index>{0, 8, 32} : std::vector<Index>{8, 32, 48, 64, 128}) : std::vector<Index>{t.group}) {
      const Index tile = g > 0 ? g : 128, short_by = format_of == LowBit::fp4_sparse ? 4 : 1;
      for (Index k : {tile, 4 * tile - short_by}) {
        Case c;
        c.operation = Operation::product;
        c.product = {4, 40, k, format_of, g, {}, Weights::codes, g > 0 ? ScaleFamily::distinct : ScaleFamily::unit, ZeroFamily::random};
        c.seed = seed + suite.cases.size();
        check_case(c);
        suite.cases.push_back(std::move(c));
      }
    }
  }
  return suite;
}

struct Entry {
  std::string_view name;
  Suite (*make)(std::uint64_t);
};
// For simulators that take 1e5 multiply-adds a second: lengths and dimensions up to 32, and a few cases that cross tiles of 64 keys and
// slices of 32 columns, where work-items share what they overwrite.
Suite tiny(std::uint64_t seed) {
  Suite suite{"tiny", "every feature of a device's kernels in a few thousand multiply-adds", {}, {}};
  for (const char* line : {"attention b=1 h=2/1 l=32x32 d=32 causal", "attention b=2 h=2 l=5x29 d=20/24 lengths=29,11 hidden=nan",
                           "attention b=1 h=2 l=17x32 d=8/32 dtype=f16 window=4,2 sink=0.5", "attention b=1 h=2/1 l=9x31 d=31/7 dtype=bf16 out=f32 bool=random bias=normal softcap=5",
                           "attention b=1 h=4/2 l=16x16 d=16 alibi docs=5,6 causal", "attention b=2 h=1 l=7x13 d=5/3 bias=minimum-rows finite-min-masks dtype=f16",
                           "attention b=1 h=1 l=1x1 d=1", "attention b=1 h=1 l=17x70 d=12/8 causal offset=end", "attention b=1 h=1 l=3x130 d=40/36 starts=20 scores=growing",
                           "attention b=1 h=1 l=4x8 d=4/70 dtype=bf16 layout=strided", "product m=5 n=20 k=32 w=mxfp4", "product m=17 n=18 k=40 w=nvfp4 dtype=f16 weights=codes",
                           "product m=1 n=5 k=70 w=fp4:24 dtype=bf16 out=f32 layout=padded"}) {
    Case c = parse_case(line);
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  return suite;
}

constexpr Entry entries[] = {{"smoke", smoke},       {"standard", standard}, {"models", models}, {"padding", padding},   {"backward", backward},
                             {"decode", decode},     {"caches", caches},     {"products", products}, {"plain", plain},   {"tiny", tiny},
                             {"paths", paths}};

}  // namespace

Suite make_suite(std::string_view name, std::uint64_t seed) {
  for (const Entry& e : entries)
    if (e.name == name) return e.make(seed);
  throw std::invalid_argument(fmt::format("unknown suite '{}'; there are {}", name, fmt::join(suite_names(), ", ")));
}

std::vector<std::string_view> suite_names() {
  std::vector<std::string_view> names;
  for (const Entry& e : entries) names.push_back(e.name);
  return names;
}

}  // namespace assay
