#include "harness/cases/regimes.h"

#include <fmt/format.h>

#include <utility>

namespace assay {
namespace {

// The case with other heads: as many of keys as of queries, one of keys, one of each.
std::vector<Case> with_other_heads(const Case& c) {
  std::vector<Case> all = {c};
  if (c.operation == Operation::product) return all;
  const Index heads = c.shape.query_heads;
  for (const auto& [queries, keys] : {std::pair{heads, heads}, {heads, Index{1}}, {1, 1}}) {
    Case other = c;
    other.shape.query_heads = queries;
    other.shape.kv_heads = keys;
    all.push_back(std::move(other));
  }
  return all;
}

// The case, and the same with other dtypes and dimensions, and then with other heads. Keys from a
// cache also come without causality, and then to one row, as most kernels that decode have it.
std::vector<Case> variants_of(const Case& c) {
  std::vector<Case> plain = {c};
  if (c.cache) {
    Case other = c;
    other.causal = false;
    plain.push_back(other);
    other.shape.rows = 1;
    plain.push_back(other);
  }
  std::vector<Case> variants = {c};
  for (const Case& first : plain)
    for (const Case& headed : with_other_heads(first))
      for (const Dtype dtype : {Dtype::f32, Dtype::f16, Dtype::bf16})
        for (const Index dim : {Index{0}, Index{64}, Index{128}, Index{32}}) {
          Case other = headed;
          other.dtype = dtype;
          other.out.reset();
          if (dim > 0) other.shape.dim = other.shape.value_dim = dim;
          variants.push_back(std::move(other));
        }
  return variants;
}

bool can_be(const Case& c) {
  try {
    check_case(c);
    return true;
  } catch (const CaseError&) {
    return false;
  }
}

}  // namespace

void add_first(std::vector<Case>& cases, const SuiteSeed& seed,
               std::initializer_list<std::string> lines) {
  for (const std::string& line : lines)
    for (Case& c : variants_of(parse_case(line)))
      if (can_be(c) && seed.has.missing(c).empty()) {
        c.seed = seed + cases.size();
        return cases.push_back(std::move(c));
      }
}

void add_line(std::vector<Case>& cases, const SuiteSeed& seed, const std::string& line) {
  add_first(cases, seed, {line});
}

std::vector<Factor> regimes(Operation operation) {
  const Level of_operation{std::string(name_of(operation)),
                           [=](Case& c) { c.operation = operation; }};
  std::vector<Factor> factors = {
      {"operation", {of_operation}, false},
      {"heads", {"b=1 h=2", "b=1 h=5/1", "b=1 h=8/1", "b=1 h=16/1", "b=1 h=71/1", "b=4 h=4"}, true},
      {"lengths", {"l=48x96", "l=33x160", "l=1x144", "l=20x84", "l=96", "l=16x64"}, true},
      {"dims", {"d=64", "d=128", "d=96", "d=256"}, true},
      {"dtype", {"dtype=f32", "dtype=f16", "dtype=bf16", "dtype=bf16 out=f32"}, true},
      {"diagonal",
       {"", "causal", "causal offset=14", "causal offset=end", "offset=14 window=9,3",
        "causal offset=-5 window=16,-1", "offset=37 alibi"},
       true},
      {"mask",
       {"", "bias=blocks@ij", "bias=blocks", "bool=random@ij", "bool=tiles@ij",
        "bias=blocks@ij bool=random@ij"},
       true},
      {"scores",
       {"", "scores=far-negative", "scores=far-positive", "scores=negative", "scores=large-scores"},
       false},
      {"values", {"", "values=offset", "values=one-hot", "values=biased"}, false},
      {"sink", {"", "", "sink=0.5"}, false},
      {"layout", {"", "layout=bshd", "layout=q:packed,k:packed,v:packed"}, false},
  };
  if (operation == Operation::backward)
    factors.push_back({"gradient",
                       {"",
                        {"g:padded", [](Case& c) { c.d_o_layout = LayoutKind::padded; }},
                        {"g:strided", [](Case& c) { c.d_o_layout = LayoutKind::strided; }},
                        {"g:bhsd", [](Case& c) { c.d_o_layout = LayoutKind::bhsd; }},
                        {"g:shared-head", [](Case& c) { c.d_o_layout = LayoutKind::shared_head; }}},
                       false});
  return factors;
}

void add_visible_specials(std::vector<Case>& cases, const SuiteSeed& seed,
                          const std::string& fields) {
  for (const char* pokes : {"v:0:0:3:1=nan;v:0:0:0:2=inf", "k:0:0:4:1=nan;v:0:0:1:0=-inf",
                            "k:0:0:3:0=inf;q:0:1:0:2=nan", "q:0:0:0:1=-inf;k:0:0:2:2=-inf"})
    add_line(cases, seed, fmt::format("{} poke={}", fields, pokes));
}

void add_diagonals(std::vector<Case>& cases, const SuiteSeed& seed) {
  static constexpr const char* dtypes[] = {"f32", "f16", "bf16"};
  for (Index r = 0; r < 64; ++r)
    for (const Index dim : {64, 128}) {
      // At D = 64 a tile has 128 keys, and every other residue has to do.
      const Index offset = dim == 64 ? 2 * r + 1 : r;
      const std::string rest = fmt::format("d={} dtype={}", dim, dtypes[(r + dim / 64) % 3]);
      add_first(
          cases, seed,
          {fmt::format("attention b=1 h=1 l=9x{} {} causal offset={}", offset + 20, rest, offset),
           fmt::format("attention b=1 h=1 l=9x{} {} causal offset=end", offset + 9, rest)});
    }
  for (Index r = 0; r < 16; ++r)
    add_line(cases, seed,
             fmt::format("attention b=1 h=2/1 l=9x84 d=64 window={},{} offset={}", r % 5, r % 3,
                         4 * r + r / 4));
}

void add_diagonals_of_gradients(std::vector<Case>& cases, const SuiteSeed& seed) {
  static constexpr const char* dtypes[] = {"f32", "f16", "bf16"};
  for (Index offset = 0; offset < 128; ++offset) {
    const std::string rest =
        fmt::format("d={} dtype={}", offset % 2 == 0 ? 64 : 128, dtypes[offset % 3]);
    add_first(
        cases, seed,
        {fmt::format("backward b=1 h=1 l=9x{} {} causal offset={}", offset + 20, rest, offset),
         fmt::format("backward b=1 h=1 l=9x{} {} causal offset=end", offset + 9, rest)});
  }
}

void add_negative_scales(std::vector<Case>& cases, const SuiteSeed& seed,
                         const std::string& operation) {
  for (const char* fields : {"b=1 h=2 l=40x200 d=64 scale=-0.125 scores=huge",
                             "b=2 h=4/2 l=70 d=128 dtype=bf16 causal scale=-0.08 scores=huge",
                             "b=1 h=3 l=9x130 d=32 dtype=f16 scale=-0.3 values=one-hot"})
    add_line(cases, seed, fmt::format("{} {}", operation, fields));
}

void add_extents(std::vector<Case>& cases, const SuiteSeed& seed) {
  for (const char* line :
       {"attention b=1 h=2 l=300x1000 d=64 dtype=bf16 causal offset=end rows=8",
        "attention b=1 h=2 l=1030 d=64 causal rows=6",
        "attention b=1 h=3/1 l=520 d=128 dtype=f16 rows=6",
        "attention b=5 h=4/2 l=40x700 d=128 rows=4", "attention b=17 h=2 l=7x33 d=64 causal",
        "attention b=2 h=17 l=5x70 d=64 dtype=bf16", "attention b=1 h=2 l=5x0 d=64 sink=0.5",
        "attention b=1 h=2 l=5x0 d=64", "attention b=1 h=1 l=16x64 d=64 bool=random@ij",
        "attention b=1 h=1 l=2x65700 d=16 bool=random@j",
        "attention b=1 h=1 l=2x65700 d=16 bias=minus-infinity@j",
        "attention b=1 h=1 l=2x65700 d=16 lengths=65601 causal offset=65590"})
    add_line(cases, seed, line);
}

}  // namespace assay
