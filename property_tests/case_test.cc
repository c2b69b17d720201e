#include "problem/case.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <vector>

namespace assay {
namespace {

using ::testing::HasSubstr;
constexpr Index most = Index{1} << 40;  // the documented limit of every extent

// The error that parse_case throws for a line; column 999 if it throws nothing.
CaseError error_of(std::string_view line) {
  try {
    parse_case(line);
  } catch (const CaseError& e) {
    return e;
  }
  return CaseError(999, "accepted: " + std::string(line));
}

// --- Arbitrary cases: every field, every value that a line can carry. ---

template <class T>
T any(T low, T past) {
  return *rc::gen::inRange<T>(low, past);
}
bool coin() { return *rc::gen::arbitrary<bool>(); }
bool rarely() { return any(0, 4) == 0; }

// A non-negative number below the limit whose bits are given: zero, a subnormal number, or any
// number up to the largest.
float any_float(std::uint32_t bits_end) {
  return std::bit_cast<float>(any<std::uint32_t>(0, bits_end));
}
constexpr std::uint32_t infinity_bits = 0x7F800000, one_bits = 0x3F800000;

Dtype any_dtype() {
  return std::array{Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f64}[any<std::size_t>(0, 4)];
}

template <NamedEnum E>
E any_of_all() {
  return values_of<E>[any<std::size_t>(0, values_of<E>.size())];
}

MaskSpec any_mask(std::span<const MaskPattern> patterns) {
  MaskSpec m;
  m.pattern = patterns[any<std::size_t>(0, patterns.size())];
  for (bool& axis : m.varies) axis = coin();
  return m;
}

std::vector<Index> any_list(Index batch, Index keys) {
  std::vector<Index> list(batch > 0 && coin() ? usize(batch) : 1);
  for (Index& n : list) n = any<Index>(0, keys + 1);
  return list;
}

Case any_case() {
  Case c;
  AttentionShape& s = c.shape;
  s.batch = any<Index>(0, 4);
  s.kv_heads = any<Index>(1, 5);
  s.query_heads = s.kv_heads * any<Index>(1, 5);
  s.rows = any<Index>(0, 600);
  // At most one axis is long, so that every size fits into 64 bits.
  s.keys = rarely() ? any<Index>(0, Index{1} << 34) : any<Index>(0, 600);
  s.dim = any<Index>(1, 1025);
  s.value_dim = coin() ? s.dim : any<Index>(1, 1025);
  c.dtype = any_dtype();
  if (coin()) c.out = any_dtype();
  if (coin()) c.scale = any_float(infinity_bits);
  if (coin()) c.softcap = any_float(infinity_bits);
  c.causal = coin();
  if (coin()) c.offset.value = any<Index>(-most, most + 1);
  if (rarely()) c.offset = {OffsetSpec::Kind::end, 0};
  if (coin()) {
    c.window_left = any<Index>(-1, coin() ? 9 : most + 1);
    c.window_right = any<Index>(-1, coin() ? 9 : most + 1);
  }
  if (coin()) c.keep = any_mask(patterns_of<MaskKind::boolean>);
  if (coin()) c.bias = any_mask(patterns_of<MaskKind::additive>);
  c.finite_min_masks = c.bias.pattern != MaskPattern::none && coin();
  if (coin()) c.lengths = any_list(s.batch, s.keys);
  if (coin()) c.starts = any_list(s.batch, s.keys);
  if (!c.lengths.empty() && rarely()) c.offset = {OffsetSpec::Kind::lengths, 0};
  if (coin())
    for (Index n = any<Index>(1, 5); n > 0; --n)
      c.documents.push_back(any<Index>(1, rarely() ? most + 1 : 40));
  c.alibi = coin();
  if (coin()) c.sink = coin() ? any_float(infinity_bits) : -any_float(infinity_bits);
  if (coin()) c.dropout = any_float(one_bits);
  if (coin()) c.dropout_seed = *rc::gen::arbitrary<std::uint64_t>();
  c.scores = any_of_all<Scores>();
  c.values = any_of_all<Values>();
  c.hidden = any_of_all<Hidden>();
  for (int n = any(0, 4); n > 0 && s.batch > 0; --n) {
    Poke p;
    p.tensor = "qkvm"[any<std::size_t>(0, c.bias.pattern == MaskPattern::none ? 3 : 4)];
    const bool of_query = p.tensor == 'q' || p.tensor == 'm';
    const Extents shape{s.batch, of_query ? s.query_heads : s.kv_heads, of_query ? s.rows : s.keys,
                        p.tensor == 'm'   ? s.keys
                        : p.tensor == 'v' ? s.value_dim
                                          : s.dim};
    if (element_count(shape) == 0) continue;
    for (std::size_t axis = 0; axis < 4; ++axis) p.position[axis] = any<Index>(0, shape[axis]);
    p.value = std::bit_cast<double>(*rc::gen::arbitrary<std::uint64_t>());
    if (rarely())
      p.value = std::array{0.0, -0.0, std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}[any<std::size_t>(0, 4)];
    if (std::isnan(p.value) || rarely())
      p.value = std::numeric_limits<double>::quiet_NaN();  // a line can express only one NaN
    c.pokes.push_back(p);
  }
  if (coin()) c.seed = *rc::gen::arbitrary<std::uint64_t>();
  for (LayoutKind* kind : {&c.q_layout, &c.k_layout, &c.v_layout, &c.o_layout})
    *kind = any_of_all<LayoutKind>();
  if (rarely()) c.q_layout = c.k_layout = c.v_layout = c.o_layout;
  if (c.o_layout == LayoutKind::shared_head || c.o_layout == LayoutKind::shared_batch)
    c.o_layout = LayoutKind::bshd;
  c.threads = any(0, 1025);
  if (coin())
    c.target = std::array{"AVX2", "AVX3_ZEN4", "SSE4", "scalar-1"}[any<std::size_t>(0, 4)];
  if (coin()) c.sample_rows = any<Index>(0, most + 1);
  return c;
}

RC_GTEST_PROP(CaseProperty, ParseOfPrintIsTheCase, ()) {
  const Case c = any_case();
  const std::string line = print_case(c);
  RC_LOG() << line << "\n";
  const Case parsed = parse_case(line);
  RC_ASSERT(parsed == c);
  RC_ASSERT(print_case(parsed) == line);
}

RC_GTEST_PROP(CaseProperty, OrderAndSpacesDoNotMatter, ()) {
  const Case c = any_case();
  std::istringstream words(print_case(c));
  std::string word, line = "  attention";
  words >> word;
  std::vector<std::string> fields;
  while (words >> word) fields.push_back(word);
  for (std::size_t i = fields.size(); i > 1; --i)
    std::swap(fields[i - 1], fields[any<std::size_t>(0, i)]);
  for (const std::string& f : fields) line += std::string(any<std::size_t>(1, 4), ' ') + f;
  line += "  ";
  RC_LOG() << line << "\n";
  RC_ASSERT(parse_case(line) == c);
}

// If something is wrong with a line, a CaseError tells it and points into the line. A line that is
// still right means the same as its canonical form.
RC_GTEST_PROP(CaseProperty, DamagedLinesAreRefusedOrMeanSomething, ()) {
  std::string line = print_case(any_case());
  for (int n = any(1, 4); n > 0; --n) {
    const auto at = any<std::size_t>(0, line.size());
    const char c = " =,:;/x@-.09abz_\t\n"[any<std::size_t>(0, 18)];
    if (coin()) line[at] = c;
    else if (coin()) line.insert(at, 1, c);
    else line.erase(at, any<std::size_t>(1, 4));
    if (line.empty()) break;
  }
  RC_LOG() << line << "\n";
  Case parsed;
  try {
    parsed = parse_case(line);
  } catch (const CaseError& e) {
    RC_ASSERT(e.column <= line.size() + 1);
    RC_ASSERT(std::string(e.what()).size() > 10u);
    return;
  }
  RC_ASSERT(parse_case(print_case(parsed)) == parsed);
}

TEST(Case, Defaults) {
  EXPECT_EQ(parse_case("attention"), Case{});
  EXPECT_EQ(print_case(Case{}), "attention b=1 h=1 l=64 d=64 dtype=f32");
}

TEST(Case, GoodLines) {
  struct Row {
    const char *line, *canonical;
  };
  const std::string base = "attention b=1 h=1 l=64 d=64 dtype=f32";
  for (const Row& r : {
           Row{"attention b=2 h=8/2 l=37x512 d=192/128 dtype=bf16",
               "attention b=2 h=8/2 l=37x512 d=192/128 dtype=bf16"},
           Row{"  attention   dtype=f16  d=64/64 l=9x9 h=4/4 b=0  ",
               "attention b=0 h=4 l=9 d=64 dtype=f16"},
           Row{"attention l=0", "attention b=1 h=1 l=0 d=64 dtype=f32"},
           Row{"attention d=1024/1", "attention b=1 h=1 l=64 d=1024/1 dtype=f32"},
           Row{"attention dtype=f64 out=f32", "attention b=1 h=1 l=64 d=64 dtype=f64 out=f32"},
       }) {
    EXPECT_EQ(print_case(parse_case(r.line)), r.canonical);
    EXPECT_EQ(parse_case(r.line), parse_case(r.canonical));
  }
  // Each row has fields that are appended to the defaults, and the canonical fields that they
  // become.
  for (const Row& r : {
           Row{"", ""},
           Row{" seed=1 threads=1 window=-1,-1 offset=0 softcap=0 rows=0 scores=normal "
               "values=normal hidden=generated layout=bhsd dropout=0:0",
               ""},
           Row{" out=f32", " out=f32"},
           Row{" scale=0.10", " scale=0.1"},
           Row{" scale=0", " scale=0"},
           Row{" scale=1e-45", " scale=1e-45"},
           Row{" scale=0.125000000001", " scale=0.125"},
           Row{" softcap=30.0", " softcap=30"},
           Row{" causal", " causal"},
           Row{" offset=-7 causal", " causal offset=-7"},
           Row{" offset=end", " offset=end"},
           Row{" lengths=5 offset=lengths", " offset=lengths lengths=5"},
           Row{" offset=1099511627776", " offset=1099511627776"},
           Row{" window=3,-1", " window=3,-1"},
           Row{" window=0,0", " window=0,0"},
           Row{" bool=random@bj", " bool=random@bj"},
           Row{" bool=tiles@bhij", " bool=tiles"},
           Row{" bool=all@", " bool=all@"},
           Row{" bias=minus-infinity@i finite-min-masks",
               " bias=minus-infinity@i finite-min-masks"},
           Row{" lengths=0", " lengths=0"},
           Row{" starts=64 lengths=64", " lengths=64 starts=64"},
           Row{" docs=5,7,9", " docs=5,7,9"},
           Row{" alibi", " alibi"},
           Row{" sink=-0.50", " sink=-0.5"},
           Row{" sink=0", " sink=0"},
           Row{" dropout=0.1:7", " dropout=0.1:7"},
           Row{" dropout=0:7", " dropout=0:7"},
           Row{" dropout=0.5:18446744073709551615", " dropout=0.5:18446744073709551615"},
           Row{" scores=tile-peaks values=one-hot", " scores=tile-peaks values=one-hot"},
           Row{" hidden=inf", " hidden=inf"},
           Row{" poke=v:0:0:63:63=nan", " poke=v:0:0:63:63=nan"},
           Row{" poke=q:0:0:0:0=-0;k:0:0:1:2=-inf", " poke=q:0:0:0:0=-0;k:0:0:1:2=-inf"},
           Row{" poke=q:0:0:0:0=-nan", " poke=q:0:0:0:0=nan"},
           Row{" poke=m:0:0:63:63=0.1 bias=normal", " bias=normal poke=m:0:0:63:63=0.1"},
           Row{" seed=18446744073709551615", " seed=18446744073709551615"},
           Row{" layout=bshd", " layout=bshd"},
           Row{" layout=q:bshd,k:bshd,v:bshd,o:bshd", " layout=bshd"},
           Row{" layout=o:padded,q:bshd", " layout=q:bshd,o:padded"},
           Row{" layout=k:shared-head,v:shared-batch", " layout=k:shared-head,v:shared-batch"},
           Row{" threads=0", " threads=0"},
           Row{" threads=1024", " threads=1024"},
           Row{" target=AVX3_ZEN4", " target=AVX3_ZEN4"},
           Row{" rows=5", " rows=5"},
       })
    EXPECT_EQ(print_case(parse_case("attention" + std::string(r.line))), base + r.canonical);
}

TEST(Case, FieldsLandWhereTheyBelong) {
  const Case c = parse_case(
      "attention b=3 h=8/2 l=37x512 d=192/128 dtype=bf16 out=f32 scale=0.5 softcap=30 causal "
      "offset=-4 window=5,6 bool=random@bj "
      "bias=large@hi finite-min-masks lengths=1,2,3 starts=4,5,6 docs=7,8 alibi sink=1.5 "
      "dropout=0.25:9 scores=ties "
      "values=ramp hidden=huge poke=k:2:1:511:191=-1.5 seed=77 "
      "layout=q:bshd,k:packed,v:padded,o:strided threads=3 target=AVX2 rows=4");
  EXPECT_EQ(c.shape, (AttentionShape{3, 8, 2, 37, 512, 192, 128}));
  EXPECT_EQ(c.dtype, Dtype::bf16);
  EXPECT_EQ(c.out, Dtype::f32);
  EXPECT_EQ(c.scale, 0.5f);
  EXPECT_EQ(c.softcap, 30.0f);
  EXPECT_TRUE(c.causal && c.finite_min_masks && c.alibi);
  EXPECT_EQ(c.offset, (OffsetSpec{OffsetSpec::Kind::fixed, -4}));
  EXPECT_EQ(c.window_left, 5);
  EXPECT_EQ(c.window_right, 6);
  EXPECT_EQ(c.keep, (MaskSpec{MaskPattern::random, {true, false, false, true}}));
  EXPECT_EQ(c.bias, (MaskSpec{MaskPattern::large, {false, true, true, false}}));
  EXPECT_EQ(c.lengths, (std::vector<Index>{1, 2, 3}));
  EXPECT_EQ(c.starts, (std::vector<Index>{4, 5, 6}));
  EXPECT_EQ(c.documents, (std::vector<Index>{7, 8}));
  EXPECT_EQ(c.sink, 1.5f);
  EXPECT_EQ(c.dropout, 0.25f);
  EXPECT_EQ(c.dropout_seed, 9u);
  EXPECT_EQ(c.scores, Scores::ties);
  EXPECT_EQ(c.values, Values::ramp);
  EXPECT_EQ(c.hidden, Hidden::huge);
  EXPECT_EQ(c.pokes, (std::vector<Poke>{{'k', {2, 1, 511, 191}, -1.5}}));
  EXPECT_EQ(c.seed, 77u);
  EXPECT_EQ(
      (std::array{c.q_layout, c.k_layout, c.v_layout, c.o_layout}),
      (std::array{LayoutKind::bshd, LayoutKind::packed, LayoutKind::padded, LayoutKind::strided}));
  EXPECT_EQ(c.threads, 3);
  EXPECT_EQ(c.target, "AVX2");
  EXPECT_EQ(c.sample_rows, 4);
}

// Lines that do not parse: the error tells the column of the fault, the text that was found there,
// and what belongs there.
TEST(Case, MalformedLines) {
  struct Row {
    const char* line;
    std::size_t column;
    const char *found, *expected;
  };
  //  "attention " is 10 columns wide, so the first field begins in column 11.
  for (const Row& r : {
           Row{"", 1, "''", "attention"},
           Row{"   ", 4, "''", "attention"},
           Row{"gemm b=1", 1, "gemm", "attention"},
           Row{" attentio", 2, "attentio", "attention"},
           Row{"attention\tb=1", 1, "attention\tb=1", "attention"},
           Row{"attention,b=1", 1, "attention,b=1", "attention"},
           Row{"attention frobnicate=1", 11, "'frobnicate'", "finite-min-masks"},
           Row{"attention B=1", 11, "'B'", "dtype"},
           Row{"attention =5", 11, "''", "dtype"},
           Row{"attention b=1 nonsense", 15, "'nonsense'", "dtype"},
           Row{"attention b =1", 12, "b", "="},
           Row{"attention b=1 b=1", 15, "'b'", "twice"},
           Row{"attention causal causal", 18, "'causal'", "twice"},
           Row{"attention causal=1", 17, "'causal'", "no value"},
           Row{"attention causal=", 17, "'causal'", "no value"},
           Row{"attention alibi=true seed=1", 16, "'alibi'", "no value"},
           Row{"attention seed", 15, "'seed'", "="},
           Row{"attention seed b=1", 15, "'seed'", "="},
           Row{"attention seed=", 16, "end of the field", "integer"},
           Row{"attention seed= b=1", 16, "end of the field", "integer"},
           Row{"attention b=x", 13, "'x'", "integer"},
           Row{"attention b=1x", 14, "'x'", "space"},
           Row{"attention b=+1", 13, "'+1'", "integer"},
           Row{"attention b=1.5", 14, "'.5'", "space"},
           Row{"attention b=0x10", 14, "'x10'", "space"},
           Row{"attention b=1,2", 14, "',2'", "space"},
           Row{"attention b=--1", 13, "'--1'", "integer"},
           Row{"attention b=1\n", 14, "'\n'", "space"},
           Row{"attention b=9223372036854775808", 13, "9223372036854775808", "integer"},
           Row{"attention d=18446744073709551680", 13, "18446744073709551680", "integer"},
           Row{"attention seed=18446744073709551616", 16, "18446744073709551616", "integer"},
           Row{"attention seed=-1", 16, "'-1'", "at least 0"},
           Row{"attention h=8/", 15, "end of the field", "integer"},
           Row{"attention h=8x2", 14, "'x2'", "space"},
           Row{"attention h=8/2/1", 16, "'/1'", "space"},
           Row{"attention l=5x", 15, "end of the field", "integer"},
           Row{"attention l=5/6", 14, "'/6'", "space"},
           Row{"attention d=64x64", 15, "'x64'", "space"},
           Row{"attention dtype=f33", 17, "'f33'", "bf16"},
           Row{"attention dtype=", 17, "end of the field", "bf16"},
           Row{"attention out=float", 15, "'float'", "bf16"},
           Row{"attention scale=abc", 17, "'abc'", "number"},
           Row{"attention scale=1e-99", 17, "'1e-99'", "number"},
           Row{"attention softcap=1e39", 19, "'1e39'", "number"},
           Row{"attention scale=0.5f", 20, "'f'", "space"},
           Row{"attention offset=begin", 18, "'begin'", "integer"},
           Row{"attention offset=end1", 18, "'end1'", "integer"},
           Row{"attention window=3", 19, "end of the field", "','"},
           Row{"attention window=3;4", 19, "';4'", "','"},
           Row{"attention window=,4", 18, "',4'", "integer"},
           Row{"attention window=1,2,3", 21, "',3'", "space"},
           Row{"attention bool=none", 16, "'none'", "empty-rows"},
           Row{"attention bool=normal", 16, "'normal'", "empty-rows"},
           Row{"attention bias=random", 16, "'random'", "minimum-rows"},
           Row{"attention bool=random@x", 23, "'x'", "space"},
           Row{"attention bool=random@jb", 24, "'b'", "space"},
           Row{"attention bool=random@bb", 24, "'b'", "space"},
           Row{"attention lengths=5,", 21, "end of the field", "integer"},
           Row{"attention lengths=", 19, "end of the field", "integer"},
           Row{"attention docs=5;6", 17, "';6'", "space"},
           Row{"attention sink=", 16, "end of the field", "number"},
           Row{"attention dropout=0.1", 22, "end of the field", "':'"},
           Row{"attention dropout=0.1:", 23, "end of the field", "integer"},
           Row{"attention dropout=0.1:-1", 23, "'-1'", "at least 0"},
           Row{"attention scores=normall", 18, "'normall'", "heavy-tail"},
           Row{"attention scores=", 18, "end of the field", "heavy-tail"},
           Row{"attention values=flat", 18, "'flat'", "head-number"},
           Row{"attention hidden=zero", 18, "'zero'", "huge"},
           Row{"attention poke=w:0:0:0:0=1", 16, "'w:0:0:0:0=1'", "q, k, v, m"},
           Row{"attention poke=v:0:0:0=1", 23, "'=1'", "':'"},
           Row{"attention poke=v:0:0:0:0", 25, "end of the field", "'='"},
           Row{"attention poke=v:0:0:0:0=", 26, "end of the field", "number"},
           Row{"attention poke=v:0:0:0:0=1;", 28, "end of the field", "q, k, v, m"},
           Row{"attention layout=rows", 18, "'rows'", "shared-batch"},
           Row{"attention layout=x:bshd", 18, "'x:bshd'", "q, k, v, o"},
           Row{"attention layout=q:bshd;k:bshd", 24, "';k:bshd'", "space"},
           Row{"attention layout=q:", 20, "end of the field", "bhsd"},
           Row{"attention layout=q:bshd,", 25, "end of the field", "q, k, v, o"},
           Row{"attention threads=two", 19, "'two'", "integer"},
           Row{"attention target=AVX2!", 22, "'!'", "space"},
       }) {
    const CaseError e = error_of(r.line);
    EXPECT_EQ(e.column, r.column) << "'" << r.line << "': " << e.what();
    EXPECT_THAT(e.what(), HasSubstr(r.found)) << r.line;
    EXPECT_THAT(e.what(), HasSubstr(r.expected)) << r.line;
  }
}

// An error in a value names its field, because the reader of a log sees the message without the
// line.
TEST(Case, ValueErrorsNameTheirField) {
  for (const auto& [field, value] :
       std::vector<std::pair<std::string, std::string>>{{"seed", "x"},
                                                        {"dtype", "f33"},
                                                        {"scale", "abc"},
                                                        {"offset", "begin"},
                                                        {"window", "3"},
                                                        {"bool", "none"},
                                                        {"bias", "random"},
                                                        {"lengths", "5,"},
                                                        {"starts", "z"},
                                                        {"docs", "5;6"},
                                                        {"sink", "-"},
                                                        {"dropout", "0.1"},
                                                        {"hidden", "zero"},
                                                        {"poke", "w:0"},
                                                        {"layout", "rows"},
                                                        {"threads", "two"},
                                                        {"rows", "9223372036854775808"}})
    EXPECT_THAT(error_of("attention " + field + "=" + value).what(), HasSubstr(field)) << value;
}

// Lines that parse but ask for something impossible. The message names the field, the value and the
// limit.
TEST(Case, ImpossibleCases) {
  struct Row {
    const char* line;
    std::vector<std::string> parts;  // the field, the value and the limit
  };
  for (const Row& r : std::vector<Row>{
           {"attention b=-1", {"b=", "-1", "[0,"}},
           {"attention b=1099511627777", {"b=", "1099511627777", "1099511627776"}},
           {"attention h=0", {"h=", "0", "[1,"}},
           {"attention h=8/0", {"h", "kv", "0", "[1,"}},
           {"attention h=-2/-1", {"h=", "-2", "[1,"}},
           {"attention h=8/3", {"h=", "8/3", "multiple"}},
           {"attention h=2/4", {"h=", "2/4", "multiple"}},
           {"attention l=-5", {"l=", "-5", "[0,"}},
           {"attention l=5x-6", {"l", "keys", "-6", "[0,"}},
           {"attention d=0", {"d=", "0", "[1, 1024]"}},
           {"attention d=-64", {"d=", "-64", "[1, 1024]"}},
           {"attention d=1025", {"d=", "1025", "1024"}},
           {"attention d=65600", {"d=", "65600", "1024"}},
           {"attention d=4294967360", {"d=", "4294967360", "1024"}},
           {"attention d=64/0", {"d", "value", "0", "[1, 1024]"}},
           {"attention d=64/65600", {"d", "value", "65600", "1024"}},
           {"attention dtype=f8e4m3", {"dtype", "f8e4m3", "bf16"}},
           {"attention out=e8m0", {"out", "e8m0", "bf16"}},
           {"attention scale=nan", {"scale", "nan", "finite"}},
           {"attention scale=inf", {"scale", "inf", "finite"}},
           {"attention scale=-inf", {"scale", "-inf", "finite"}},
           {"attention softcap=-2", {"softcap", "-2", "at least 0"}},
           {"attention softcap=nan", {"softcap", "nan", "finite"}},
           {"attention softcap=inf", {"softcap", "inf", "finite"}},
           {"attention sink=nan", {"sink", "nan", "finite"}},
           {"attention sink=-inf", {"sink", "-inf", "finite"}},
           {"attention dropout=1:0", {"dropout", "1", "[0, 1)"}},
           {"attention dropout=-0.5:0", {"dropout", "-0.5", "[0, 1)"}},
           {"attention dropout=nan:0", {"dropout", "nan", "[0, 1)"}},
           // The number is below 1, but binary32 has no number between 1 - 2^-24 and 1.
           {"attention dropout=0.99999999:0", {"dropout", "1", "[0, 1)"}},
           {"attention window=-2,0", {"window", "-2", "-1"}},
           {"attention window=0,-2", {"window", "-2", "-1"}},
           {"attention window=1099511627777,0", {"window", "1099511627777", "1099511627776"}},
           {"attention offset=1099511627777", {"offset", "1099511627777", "1099511627776"}},
           {"attention offset=-1099511627777", {"offset", "-1099511627777", "-1099511627776"}},
           {"attention offset=lengths", {"offset=lengths", "lengths="}},
           {"attention l=64 lengths=65", {"lengths", "65", "64"}},
           {"attention lengths=-1", {"lengths", "-1", "[0,"}},
           {"attention b=2 lengths=1,2,3", {"lengths", "3", "b=2"}},
           {"attention b=3 starts=1,2", {"starts", "2", "b=3"}},
           {"attention l=9x8 starts=9", {"starts", "9", "8]"}},
           {"attention docs=5,0", {"docs", "0", "[1,"}},
           {"attention docs=-3", {"docs", "-3", "[1,"}},
           {"attention layout=o:shared-head", {"layout", "o:shared-head", "overlap"}},
           {"attention layout=shared-batch", {"layout", "shared-batch", "overlap"}},
           {"attention finite-min-masks", {"finite", "masks", "bias"}},
           {"attention threads=-1", {"threads", "-1", "[0, 1024]"}},
           {"attention threads=-7", {"threads", "-7", "[0, 1024]"}},
           {"attention threads=1025", {"threads", "1025", "1024"}},
           {"attention threads=4294967297", {"threads", "4294967297", "1024"}},
           {"attention rows=-1", {"rows", "-1", "[0,"}},
           {"attention poke=v:1:0:0:0=1", {"poke=v", "1", "[0, 1)"}},
           {"attention poke=v:0:0:64:0=1", {"poke=v", "64", "[0, 64)"}},
           {"attention poke=q:0:0:0:-1=1", {"poke=q", "-1", "[0, 64)"}},
           {"attention h=4/2 poke=k:0:2:0:0=1", {"poke=k", "2", "[0, 2)"}},
           {"attention d=64/8 poke=v:0:0:0:8=1", {"poke=v", "8", "[0, 8)"}},
           {"attention l=5x7 poke=q:0:0:5:0=1", {"poke=q", "5", "[0, 5)"}},
           {"attention l=5x7 bias=normal poke=m:0:0:0:7=1", {"poke=m", "7", "[0, 7)"}},
           {"attention poke=m:0:0:0:0=1", {"poke=m", "bias"}},
           {"attention l=0 poke=q:0:0:0:0=1", {"poke=q", "0", "[0, 0)"}},
           {"attention b=1099511627776 h=1099511627776",
            {"b=1099511627776 h=1099511627776", "overflows", "64 bits"}},
           {"attention h=1099511627776 l=1099511627776x1",
            {"l=1099511627776x1", "overflows", "64 bits"}},
           {"attention b=1099511627776 l=1x1099511627776",
            {"l=1x1099511627776", "overflows", "64 bits"}},
           {"attention b=1099511627776 l=1x10000 d=1/1024", {"d=1/1024", "overflows", "64 bits"}},
           {"attention l=1099511627776 d=1 bool=random", {"bool", "overflows", "64 bits"}},
           {"attention l=1099511627776 d=1 bias=normal", {"bias", "overflows", "64 bits"}},
       }) {
    const CaseError e = error_of(r.line);
    EXPECT_NE(e.column, 999u) << e.what();
    for (const std::string& part : r.parts) EXPECT_THAT(e.what(), HasSubstr(part)) << r.line;
  }
}

TEST(Case, EveryFieldThatIsNoFlagNeedsAValue) {
  for (const char* field :
       {"b",      "h",      "l",    "d",       "dtype",  "out",     "scale",  "softcap", "offset",
        "window", "bool",   "bias", "lengths", "starts", "docs",    "sink",   "dropout", "scores",
        "values", "hidden", "poke", "seed",    "layout", "threads", "target", "rows"}) {
    const std::string line = "attention " + std::string(field);
    EXPECT_EQ(error_of(line).column, line.size() + 1) << line;
    EXPECT_EQ(error_of(line + "=").column, line.size() + 2) << line << "=";
  }
}

// check_case also refuses what no line can express, because a Case that was built by hand must be
// printable once it passes.
TEST(Case, CheckRefusesWhatNoLineCanSay) {
  auto refuses = [](auto change) {
    Case c;
    change(c);
    try {
      check_case(c);
    } catch (const CaseError&) {
      return true;
    }
    return false;
  };
  EXPECT_FALSE(refuses([](Case&) {}));
  EXPECT_TRUE(refuses([](Case& c) { c.target = "AVX2 seed=5"; })) << "a target with a space";
  EXPECT_TRUE(refuses([](Case& c) { c.keep.pattern = MaskPattern::normal; }))
      << "an additive pattern as a boolean mask";
  EXPECT_TRUE(refuses([](Case& c) { c.bias.pattern = MaskPattern::random; }))
      << "a boolean pattern as a bias";
  EXPECT_TRUE(refuses([](Case& c) { c.pokes = {Poke{'x', {}, 1}}; })) << "a poke into no tensor";
}

TEST(Case, BytesOfAnEmptyBatchAreZero) {
  EXPECT_EQ(case_bytes(parse_case("attention b=0 h=1048576 l=1048576x5 d=1")), 0);
}

TEST(Case, Bytes) {
  // Q has 2*8*5*16 elements, K and V have 2*2*7*(16 + 4), and O has 2*8*5*4. LSE is binary32. The
  // lists are per position and per head.
  const Index lists = 8 * 2 * (5 + 7) + 8 * 8;
  EXPECT_EQ(case_bytes(parse_case("attention b=2 h=8/2 l=5x7 d=16/4 dtype=f16")),
            2 * (1280 + 560 + 320) + 4 * 80 + lists);
  EXPECT_EQ(case_bytes(parse_case(
                "attention b=2 h=8/2 l=5x7 d=16/4 dtype=f16 out=f32 bool=random bias=normal@ij")),
            2 * (1280 + 560) + 4 * 320 + 4 * 80 + 2 * 8 * 5 * 7 + 2 * 5 * 7 + lists);
  // A packed K has room for the heads of Q, K and V.
  EXPECT_EQ(case_bytes(parse_case("attention b=1 h=8/2 l=5x7 d=4 layout=k:packed")) -
                case_bytes(parse_case("attention b=1 h=8/2 l=5x7 d=4")),
            4 * 7 * 4 * (12 - 2));
}

TEST(Case, BackwardAndCaches) {
  const Case backward = parse_case("backward b=1 h=2 l=4 d=8 grad=ones poke=g:0:1:3:7=nan");
  EXPECT_EQ(backward.operation, Operation::backward);
  EXPECT_EQ(backward.gradient, Values::ones);
  EXPECT_EQ(backward.pokes.at(0).tensor, 'g');
  const Case latent = parse_case(
      "attention b=1 h=2 l=3x9 d=24/8 causal offset=end cache=latent:5:32+8 store=f8e4m3/16 "
      "chunks=2,1");
  EXPECT_EQ(latent.cache.kind, CacheSpec::Kind::latent);
  EXPECT_EQ(latent.cache.page, 5);
  EXPECT_EQ(latent.cache.rank, 32);
  EXPECT_EQ(latent.cache.rotary, 8);
  EXPECT_EQ(latent.cache_dtype(), Dtype::f8e4m3);
  EXPECT_EQ(latent.cache.group, 16);
  EXPECT_EQ(latent.cache.chunks, (std::vector<Index>{2, 1}));
  for (const char* line :
       {"backward b=1 h=2 l=4 d=8 dtype=f32 grad=ones poke=g:0:1:3:7=nan",
        "backward b=1 h=2 l=4 d=8 dtype=f32 grad=ones dlse=normal",
        "attention b=1 h=1 l=4 d=8 dtype=f16 cache=contiguous",
        "attention b=1 h=1 l=4 d=8 dtype=f16 causal cache=paged:3 store=f4e2m1/16 chunks=1",
        "attention b=1 h=1 l=4 d=8 dtype=f16 causal cache=paged:3 store=f8e4m3/16:f32 chunks=1",
        "attention b=1 h=1 l=4 d=8 dtype=bf16 cache=paged:3 store=f8e5m2:f32-page pages=halves",
        "attention b=1 h=2 l=3x9 d=24/8 dtype=bf16 causal offset=end cache=latent:5:32+8 "
        "store=f8e4m3 chunks=2,1"}) {
    EXPECT_EQ(print_case(parse_case(line)), line);
    EXPECT_EQ(parse_case(print_case(parse_case(line))), parse_case(line));
  }
}

// The memory that a cache allocates counts: whole pages, and the projections of a latent cache.
TEST(Case, BytesOfCaches) {
  EXPECT_GT(case_bytes(parse_case("attention b=1 h=4 l=16 d=16 cache=paged:1073741824")),
            Index{1} << 38);
  EXPECT_GT(case_bytes(parse_case("attention b=1 h=1000000 l=0 d=1024 cache=latent:16:1000+8")),
            Index{1} << 42);
  EXPECT_LT(case_bytes(parse_case("attention b=1 h=4 l=16 d=16 cache=contiguous")), Index{1} << 18);
}

TEST(Case, ImpossibleBackwardsAndCaches) {
  for (auto [line, words] :
       {std::pair{"attention b=1 h=1 l=4 d=8 grad=ones", "grad=ones: only backward has a dO"},
        {"attention b=1 h=1 l=4 d=8 poke=g:0:0:0:0=1", "only backward has a dO"},
        {"attention b=1 h=1 l=4 d=8 dlse=ones", "dlse=ones: only backward has a dLSE"},
        {"backward b=1 h=1 l=4 d=8 cache=contiguous", "no backward pass through a cache"},
        {"backward b=1 h=1 l=4 d=8/6 poke=g:0:0:0:6=1", "index 6 of axis 3 is outside [0, 6)"},
        {"attention b=1 h=1 l=4 d=8 store=f16", "store, pages and chunks need cache"},
        {"attention b=1 h=1 l=4 d=8 chunks=1", "store, pages and chunks need cache"},
        {"attention b=1 h=1 l=4 d=8 pages=rows", "store, pages and chunks need cache"},
        {"attention b=1 h=1 l=4 d=8 cache=contiguous pages=rows", "pages=rows needs cache=paged"},
        {"attention b=1 h=1 l=4 d=8/4 cache=paged:2 pages=halves", "d=8/4 cannot be"},
        {"attention b=1 h=1 l=4 d=8 cache=paged:2 pages=rows layout=k:bshd",
         "pages=rows with layout=bshd"},
        {"attention b=1 h=1 l=4 d=8 cache=paged:2 store=f16:f32", "only f8 and f4 have scales"},
        {"attention b=1 h=1 l=4 d=8 cache=paged:2 store=f8e4m3/4:f32-token",
         "store=f8e4m3:f32-token with groups of 4"},
        {"attention b=1 h=1 l=4 d=8 dtype=f64 cache=paged:2 store=f8e4m3:f32", "with dtype=f64"},
        {"attention b=1 h=1 l=4 d=8 cache=latent:2:8+2 store=f8e4m3:f32",
         "the scales of a latent cache are e8m0"},
        {"attention b=1 h=1 l=5x4 d=8 offset=end cache=contiguous", "at least as many keys"},
        {"attention b=1 h=1 l=3x4 d=8 cache=contiguous", "offset=end"},
        {"attention b=1 h=1 l=4 d=8 lengths=3 cache=contiguous", "offset=lengths"},
        {"attention b=1 h=1 l=4 d=8 lengths=3 offset=lengths cache=contiguous",
         "the longest sequence has all 4 keys"},
        {"attention b=1 h=1 l=2x4 d=8 lengths=4 offset=lengths starts=1 cache=contiguous",
         "lengths and starts"},
        {"attention b=1 h=1 l=2x4 d=8 lengths=4 offset=lengths chunks=1 causal cache=contiguous",
         "lengths and chunks"},
        {"attention b=1 h=1 l=2x4 d=8 lengths=4 offset=lengths cache=latent:16:8+2",
         "cache=latent with lengths"},
        {"attention b=1 h=1 l=3x4 d=8 offset=end starts=2 cache=contiguous",
         "starts (evicted before the first row)=2 is outside [0, 1]"},
        {"attention b=1 h=1 l=4 d=8 cache=paged:0", "cache page=0 is outside"},
        {"attention b=0 h=1 l=4 d=8 cache=contiguous", "b (sequences of a cache)=0 is outside"},
        {"attention b=1 h=17592186044416 l=0 d=1 cache=latent:1:64+0", "is outside"},
        {"attention b=1 h=1099511627776 l=0 d=100 cache=latent:1:64+0", "a size overflows 64 bits"},
        {"attention b=1 h=1 l=4 d=8 cache=contiguous store=f16/4", "only f8 and f4 have scales"},
        {"attention b=1 h=1 l=4 d=8 cache=contiguous store=f64", "caches hold f32"},
        {"attention b=1 h=1 l=4 d=8 cache=contiguous chunks=2", "causal or window=...,0 is needed"},
        {"attention b=1 h=1 l=4 d=8 causal dropout=0.5:1 cache=contiguous chunks=2",
         "chunks drop other weights"},
        {"attention b=1 h=1 l=4 d=8 causal cache=contiguous chunks=0", "chunks=0 is outside"},
        {"attention b=1 h=1 l=4 d=8 cache=latent:4:32+8", "cache rotary=8 is outside [0, 7]"},
        {"attention b=1 h=1 l=4 d=8 cache=latent:4:2000+4", "cache rank=2000 is outside"},
        {"attention b=1 h=1 l=4 d=8 cache=latent:4:32+4 poke=k:0:0:0:0=1",
         "has no K and V of its own"},
        {"attention b=1 h=1 l=4 d=8 cache=contiguous store=f4e2m1 poke=k:0:0:0:0=nan",
         "f4e2m1 has no NaN"},
        {"attention b=1 h=2 l=4 d=8 cache=contiguous layout=k:shared-head",
         "tokens are appended one by one"},
        {"forward b=1 h=1 l=4 d=8",
         "expected an operation (attention, backward, product), found 'forward'"}}) {
    try {
      parse_case(line);
      ADD_FAILURE() << line;
    } catch (const CaseError& e) {
      EXPECT_THAT(e.what(), HasSubstr(words)) << line;
    }
  }
}

TEST(Case, HelpExplainsEveryFieldAndName) {
  const std::string help = case_help();
  std::istringstream line(
      print_case(parse_case("attention b=2 h=4/2 l=5x6 d=7/8 dtype=f16 out=f32 scale=2 softcap=3 "
                            "causal offset=1 window=1,2 bool=all bias=constant "
                            "finite-min-masks lengths=1 starts=1 docs=1 alibi sink=1 dropout=0.5:1 "
                            "scores=flat values=ones hidden=nan "
                            "poke=q:0:0:0:0=1 seed=2 layout=bshd threads=2 target=AVX2 rows=1")));
  std::string word;
  line >> word;
  int fields = 0;
  while (line >> word) {
    const std::string name = word.substr(0, word.find('='));
    EXPECT_THAT(help, HasSubstr("\n  " + name + " ")) << "no help for " << name;
    ++fields;
  }
  EXPECT_EQ(fields, 29);
  const auto expect_all = [&](const auto& values) {
    for (const auto value : values) EXPECT_THAT(help, HasSubstr(std::string(name_of(value))));
  };
  expect_all(values_of<Scores>);
  expect_all(values_of<Values>);
  expect_all(values_of<LayoutKind>);
  // The first value is the default, which means no mask.
  expect_all(std::span(values_of<MaskPattern>).subspan(1));
  for (Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16})
    EXPECT_THAT(help, HasSubstr(std::string(format(dtype).name)));
}

}  // namespace
}  // namespace assay
