#include "harness/cases/suites.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "harness/cases/factors.h"
#include "harness/cases/regimes.h"

namespace assay {
namespace {

void set_shape(Case& c, Index b, Index hq, Index hkv) {
  c.shape.batch = b;
  c.shape.query_heads = hq;
  c.shape.kv_heads = hkv;
}

// A list of lengths that differ from batch to batch, none above the number of keys.
std::vector<Index> ragged(const Case& c, std::initializer_list<double> fractions) {
  std::vector<Index> list;
  for (double f : fractions)
    if (static_cast<Index>(list.size()) < c.shape.batch)
      list.push_back(static_cast<Index>(f * static_cast<double>(c.shape.keys)));
  return list;
}

// The start of each batch. No start drops one of the rows, which are the last tokens of a cache.
std::vector<Index> evicted(const Case& c, std::initializer_list<double> fractions) {
  std::vector<Index> starts = ragged(c, fractions);
  for (Index& n : starts) n = std::min(n, c.shape.keys - c.shape.rows);
  return starts;
}

void add_levels(std::vector<Factor>& factors, std::string_view name,
                std::initializer_list<Level> levels) {
  std::vector<Level>& all = factor_named(factors, name).levels;
  all.insert(all.end(), levels);
}

// A candidate that does little is judged on what it does, so its arrays have room for what most
// kernels have: D = Dv, and as many rows as keys.
void add_common_extents(std::vector<Factor>& factors, const Features& has) {
  if (has.has_all()) return;
  add_levels(factors, "dims", {"d=128", "d=96", "d=256", "d=32"});
  add_levels(factors, "lengths", {"l=96", "l=77"});
}

// A candidate that does little does none of the cases whose offsets exceed 32 bits, unless one is
// made for it.
void add_distant(std::vector<Case>& cases, const SuiteSeed& seed, const char* operation) {
  if (seed.has.has_all()) return;
  add_first(cases, seed,
            {fmt::format("{} b=1 h=2 l=9x33 d=64 layout=distant", operation),
             fmt::format("{} b=1 h=1 l=33 d=64 layout=distant", operation)});
}

// A candidate that does little has few levels of each factor, so that every triple of shapes,
// diagonals and masks costs little. All of them would be 252 cases at least.
constexpr std::size_t most_triples_of_regimes = 150;

std::vector<Factor> forward_factors() {
  return {
      {"heads", {"b=1 h=1", "b=2 h=6/2", "b=3 h=5", "b=2 h=3/1"}, true},
      // The extents are pairwise different and odd, and lie on both sides of the tiles of 64 and
      // 128 keys and of 96 rows.
      {"lengths",
       {"l=37x53", "l=1x131", "l=97x64", "l=130x257", "l=5x2", "l=2x5", "l=63x128", "l=41x383",
        "l=12x191"},
       true},
      {"dims", {"d=64", "d=40/72", "d=128/96", "d=17/33", "d=1/3", "d=80/48", "d=192/128"}, true},
      {"dtype", {"dtype=f32", "dtype=f16", "dtype=bf16", "dtype=bf16 out=f32"}, true},
      {"causal", {"", "causal", "causal offset=end", "causal offset=-3"}, true},
      {"window", {"", "window=16,0", "window=5,9", "window=-1,3"}, true},
      {"padding",
       {"",
        {"lengths", [](Case& c) { c.lengths = ragged(c, {0.6, 1, 0.31}); }},
        {"starts", [](Case& c) { c.starts = ragged(c, {0.4, 0, 0.8}); }},
        {"lengths and starts",
         [](Case& c) {
           c.lengths = ragged(c, {0.9, 0.7, 0}), c.starts = ragged(c, {0.2, 0.5, 0});
         }}},
       true},
      {"boolean",
       {"", "bool=random", "bool=empty-rows@ij", "bool=tiles@bij", "bool=random@bj"},
       true},
      {"bias",
       {"", "bias=normal", "bias=minus-infinity@hij", "bias=minimum",
        "bias=minimum-rows finite-min-masks", "bias=large@ij"},
       true},
      {"hidden", {"", "hidden=nan", "hidden=inf", "hidden=huge"}, true},
      {"alibi", {"", "alibi"}, false},
      {"softcap", {"", "softcap=50", "softcap=1"}, false},
      {"sink", {"", "sink=0.5", "sink=9"}, false},
      {"documents", {"", "docs=7,19,11"}, false},
      {"dropout", {"", "", "dropout=0.3:11"}, false},
      {"scale", {"", "", "scale=0.25"}, false},
      {"layout",
       {"", "layout=bshd", "layout=q:packed,k:packed,v:packed",
        "layout=q:padded,k:strided,v:reversed,o:padded",
        "layout=q:strided,k:shared-head,v:padded,o:reversed",
        "layout=q:reversed,k:padded,v:shared-batch,o:strided"},
       false},
      {"threads", {"", "threads=2"}, false},
      {"scores", every<Scores>([](Case& c) -> Scores& { return c.scores; }), false},
      {"values", every<Values>([](Case& c) -> Values& { return c.values; }), false},
  };
}

// A few families stand for all: those in which a maximum moves, a sum cancels, or the exact answer
// is known.
Suite smoke(const SuiteSeed& seed) {
  std::vector<Factor> factors = forward_factors();
  add_common_extents(factors, seed.has);
  keep_levels(factors, "scores",
              {"normal", "negative", "growing", "tile-peaks", "subset", "gather"});
  keep_levels(factors, "values",
              {"normal", "cancel", "one-hot", "ones", "head-number", "integers"});
  Suite suite{"smoke", "every pair of features once", {}, cover(factors, 2, 20261, seed)};
  add_visible_specials(suite.cases, seed, "attention b=1 h=2 l=9x40 d=64 causal offset=end");
  add_line(suite.cases, seed, "attention b=1 h=2 l=150x500 d=64 rows=4");
  add_line(suite.cases, seed, "attention b=2 h=9 l=20x40 d=128 causal");
  add_line(suite.cases, seed, "attention b=1 h=2 l=20x70 d=64 scale=-0.125");
  return suite;
}

// The suite with which a new kernel begins: shapes, dtypes, causality and every family of inputs,
// without any other mask.
Suite plain(const SuiteSeed& seed) {
  std::vector<Factor> factors = forward_factors();
  leave_out(factors, {"window", "padding", "boolean", "bias", "hidden", "alibi", "softcap", "sink",
                      "documents", "dropout", "layout", "threads"});
  // Scores and values have so many levels that the others add no case.
  if (seed.has.has_all()) {
    add_levels(factors, "dims", {"d=128", "d=96"});
    add_levels(factors, "lengths", {"l=96"});
  }
  add_common_extents(factors, seed.has);
  Suite suite{"plain",
              "shapes, dtypes, causality and every family of inputs",
              {},
              cover(factors, 2, 20266, seed)};
  add_visible_specials(suite.cases, seed, "attention b=1 h=2 l=20x37 d=64");
  add_visible_specials(suite.cases, seed, "attention b=1 h=2 l=20 d=64 causal");
  for (const char* line :
       {"attention b=1 h=2 l=300x1000 d=64 rows=4", "attention b=1 h=2 l=520 d=128 causal rows=6",
        "attention b=3 h=8 l=20x40 d=64", "attention b=2 h=4/2 l=20x70 d=64 scale=-0.125"})
    add_line(suite.cases, seed, line);
  return suite;
}

Suite standard(const SuiteSeed& seed) {
  Suite suite{"standard",
              "every pair of features and input families and every triple of structural features, "
              "twice over, and lanes of every kind of tile",
              {},
              {}};
  // With two arrays, each combination occurs together with two different sets of other levels.
  std::vector<Factor> factors = forward_factors();
  add_common_extents(factors, seed.has);
  for (std::uint64_t array_seed : {20261, 20262})
    for (Case& c : cover(factors, 3, array_seed, {seed + 10000 * (array_seed - 20261), seed.has}))
      suite.cases.push_back(std::move(c));
  for (Case& c : cover(regimes(Operation::attention), 3, 20268, {seed + 30000, seed.has},
                       most_triples_of_regimes))
    suite.cases.push_back(std::move(c));
  for (const char* fields :
       {"attention b=1 h=2 l=20x37 d=64", "attention b=1 h=2 l=20 d=64 causal",
        "attention b=1 h=4/2 l=70x140 d=128 dtype=bf16 causal offset=end window=130,0"})
    add_visible_specials(suite.cases, seed, fields);
  add_diagonals(suite.cases, seed);
  add_extents(suite.cases, seed);
  add_negative_scales(suite.cases, seed, "attention");
  // Arrays over features alone do not make the suite adequate. These cases add rows in which every
  // lane has a weight that shows, in each kind of tile, for each dtype and tile width.
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
  // The offsets exceed 32 bits, in each tensor alone and in all of them together.
  for (const char* line :
       {"attention b=2 h=6/2 l=37x53 d=40/72 causal layout=distant",
        "attention b=1 h=2/1 l=97x131 d=64 dtype=bf16 layout=k:distant",
        "attention b=2 h=3 l=12x191 d=17/33 dtype=f16 lengths=150,60 hidden=nan layout=v:distant",
        "attention b=1 h=4/2 l=130x64 d=80/48 window=16,0 layout=o:distant,q:distant",
        "attention b=2 h=2/1 l=3x1024 d=64 layout=k:distant,v:distant"}) {
    Case c = parse_case(line);
    c.seed = seed + 7000 + k++;
    suite.cases.push_back(std::move(c));
  }
  add_distant(suite.cases, seed, "attention");
  return suite;
}

// Gradients: the features of the forward pass, and families of dO. Tiles of rows and of keys are 96
// wide, and splits have one to six tiles.
Suite backward(const SuiteSeed& seed) {
  std::vector<Factor> factors = forward_factors();
  add_common_extents(factors, seed.has);
  factors.push_back({"gradient", every<Values>([](Case& c) -> Values& {
                       c.operation = Operation::backward;
                       return c.gradient;
                     }),
                     false});
  Suite suite{
      "backward",
      "gradients: every pair of features and input families, every triple of structural features",
      {},
      cover(factors, 3, 20263, seed)};
  for (Case& c : cover(regimes(Operation::backward), 3, 20269, {seed + 30000, seed.has},
                       most_triples_of_regimes))
    suite.cases.push_back(std::move(c));
  for (const char* fields :
       {"backward b=1 h=2 l=20x37 d=64", "backward b=1 h=2 l=20 d=64 causal"}) {
    add_visible_specials(suite.cases, seed, fields);
    add_line(suite.cases, seed, fmt::format("{} poke=g:0:0:4:1=nan;g:0:1:0:2=inf", fields));
  }
  for (const char* line :
       {"backward b=1 h=2 l=1x128 d=64 scores=negative",
        "backward b=1 h=2 l=65x128 d=32 scores=negative",
        "backward b=3 h=6/2 l=33x70 d=64 causal layout=g:padded",
        "backward b=2 h=4 l=200x450 d=64 dtype=bf16 causal offset=end rows=6",
        "backward b=9 h=2 l=20x40 d=128", "backward b=1 h=2 l=20x37 d=64 dlse=normal",
        "backward b=2 h=4/2 l=97x130 d=64 causal offset=end dlse=uniform",
        "backward b=1 h=2 l=20x37 d=40/24 dtype=bf16 dlse=huge",
        "backward b=1 h=2 l=33x70 d=64 dtype=f16 softcap=20 dlse=normal",
        "backward b=2 h=2 l=9x24 d=16 starts=5,3 causal sink=0.5 dlse=normal",
        "backward b=1 h=4 l=20x37 d=32 bias=normal dropout=0.2:7 dlse=cancel",
        "backward b=1 h=2 l=20x37 d=64 grad=tiny dlse=head-number layout=g:strided",
        "backward b=1 h=2 l=20x37 d=64 lengths=30 alibi dlse=signed-zeros"})
    add_line(suite.cases, seed, line);
  add_negative_scales(suite.cases, seed, "backward");
  // More rows than any tile of them has, and a last key in a tile of its own.
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* lengths : {"l=300x40 d=64", "l=1030x17 d=32", "l=40x257 d=64"})
      add_line(suite.cases, seed, fmt::format("backward b=1 h=1 {} dtype={}", lengths, dtype));
  // The cases have several splits of keys and several tiles of rows, one element short of a tile or
  // one beyond it.
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
  for (const char* line :
       {"backward b=2 h=6/2 l=37x53 d=40/72 causal layout=distant",
        "backward b=1 h=2 l=130x97 d=64 dtype=bf16 layout=k:distant,v:distant"}) {
    Case c = parse_case(line);
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  add_distant(suite.cases, seed, "backward");
  add_diagonals_of_gradients(suite.cases, seed);
  return suite;
}

// Few rows against many keys: each split of 512 keys is computed separately, and the splits are
// merged.
Suite decode(const SuiteSeed& seed) {
  std::vector<Factor> factors = forward_factors();
  set_levels(factors, "lengths",
             {"l=1x1537", "l=1x511", "l=3x1024", "l=2x513", "l=5x2049", "l=8x700", "l=1x3000"});
  set_levels(factors, "padding",
             {"",
              {"lengths", [](Case& c) { c.lengths = ragged(c, {0.6, 1, 0.31}); }},
              {"starts", [](Case& c) { c.starts = ragged(c, {0.9, 0, 0.4}); }},
              {"lengths and starts", [](Case& c) {
                 c.lengths = ragged(c, {0.9, 0.34, 0}), c.starts = ragged(c, {0.7, 0.3, 0});
               }}});
  set_levels(factors, "causal", {"", "causal offset=end", "causal offset=600"});
  set_levels(factors, "window", {"", "window=530,0", "window=5,9", "window=-1,3"});
  if (!seed.has.has_all()) add_levels(factors, "dims", {"d=128", "d=96", "d=256"});
  Suite suite{"decode",
              "few rows against many keys: every pair of features and input families, every triple "
              "of structural features",
              {},
              cover(factors, 3, 20264, seed)};
  add_visible_specials(suite.cases, seed, "attention b=1 h=2 l=1x700 d=64");
  add_visible_specials(suite.cases, seed, "attention b=1 h=2/1 l=3x1100 d=128 causal offset=end");
  for (const char* line :
       {"attention b=1 h=8/1 l=1x1000 d=128 dtype=bf16", "attention b=1 h=71/1 l=1x700 d=64",
        "attention b=1 h=16/1 l=2x1030 d=128 dtype=f16 bias=blocks@ij",
        "attention b=17 h=2 l=1x600 d=64", "attention b=1 h=5/1 l=1x1100 d=256 scores=far-negative",
        "attention b=1 h=4/2 l=1x1100 d=64 scores=far-positive bool=tiles@ij",
        "attention b=1 h=1 l=1x65700 d=16 bool=random@j", "attention b=1 h=2 l=1x0 d=64 sink=0.5"})
    add_line(suite.cases, seed, line);
  return suite;
}

// A latent cache. The rotary part is shortened if the dimension of a head has no room for it.
Level latent(Index page, Index rank, Index rotary) {
  return {fmt::format("cache=latent:{}:{}+{}", page, rank, rotary), [=](Case& c) {
            c.cache.kind = CacheSpec::Kind::latent;
            c.cache.page = page;
            c.cache.rank = rank;
            c.cache.rotary = std::min(rotary, c.shape.dim - 1);
          }};
}
// A cache of fp4, in which no NaN and no infinity can be stored: hidden elements are huge instead.
Level stored_as_f4(const char* fields) {
  return {fields, [=](Case& c) {
            set_fields(c, fields);
            if (c.hidden != Hidden::generated) c.hidden = Hidden::huge;
          }};
}
Level chunks(const char* fields) {
  return {fields, [=](Case& c) {
            if (can_chunk(c)) set_fields(c, fields);
          }};
}
// The layouts of tensors whose tokens are appended to a cache.
std::vector<Level> layouts_of_tokens() {
  return {"", "layout=bshd", "layout=q:packed,k:packed,v:packed",
          "layout=q:padded,k:strided,v:reversed"};
}

// Adds caches as other libraries have them, and as this project's own kernels do not: with f32
// scales, with K and V in one buffer, and so large that offsets need more than 32 bits and page
// numbers more than 16.
void add_foreign_caches(std::vector<Factor>& factors) {
  add_levels(
      factors, "store",
      {"store=f8e4m3:f32", "store=f8e4m3/32:f32", "store=f8e4m3:f32-token", "store=f8e4m3:f32-page",
       "store=f8e4m3:f32-tensor", "store=f8e5m2:f32", stored_as_f4("store=f4e2m1/16:f32")});
  const auto pages = [](const char* fields, bool one_length) {
    return Level(fields, [=](Case& c) {
      const bool plain = c.k_layout == LayoutKind::bhsd && c.v_layout == LayoutKind::bhsd;
      if (c.cache.kind == CacheSpec::Kind::paged && plain &&
          (!one_length || c.shape.dim == c.shape.value_dim))
        set_fields(c, fields);
    });
  };
  factors.push_back({"pages",
                     {"", pages("pages=halves", true), pages("pages=rows", true),
                      pages("layout=k:distant,v:distant", false)},
                     false});
}

// Every sequence has a length of its own, of which the longest has all keys. Caches whose kind,
// starts or chunks rule that out keep one length.
Level own_lengths(const char* name, const std::function<Index(const Case&, Index b)>& of) {
  return {
      name, [=](Case& c) {
        const bool possible = c.cache.kind != CacheSpec::Kind::latent && c.starts.empty() &&
                              c.cache.chunks.empty() && c.shape.batch > 1;
        if (!possible) return;
        for (Index b = 0; b < c.shape.batch; ++b)
          c.lengths.push_back(b == 1 ? c.shape.keys : std::clamp<Index>(of(c, b), 0, c.shape.keys));
        c.offset = {OffsetSpec::Kind::lengths, 0};
      }};
}

// What most kernels that decode are called with, and those of this project in a few cases alone.
void add_lengths(std::vector<Factor>& factors) {
  add_levels(factors, "heads", {"b=3 h=1"});
  factors.push_back(
      {"lengths of sequences",
       {"",
        own_lengths("a part", [](const Case& c, Index b) { return (b + 2) * c.shape.keys / 5; }),
        own_lengths("none and one", [](const Case&, Index b) { return b / 2; }),
        own_lengths("around a page",
                    [](const Case& c, Index b) { return c.cache.page - 1 + b / 2; }),
        own_lengths("as many as rows", [](const Case& c, Index b) { return c.shape.rows + b; })},
       false});
}

// Keys and values that come through a cache.
Suite caches(const SuiteSeed& seed) {
  std::vector<Factor> factors = forward_factors();
  set_levels(factors, "lengths",
             {"l=37x53 offset=end", "l=1x131 offset=end", "l=64 offset=end", "l=5x257 offset=end",
              "l=130 offset=end", "l=9x600 offset=end", "l=1 offset=end"});
  set_levels(factors, "causal", {"causal", ""});
  // An eviction drops a prefix. The cache itself gives the lengths.
  set_levels(factors, "padding",
             {"", {"starts", [](Case& c) { c.starts = evicted(c, {0.7, 0, 0.3}); }}});
  set_levels(factors, "layout", layouts_of_tokens());
  if (!seed.has.has_all()) add_levels(factors, "dims", {"d=128", "d=96", "d=256"});
  factors.push_back({"cache",
                     {"cache=contiguous", "cache=paged:1", "cache=paged:16", "cache=paged:7",
                      latent(16, 32, 8), latent(5, 130, 16)},
                     true});
  factors.push_back(
      {"store",
       {"", "store=f32", "store=f16", "store=bf16", "store=f8e4m3", "store=f8e4m3/32",
        "store=f8e5m2/16", stored_as_f4("store=f4e2m1/16"), stored_as_f4("store=f4e2m1")},
       true});
  factors.push_back(
      {"chunks", {"", chunks("chunks=1"), chunks("chunks=5,1"), chunks("chunks=17,30")}, true});
  if (!seed.has.has_all()) {
    add_foreign_caches(factors);
    add_lengths(factors);
  }
  Suite suite{"caches",
              "prefill in chunks and decode through caches of every kind and dtype: every pair of "
              "features, every triple of structural ones",
              {},
              cover(factors, 3, 20265, seed)};
  for (const char* cache : {"contiguous", "paged:7", "paged:16 store=f8e4m3"})
    add_visible_specials(
        suite.cases, seed,
        fmt::format("attention b=1 h=2 l=6x40 d=64 causal offset=end cache={}", cache));
  for (const char* line :
       {"attention b=2 h=8/1 l=1x130 d=128 dtype=bf16 offset=end cache=paged:16",
        "attention b=17 h=2 l=1x33 d=64 offset=end cache=paged:16",
        "attention b=1 h=71/1 l=1x96 d=64 dtype=f16 offset=end cache=paged:32",
        "attention b=1 h=5/1 l=2x700 d=128 causal offset=end cache=paged:64 scores=far-negative",
        "attention b=1 h=16/1 l=1x65 d=256 offset=end cache=paged:8 scores=far-positive"})
    add_line(suite.cases, seed, line);
  // Every sequence has a length of its own: none, one, one around a page, and all.
  for (const char* rest :
       {"l=1x64 d=64 cache=paged:16 lengths=0,1,15,17,64",
        "l=3x65 d=32/48 causal cache=paged:16 lengths=16,65,0,2,3",
        "l=1x33 d=128 dtype=bf16 cache=paged:32 lengths=31,33,32,1,0",
        "l=2x24 d=40 window=5,-1 cache=contiguous lengths=0,24,1,2,23",
        "l=1x48 d=64 cache=paged:7 store=f8e4m3/32 lengths=7,48,6,8,0",
        "l=4x20 d=24/16 causal cache=paged:4 store=f4e2m1/16 lengths=20,3,5,4,0"})
    add_line(suite.cases, seed, std::string("attention b=5 h=4/2 offset=lengths ") + rest);
  // In cross attention no mask hides the slots behind the last token of an open page.
  for (const char* cache :
       {"contiguous", "paged:16", "paged:16 store=f8e4m3/16", "paged:7 store=f4e2m1",
        "latent:16:32+8", "latent:5:130+16 store=f8e5m2"}) {
    Case c =
        parse_case(fmt::format("attention b=2 h=6/2 l=5x50 d=40/24 offset=end cache={}", cache));
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  // The stored value must not round up to 2^128. The scores stay small.
  for (const char* store : {"f8e4m3", "f8e5m2/16", "f4e2m1/16"}) {
    Case c =
        parse_case(fmt::format("attention b=1 h=2/1 l=3x20 d=24/16 offset=end scores=subnormal "
                               "poke=k:0:0:3:5=-3.4028235e38 cache=paged:7 store={}",
                               store));
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  for (const char* line :
       {"attention b=2 h=4/2 l=150x900 d=64 causal offset=end cache=paged:16 rows=4",
        "attention b=3 h=8/2 l=5x1030 d=128 dtype=bf16 causal offset=end cache=contiguous rows=3",
        "attention b=5 h=4/2 l=1x700 d=64 cache=paged:16 offset=lengths "
        "lengths=700,513,17,384,0"})
    add_line(suite.cases, seed, line);
  return suite;
}

// Every path by which keys reach a row, and what can go wrong on it: tensors and caches of each
// kind and dtype, one call and several, one split of the keys and several, with every mask and
// feature, all in triples.
Suite paths(const SuiteSeed& seed) {
  std::vector<Factor> factors = forward_factors();
  leave_out(factors,
            {"lengths", "padding", "boolean", "bias", "hidden", "documents", "dropout", "scale"});
  for (Factor& f : factors)
    f.structural = f.name != "scores" && f.name != "values" && f.name != "threads";
  keep_levels(factors, "heads", {"b=1 h=1", "b=2 h=6/2", "b=2 h=3/1"});
  keep_levels(factors, "dims", {"d=64", "d=40/72", "d=128/96"});
  keep_levels(factors, "causal", {"", "causal offset=end"});
  keep_levels(factors, "softcap", {"", "softcap=50"});
  keep_levels(factors, "sink", {"", "sink=0.5"});
  // A bound is to judge every triple. Sums of numbers at the end of their dtype can be without a
  // bound, so this suite leaves them out; other suites have them.
  for (const char* name : {"scores", "values"})
    std::erase_if(factor_named(factors, name).levels,
                  [](const Level& l) { return l.name == "near-overflow"; });
  set_levels(factors, "window", {"", "window=16,0", "window=600,0", "window=5,9"});
  set_levels(factors, "layout", layouts_of_tokens());
  // A split has 512 keys. The last split has 128 keys (one or two tiles), one key less, or one key
  // more.
  auto splits = [](Index n) {
    return Level(fmt::format("{} splits", n), [=](Case& c) {
      c.shape.keys = 512 * (n - 1), c.offset.kind = OffsetSpec::Kind::end;
    });
  };
  auto tail = [](Index n) {
    return Level(fmt::format("{} keys in the last", n), [=](Case& c) { c.shape.keys += n; });
  };
  auto call = [](Index rows) {
    return Level(fmt::format("{} rows", rows), [=](Case& c) { c.shape.rows = rows; });
  };
  const Level many_calls{"37 rows in chunks",
                         [](Case& c) { c.shape.rows = 37, c.cache.chunks = {17, 1}; }};
  auto at_front = [&](Factor f) { factors.insert(factors.begin(), std::move(f)); };
  at_front({"tail", {tail(128), tail(127), tail(129)}, true});
  at_front({"splits", {splits(1), splits(2), splits(3)}, true});
  at_front({"calls", {call(37), call(1), call(5), many_calls}, true});
  factors.push_back(
      {"mask",
       {"",
        "bool=random",
        "bias=minus-infinity",
        {"lengths", [](Case& c) { c.lengths = ragged(c, {0.6, 1}), c.hidden = Hidden::nan; }},
        {"starts", [](Case& c) { c.starts = evicted(c, {0.7, 0.1}), c.hidden = Hidden::nan; }},
        {"documents",
         [](Case& c) {
           // Rows count from the first document on, and stand at the end of the keys.
           c.documents = c.shape.rows > 5 ? std::vector<Index>{3, c.shape.keys - 12}
                                          : std::vector<Index>{c.shape.keys - 9};
         }}},
       true});
  factors.push_back({"path",
                     {"", "cache=contiguous", "cache=paged:16", "cache=paged:5", latent(16, 32, 8)},
                     true});
  factors.push_back(
      {"store",
       {"", "store=bf16", "store=f8e4m3", "store=f8e5m2/16", stored_as_f4("store=f4e2m1/16")},
       true});
  std::vector<Exclusion> exclusions = {{"tensors in chunks: they are read by one call",
                                        {{"path", ""}, {"calls", "37 rows in chunks"}}}};
  const auto exclude_all_but_first = [&](std::string_view why, const std::string& factor,
                                         const std::pair<std::string, std::string>& other) {
    const std::vector<Level>& levels = factor_named(factors, factor).levels;
    for (std::size_t l = 1; l < levels.size(); ++l)
      exclusions.push_back({why, {{factor, levels[l].name}, other}});
  };
  exclude_all_but_first("tensors in a cache's dtype: there is no cache", "store", {"path", ""});
  for (const char* window : {"", "window=5,9"})
    exclusions.push_back(
        {"chunks without causality or window=...,0: a row of an early call cannot see keys of a "
         "later one",
         {{"calls", "37 rows in chunks"}, {"causal", ""}, {"window", window}}});
  const char* own_lengths = "lengths with a cache, its chunks or its dtypes: it has its own";
  exclusions.push_back({own_lengths, {{"calls", "37 rows in chunks"}, {"mask", "lengths"}}});
  for (const char* factor : {"path", "store"})
    exclude_all_but_first(own_lengths, factor, {"mask", "lengths"});
  for (const Exclusion& e : exclusions)  // a misspelt name must not exclude nothing
    for (const auto& [name, level] : e.levels) level_named(factor_named(factors, name), level);
  Combinations count;
  Suite suite{"paths",
              "every path of the keys with every mask, feature, layout and dtype: every triple",
              {},
              cover(factors, exclusions, 20267, seed, count)};
  for (const char* cache : {"", " cache=contiguous", " cache=paged:16"})
    add_visible_specials(
        suite.cases, seed,
        fmt::format("attention b=2 h=6/2 l=5x640 d=64 causal offset=end{}", cache));
  // More keys, rows and heads than the array has, of which some rows are judged.
  for (const char* line :
       {"attention b=1 h=4/2 l=150x1500 d=64 causal offset=end rows=4",
        "attention b=1 h=4/2 l=150x1500 d=64 causal offset=end cache=contiguous rows=4",
        "attention b=1 h=4/2 l=150x1500 d=64 causal offset=end cache=paged:16 rows=4",
        "attention b=9 h=4/2 l=5x640 d=64 offset=end rows=2",
        "attention b=9 h=4/2 l=5x640 d=64 offset=end cache=contiguous rows=2",
        "attention b=9 h=4/2 l=5x640 d=64 offset=end cache=paged:5 rows=2"})
    add_line(suite.cases, seed, line);
  suite.notes.push_back(
      fmt::format("{} of {} pairs and triples cannot be:", count.excluded, count.all));
  for (const Exclusion& e : exclusions)
    if (std::string note = fmt::format("  {}", e.why); suite.notes.back() != note)
      suite.notes.push_back(std::move(note));
  return suite;
}

Suite padding(const SuiteSeed& seed) {
  Suite suite{"padding",
              "left, right and mixed padding, with and without causality, as intervals, boolean "
              "and additive masks",
              {},
              {}};
  const auto add = [&](const std::string& line) { add_line(suite.cases, seed, line); };
  // There are two sequences of nine and two tokens, left-padded to eleven, so that positions 0 to 8
  // of the second are padding. A one-hot V shows which keys each row attended. Row 9 of the second
  // must see key 9 alone.
  for (const char* dtype : {"f32", "f16", "bf16"})
    for (const char* causal : {" causal", ""})
      for (const char* rest :
           {" starts=2,9", " starts=2,9 hidden=nan", " starts=2,9 values=one-hot",
            " starts=2,9 values=one-hot hidden=inf", " starts=2,9 scores=negative",
            " starts=2,9 bool=future@ij"})
        add(fmt::format("attention b=2 h=2 l=11 d=16 dtype={}{}{}", dtype, causal, rest));
  for (const char* causal : {"", " causal", " causal offset=end", " causal offset=lengths"})
    for (const char* where :
         {" lengths=90,150,1", " starts=70,0,149", " lengths=120,150,64 starts=30,149,0",
          " lengths=0,150,150", " lengths=64,128,127 starts=64,0,1"})
      for (const char* rest :
           {"", " hidden=nan", " hidden=huge scores=negative",
            " bool=empty-rows@bij scores=growing", " bias=minimum-rows finite-min-masks",
            " values=one-hot dtype=bf16 out=f32"}) {
        if (std::string_view(causal) == " causal offset=lengths" &&
            std::string_view(where).find("lengths") == std::string_view::npos)
          continue;
        add(fmt::format("attention b=3 h=4/2 l=77x150 d=40/24{}{}{}", causal, where, rest));
      }
  for (const char* fields : {"attention b=1 h=2 l=20x37 d=64 lengths=30",
                             "attention b=1 h=2 l=20x37 d=64 starts=2 causal offset=end"})
    add_visible_specials(suite.cases, seed, fields);
  // More keys, rows and heads, of which some rows are judged.
  for (const char* causal : {"", " causal", " causal offset=end"})
    for (const char* rest :
         {"b=3 h=4/2 l=200x700 d=64 lengths=700,385,1", "b=3 h=4/2 l=200x700 d=64 starts=650,0,384",
          "b=3 h=4/2 l=140x600 d=128 dtype=bf16 lengths=600,512,130 starts=64,511,0",
          "b=9 h=4/2 l=20x96 d=64 lengths=96,95,64,65,63,0,1,32,33",
          "b=9 h=4/2 l=20x96 d=64 starts=0,95,64,65,63,1,96,32,33 hidden=nan"})
      add(fmt::format("attention {}{} rows=4", rest, causal));
  return suite;
}

Suite models(const SuiteSeed& seed) {
  Suite suite{"models",
              "the attention of real models: prefill, prefill in chunks and decode through a cache",
              {},
              {}};
  struct Model {
    const char* name;
    const char* line;  // without b, l and dtype
    Index rows, keys;  // the extents before they are scaled down
    const char* dtype;
    const char* cache;  // empty: the model is no decoder
  };
  static constexpr Model table[] = {
      {"GPT-2", "h=12 d=64 causal", 1024, 1024, "f32", "cache=contiguous"},
      {"BERT base", "h=12 d=64 lengths=$k", 512, 512, "f32", ""},
      {"Llama 3 8B", "h=32/8 d=128 causal", 8192, 8192, "bf16", "cache=paged:16"},
      {"Mistral 7B", "h=32/8 d=128 causal window=4095,0", 8192, 8192, "bf16", "cache=paged:16"},
      {"Gemma 2 9B, local", "h=16/8 d=256 causal softcap=50 window=4095,0 scale=0.0625", 8192, 8192,
       "bf16", "cache=paged:16 store=f8e4m3"},
      {"Gemma 2 9B, global", "h=16/8 d=256 causal softcap=50 scale=0.0625", 8192, 8192, "bf16",
       "cache=paged:16 store=f8e4m3"},
      {"DeepSeek V3", "h=128 d=192/128 causal", 4096, 4096, "bf16", "cache=latent:64:512+64"},
      {"Whisper large, cross attention", "h=20 d=64", 448, 1500, "f16", ""},
      {"diffusion at 4,096 tokens", "h=8 d=40", 4096, 4096, "f16", ""},
  };
  std::uint64_t k = 0;
  for (const Model& m : table) {
    // The multiply-adds of a head grow with rows * keys. With this budget the whole suite takes
    // about two minutes.
    Index rows = m.rows, keys = m.keys, factor = 1;
    while (rows * keys > Index{1024} * 1024)
      rows = (rows + 1) / 2, keys = (keys + 1) / 2, factor *= 2;
    std::string line = m.line;
    Index heads = std::stoll(line.substr(line.find("h=") + 2)), judged_rows = 48;
    if (const auto at = line.find("$k"); at != std::string::npos)
      line.replace(at, 2, fmt::format("{}", keys * 3 / 4));
    if (const auto at = line.find("window="); at != std::string::npos)
      line.replace(at, line.find(',', at) - at, fmt::format("window={}", 4096 / factor - 1));
    Case c = parse_case(fmt::format("attention b=1 l={}x{} dtype={} rows={} threads=0 {}", rows,
                                    keys, m.dtype, judged_rows, line));
    c.seed = seed + k++;
    suite.cases.push_back(c);
    suite.notes.push_back(fmt::format(
        "{}: {} heads, {} x {}{}; {} rows of each head judged", m.name, heads, rows, keys,
        factor > 1 ? fmt::format(" (lengths and window scaled down by {})", factor) : "",
        judged_rows));
    if (*m.cache == '\0') continue;
    // The oracle keeps the projected keys and values of every head in f64, so a latent cache is
    // scaled down further.
    const bool latent = std::string_view(m.cache).find("latent") != std::string_view::npos;
    const Index chunked = latent ? 192 : 1024, tokens = latent ? 256 : m.keys;
    for (const auto& [shape, features] :
         {std::pair{fmt::format("l={} chunks={},{}", chunked, chunked * 3 / 10, chunked / 5), line},
          {fmt::format("l=1x{} offset=end", tokens), std::string(m.line)}}) {
      Case cached = parse_case(fmt::format("attention b=1 {} dtype={} rows={} threads=0 {} {}",
                                           shape, m.dtype, judged_rows, features, m.cache));
      cached.seed = seed + k++;
      suite.cases.push_back(cached);
    }
    suite.notes.push_back(
        fmt::format("{}: prefill of {} tokens in chunks and decode at {} tokens through {}", m.name,
                    chunked, tokens, m.cache));
  }
  return suite;
}

// Removes what another feature of the same product rules out.
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
    if (c.values == Values::near_overflow || c.values == Values::subnormal)
      c.values = Values::normal;
  }
  for (Poke& poke : c.pokes)
    poke.position = {0, 0, std::min(poke.position[2], p.m - 1),
                     std::min(poke.position[3], p.k - 1)};
}

Suite products(const SuiteSeed& seed) {
  auto rows = [](Index m) {
    return Level(fmt::format("m={}", m),
                 [=](Case& c) { c.operation = Operation::product, c.product.m = m; });
  };
  auto group = [](Index g) {
    return Level(fmt::format("group of {}", g), [=](Case& c) { c.product.group = g; });
  };
  const std::vector<Factor> factors = {
      // The values are every register block and its neighbours, the number of rows from which
      // panels are decoded first, and two tiles.
      {"m",
       {rows(1), rows(2), rows(3), rows(4), rows(5), rows(7), rows(8), rows(9), rows(31), rows(32),
        rows(33), rows(65)},
       true},
      // A panel has 64 columns.
      {"n", {"n=64", "n=1", "n=63", "n=65", "n=130", "n=24"}, true},
      // The edges are blocks of 8, groups of 16, 32 and 128, and the depth of 256, which is the
      // most that is decoded of a panel at a time.
      {"k", {"k=128", "k=32", "k=33", "k=7", "k=300", "k=515", "k=96", "k=47"}, true},
      {"dtype", {"dtype=f32", "dtype=f16", "dtype=bf16 out=f32", "dtype=bf16"}, true},
      {"format", every<LowBit>([](Case& c) -> LowBit& { return c.product.format; }), true},
      {"group", {"", group(8), group(32), group(48), group(0), group(64), group(128)}, true},
      {"a", {"", "", "", "a=mxfp4", "a=nvfp4", "a=f8e4m3", "a=f8e5m2"}, false},
      {"weights", every<Weights>([](Case& c) -> Weights& { return c.product.weights; }), false},
      {"scales", every<ScaleFamily>([](Case& c) -> ScaleFamily& { return c.product.scales; }),
       false},
      {"zeros", {"", "zeros=symmetric", "zeros=edges"}, false},
      {"values", every<Values>([](Case& c) -> Values& { return c.values; }), false},
      {"layout",
       {"", "layout=padded", "layout=a:strided,c:reversed", "layout=a:reversed,c:strided"},
       false},
      {"poke", {"", "", "", "poke=a:0:0:2:33=nan", "poke=a:0:0:2:33=inf"}, false},
      {"threads", {"", "threads=2"}, false},
      // This factor comes last because it looks at the levels of the others.
      {"fit",
       {{"fit",
         [](Case& c) {
           if (c.product.group && *c.product.group == 0 &&
               traits(c.product.format).scale != Dtype::e8m0)
             c.product.group.reset();
           fit_product(c);
         }}},
       false},
  };
  Suite suite{"products",
              "low-bit products in every format: every pair of features and families, every triple "
              "of structural features",
              {},
              cover(factors, 3, 20266, seed)};
  // These cases show the lanes of every kind of group, for every format and group size above.
  for (const LowBit format_of : values_of<LowBit>) {
    const LowBitTraits& t = traits(format_of);
    for (Index g : t.group_free ? (t.scale == Dtype::e8m0 ? std::vector<Index>{0, 8, 32}
                                                          : std::vector<Index>{8, 32, 48, 64, 128})
                                : std::vector<Index>{t.group}) {
      const Index tile = g > 0 ? g : 128, short_by = format_of == LowBit::fp4_sparse ? 4 : 1;
      for (Index k : {tile, 4 * tile - short_by}) {
        Case c;
        c.operation = Operation::product;
        c.product = {4,
                     40,
                     k,
                     format_of,
                     g,
                     {},
                     Weights::codes,
                     g > 0 ? ScaleFamily::distinct : ScaleFamily::unit,
                     ZeroFamily::random};
        c.seed = seed + suite.cases.size();
        check_case(c);
        suite.cases.push_back(std::move(c));
      }
    }
  }
  // More rows, more columns and a greater depth than any tile has.
  for (const LowBit format_of : values_of<LowBit>)
    for (const char* dtype : {"f32", "f16", "bf16"})
      for (const char* extents : {"m=270 n=9 k=256", "m=2 n=530 k=256", "m=2 n=9 k=4096"})
        add_line(suite.cases, seed,
                 fmt::format("product {} dtype={} w={}", extents, dtype, traits(format_of).name));
  return suite;
}

struct Entry {
  std::string_view name;
  Suite (*make)(const SuiteSeed&);
};
// A suite for simulators that do 1e5 multiply-adds a second. Lengths and dimensions go up to 32. A
// few cases cross tiles of 64 keys and slices of 32 columns, where work-items share what they
// overwrite.
Suite tiny(const SuiteSeed& seed) {
  Suite suite{
      "tiny", "every feature of a device's kernels in a few thousand multiply-adds", {}, {}};
  for (const char* line :
       {"attention b=1 h=2/1 l=32x32 d=32 causal",
        "attention b=2 h=2 l=5x29 d=20/24 lengths=29,11 hidden=nan",
        "attention b=1 h=2 l=17x32 d=8/32 dtype=f16 window=4,2 sink=0.5",
        "attention b=1 h=2/1 l=9x31 d=31/7 dtype=bf16 out=f32 bool=random bias=normal softcap=5",
        "attention b=1 h=4/2 l=16x16 d=16 alibi docs=5,6 causal",
        "attention b=2 h=1 l=7x13 d=5/3 bias=minimum-rows finite-min-masks dtype=f16",
        "attention b=1 h=1 l=1x1 d=1", "attention b=1 h=1 l=17x70 d=12/8 causal offset=end",
        "attention b=1 h=1 l=3x130 d=40/36 starts=20 scores=growing",
        "attention b=1 h=1 l=4x8 d=4/70 dtype=bf16 layout=strided", "product m=5 n=20 k=32 w=mxfp4",
        "product m=17 n=18 k=40 w=nvfp4 dtype=f16 weights=codes",
        "product m=1 n=5 k=70 w=fp4:24 dtype=bf16 out=f32 layout=padded",
        "attention b=1 h=2 l=6x9 d=8 causal offset=end poke=v:0:0:3:1=nan;k:0:1:4:2=nan"}) {
    Case c = parse_case(line);
    c.seed = seed + suite.cases.size();
    suite.cases.push_back(std::move(c));
  }
  return suite;
}

// Right calls of which calls are made that no kernel can answer. There is one of each kind of list
// and mask, with two of everything where the candidate takes that, so that one less is wrong.
Suite refusals(const SuiteSeed& seed) {
  Suite suite{"refusals", "calls that no kernel can answer, made of these", {}, {}};
  for (const char* mask : {"", "causal", "causal offset=end", "lengths=9,5", "starts=2,0",
                           "bool=random", "bias=normal", "alibi", "sink=0.5", "docs=2,3"}) {
    const auto line = [&](const char* extents) {
      return fmt::format("attention {} d=64 {}", extents, mask);
    };
    add_first(suite.cases, seed,
              {line("b=2 h=4/2 l=6x9"), line("b=2 h=2 l=6x9"), line("b=2 h=4/2 l=9"),
               line("b=2 h=2 l=9"), line("b=2 h=4/2 l=1x9"), line("b=2 h=2 l=1x9")});
  }
  add_first(suite.cases, seed,
            {"backward b=2 h=4/2 l=6x9 d=64", "backward b=2 h=2 l=6x9 d=64",
             "backward b=2 h=4/2 l=9 d=64 causal", "backward b=2 h=2 l=9 d=64 causal"});
  add_first(suite.cases, seed,
            {"attention b=2 h=4/2 l=2x9 d=64 causal offset=end cache=paged:4",
             "attention b=2 h=4/2 l=1x9 d=64 offset=end cache=paged:4",
             "attention b=2 h=2 l=1x9 d=64 offset=end cache=paged:4"});
  for (const LowBit format_of : values_of<LowBit>)
    add_line(suite.cases, seed, fmt::format("product m=3 n=64 k=256 w={}", traits(format_of).name));
  // Writers that round have other pages, with scales.
  for (const char* store : {"bf16", "f8e4m3", "f8e4m3/32", "f4e2m1/16", "f8e4m3:f32",
                            "f8e4m3:f32-token", "f8e4m3:f32-page", "f8e4m3:f32-tensor"})
    add_line(
        suite.cases, seed,
        fmt::format("attention b=2 h=4/2 l=1x9 d=64 offset=end cache=paged:4 store={}", store));
  for (const char* order : {"pages=halves", "pages=rows"})
    add_line(suite.cases, seed,
             fmt::format("attention b=2 h=4/2 l=1x9 d=64 offset=end cache=paged:4 {}", order));
  for (const char* formats :
       {"w=mxfp4 a=mxfp4", "w=nvfp4 a=nvfp4", "w=mxfp4 a=f8e4m3", "w=f8e4m3 a=f8e4m3"})
    add_line(suite.cases, seed, fmt::format("product m=3 n=64 k=256 {}", formats));
  return suite;
}

constexpr Entry entries[] = {{"smoke", smoke},     {"standard", standard}, {"models", models},
                             {"padding", padding}, {"backward", backward}, {"decode", decode},
                             {"caches", caches},   {"products", products}, {"plain", plain},
                             {"tiny", tiny},       {"paths", paths},       {"refusals", refusals}};

}  // namespace

Suite make_suite(std::string_view name, std::uint64_t seed, const Features& has) {
  for (const Entry& e : entries)
    if (e.name == name) {
      Suite suite = e.make({seed, has});
      std::erase_if(suite.cases, [&](const Case& c) { return !has.missing(c).empty(); });
      return suite;
    }
  throw std::invalid_argument(
      fmt::format("unknown suite '{}'; there are {}", name, fmt::join(suite_names(), ", ")));
}

std::vector<std::string_view> suite_names() {
  std::vector<std::string_view> names;
  for (const Entry& e : entries) names.push_back(e.name);
  return names;
}

}  // namespace assay
