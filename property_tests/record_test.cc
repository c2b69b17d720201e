// Recorded tensors: what is written is read back and judged, a contradiction is refused with its
// name, and no file crashes the reader.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "harness/files.h"
#include "harness/records/record.h"
#include "harness/judging/validate_output.h"
#include "kernels/attention/attention.h"
#include "kernels/product/product.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes bytes_of(const std::string& header, std::size_t data) {
  Bytes file(8 + header.size() + data);
  for (std::size_t k = 0; k < 8; ++k) file[k] = static_cast<std::byte>(header.size() >> (8 * k));
  std::memcpy(file.data() + 8, header.data(), header.size());
  return file;
}

std::string refusal(const Bytes& file) {
  try {
    parse_safetensors(file);
  } catch (const FileError& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Safetensors, ReadsWhatTheFormatAllows) {
  // The file has padding behind the header, a tensor without elements, a scalar, and tensors in any
  // order.
  const Safetensors s = parse_safetensors(bytes_of(
      R"({"b":{"dtype":"F32","shape":[2,1],"data_offsets":[3,11]},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
      R"("none":{"dtype":"F16","shape":[0,7],"data_offsets":[11,11]},"one":{"dtype":"I64","shape":[],"data_offsets":[11,19]},)"
      R"("__metadata__":{"k":"v"}}   )",
      19));
  EXPECT_EQ(s.tensors.size(), 4u);
  EXPECT_EQ(s.metadata.at("k"), "v");
  EXPECT_EQ(s.tensors.at("b").bytes.size(), 8u);
  EXPECT_EQ(s.tensors.at("one").shape.size(), 0u);
}

// Time that grows with the square of the number of names would be hours of the processor's time.
TEST(Safetensors, ManyNamesTakeTimeInProportion) {
  constexpr int many = 200000;
  std::string header = R"({"__metadata__":{"assay":"1")", tensors;
  for (int k = 0; k < many; ++k) {
    header += fmt::format(R"(,"record.{0}":"product m=1 n=1 k=32 w=int8","case.{0}":"")", k);
    tensors +=
        fmt::format(R"(,"{}.c":{{"dtype":"U8","shape":[1],"data_offsets":[{},{}]}})", k, k, k + 1);
  }
  const Bytes file = bytes_of(header + "}" + tensors + "}", many);
  const std::clock_t start = std::clock();
  const RecordFile records("many", file);
  EXPECT_EQ(records.names().size(), std::size_t{many});
  EXPECT_THROW(records.read("199999"), FileError);
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 60);
}

TEST(Safetensors, RefusesEverythingElseByName) {
  const auto tensor = [](const std::string& facts) { return R"({"t":{)" + facts + "}}"; };
  const struct {
    std::string header;
    std::size_t data;
    const char* words;
  } table[] = {
      {"", 0, "does not begin with {"},
      {"[]", 0, "does not begin with {"},
      {"{", 0, "the header is no JSON"},
      {"{\"a\":\xff}", 0, "the header is no JSON"},
      {R"({"t":1})", 0, "tensor t: dtype is missing"},
      {R"({"t":{},"t":{}})", 0, "the header names t twice"},
      {R"({"__metadata__":{"record":"attention causal","record":"attention"}})", 0,
       "the header names record twice"},
      {R"({"t":{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,2]}})", 2,
       "the header names shape twice"},
      {std::string("{}\0{", 4), 0, "the header holds a NUL"},
      {R"({"t":{"a":{"b":[[1]]}}})", 0, "nests deeper"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), 7,
       "bytes [0, 8) are not within the 7 that the file has; is it truncated?"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), 9,
       "the last 1 bytes belong to no tensor"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[1,9])"), 9,
       "1 bytes before tensor t belong to no tensor"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), 8,
       "bytes [8, 0) are not within"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4,
       "F32 [2] takes 8 bytes, its data_offsets hold 4"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[-1,7])"), 8,
       "its begin is no whole number"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8.5])"), 8,
       "its end is no whole number"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), 8, "data_offsets is no pair"},
      {tensor(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])"), 8, "dtype F31 is not known"},
      {tensor(R"("dtype":7,"shape":[2],"data_offsets":[0,8])"), 8, "dtype is no text"},
      {tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), 8,
       "an extent is no whole number"},
      {tensor(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), 8, "shape is no list"},
      {tensor(R"("dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0])"),
       0, "do not multiply within 64 bits"},
      {tensor(R"("dtype":"F32","shape":[4294967296,0,4294967296,4294967296],"data_offsets":[0,0])"),
       0, "do not multiply within 64 bits"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "tensors a and b overlap"},
      {R"({"__metadata__":{"k":1}})", 0, "__metadata__: k is no text"},
      {R"({"__metadata__":[]})", 0, "__metadata__ is no object"},
  };
  for (const auto& [header, data, words] : table)
    EXPECT_THAT(refusal(bytes_of(header, data)), HasSubstr(words)) << header;
  EXPECT_THAT(refusal(Bytes(7)), HasSubstr("7 bytes are too few"));
  EXPECT_THAT(refusal(Bytes(64, std::byte{0xFF})), HasSubstr("above the limit"));
  Bytes longer = bytes_of("{}", 0);
  longer[0] = std::byte{3};
  EXPECT_THAT(refusal(longer), HasSubstr("the header has 3 bytes, the file 10: is it truncated?"));
}

class Records : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("assay-record-test-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string file(const char* name = "t.safetensors") const { return folder_ / name; }
  fs::path folder_;
};

// Every kind of problem that a record holds is written to a file and read back. The outputs are
// inside their bounds, and the inputs are those of the case.
TEST_F(Records, WhatIsWrittenIsReadBackAndPasses) {
  std::vector<Case> cases;
  for (const char* line : {
           "attention b=2 h=4/2 l=9x13 d=8/5 dtype=bf16 causal offset=end",
           "attention b=2 h=4/2 l=9x13 d=8/5 dtype=f16 out=f32 softcap=3 window=4,1 sink=0.5 alibi "
           "layout=q:bshd,k:packed,v:padded,o:strided",
           "attention b=2 h=2 l=9x13 d=8 bool=random@ij bias=normal@hj lengths=13,7 starts=0,2 "
           "hidden=nan",
           "attention b=1 h=2 l=7 d=8 bias=minimum finite-min-masks docs=3,2 scale=0.3",
           "attention b=2 h=1 l=5x6 d=4 dropout=0.25:77 offset=lengths lengths=6,5",
           "attention b=1 h=1 l=3x0 d=4",
           "backward b=2 h=4/2 l=9x13 d=8/5 dtype=bf16 causal offset=end bias=normal@bj sink=1 "
           "softcap=20",
           "backward b=1 h=2 l=11 d=16 dropout=0.1:3 grad=cancel layout=k:shared-head",
           "backward b=2 h=2/1 l=5x7 d=8 dlse=normal layout=padded",
           "product m=5 n=70 k=100 dtype=bf16 w=nvfp4",
           "product m=2 n=16 k=128 w=fp4-sparse",
           "product m=3 n=9 k=40 dtype=f16 w=int4:8 weights=codes zeros=edges",
           "product m=3 n=9 k=40 w=f8e4m3:0",
           "product m=3 n=9 k=64 w=mxfp4 a=f8e5m2",
           "product m=3 n=9 k=64 w=mxfp4 a=nvfp4",
           "product m=3 n=5 k=40 w=f8e4m3 weights=special",
           "product m=3 n=5 k=64 w=mxfp4 weights=codes scales=nan poke=a:0:0:1:2=nan",
           // A kernel may flush one weight to 0.
           "attention b=2 h=3/1 l=1x131 d=64 dtype=bf16 scale=0.25 softcap=50 causal offset=end "
           "window=-1,3 bool=random@bj bias=normal lengths=78,131 docs=7,19,11 alibi sink=9 "
           "scores=negative seed=32",
       })
    cases.push_back(parse_case(line));
  const std::unique_ptr<Candidate> host = make_candidate("host");
  write_records(file(), cases, host.get());
  const RecordFile read(file());
  ASSERT_EQ(read.names().size(), cases.size());
  for (std::size_t k = 0; k < cases.size(); ++k) {
    const Record r = read.read(read.names()[k]);
    EXPECT_EQ(r.kernel, "host");
    EXPECT_EQ(r.case_line, print_case(cases[k]));
    const CaseResult result = verify(read, r);
    // With NaN in W a bound decides almost nothing.
    EXPECT_TRUE(result.outcome == Outcome::pass || (r.case_line.find("nan") != std::string::npos &&
                                                    result.outcome == Outcome::inconclusive))
        << r.line << ": " << result.reason;
    EXPECT_EQ(result.reproduce, "assay verify '" + file() + "' --record " + read.names()[k]);
    // The verdict covers everything that the case asks for.
    const AttentionShape& s = cases[k].shape;
    std::int64_t wanted = s.batch * s.query_heads * s.rows * (s.value_dim + 1);
    if (cases[k].operation == Operation::product) wanted = cases[k].product.m * cases[k].product.n;
    if (cases[k].operation == Operation::backward) wanted = -1;
    if (wanted >= 0) EXPECT_EQ(result.verdict.compared(), wanted) << r.line;
    else EXPECT_EQ(result.verdict.outputs.size(), r.gradients.d_bias ? 7u : 5u) << r.line;
  }
}

TEST_F(Records, AWrongKernelsRecordFails) {
  for (const auto& [fault, line] : std::vector<std::pair<const char*, const char*>>{
           {"fault:scale-off-by-one-percent", "attention b=1 h=2 l=9x13 d=8"},
           {"fault:kv-head-modulo", "attention b=1 h=4/2 l=9x13 d=8 dtype=bf16"},
           {"fault:delta-omitted", "backward b=1 h=2 l=9x13 d=8"},
           {"fault:dlse-ignored", "backward b=1 h=2 l=9x13 d=8 dlse=normal"},
           {"fault:scale-dropped", "product m=3 n=5 k=64 w=mxfp4"}}) {
    const std::unique_ptr<Candidate> wrong = make_candidate(fault);
    write_records(file(), {parse_case(line)}, wrong.get());
    const RecordFile read(file());
    const CaseResult result = verify(read, read.read(""));
    EXPECT_EQ(result.outcome, Outcome::fail) << fault;
    EXPECT_GT(result.verdict.outside, 0) << fault;
  }
}

// Inputs alone are no record to judge. Inputs that are not those of their case are found.
TEST_F(Records, InputsAreThoseOfTheCase) {
  write_records(file(), {parse_case("attention b=1 h=2 l=9x13 d=8")});
  const RecordFile inputs(file());
  EXPECT_THROW(
      {
        try {
          inputs.read("");
        } catch (const FileError& e) {
          EXPECT_THAT(e.what(), HasSubstr("tensor o is missing; the record holds inputs only"));
          throw;
        }
      },
      FileError);
  const std::unique_ptr<Candidate> host = make_candidate("host");
  write_records(file(), {parse_case("attention b=1 h=2 l=9x13 d=8")}, host.get());
  std::fstream change(file(), std::ios::in | std::ios::out | std::ios::binary);
  std::string whole((std::istreambuf_iterator<char>(change)), {});
  // With one other bit in the seed the generator gives another q.
  const auto at = whole.find("attention b=1 h=2 l=9x13 d=8 dtype=f32\"");
  ASSERT_NE(at, std::string::npos);
  whole.replace(at, 38, "attention b=1 h=2 l=9x13 d=8 seed=9   ");
  std::ofstream(file(), std::ios::binary) << whole;
  const RecordFile changed(file());
  EXPECT_THROW(
      {
        try {
          changed.read("");
        } catch (const FileError& e) {
          EXPECT_THAT(e.what(), HasSubstr("q is not that of its case"));
          throw;
        }
      },
      FileError);
}

// A record as another program writes it.
struct Made {
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::tuple<std::string, std::vector<Index>, std::vector<float>>> tensors;

  static Made attention(Index b, Index h, Index kv, Index rows, Index keys, Index dim) {
    Made m;
    m.metadata = {{"assay", "1"}, {"record", "attention"}};
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto add = [&](const char* name, std::vector<Index> shape) {
      Index n = 1;
      for (Index x : shape) n *= x;
      std::vector<float> values(usize(n));
      for (float& x : values) x = normal(random);
      m.tensors[name] = {"F32", std::move(shape), std::move(values)};
    };
    add("q", {b, h, rows, dim});
    add("k", {b, kv, keys, dim});
    add("v", {b, kv, keys, dim});
    return m;
  }
  std::vector<float>& values(const char* name) { return std::get<2>(tensors.at(name)); }
  // Computes O and LSE in double.
  void answer(const std::function<bool(Index b, Index h, Index i, Index j)>& sees) {
    const auto &qs = std::get<1>(tensors.at("q")), &ks = std::get<1>(tensors.at("k"));
    const Index b = qs[0], h = qs[1], rows = qs[2], dim = qs[3], kv = ks[1], keys = ks[2];
    std::vector<float> o, lse;
    for (Index x = 0; x < b; ++x)
      for (Index y = 0; y < h; ++y)
        for (Index i = 0; i < rows; ++i) {
          const Index g = y / (h / kv);
          std::vector<double> s(usize(keys), -INFINITY);
          double m = -INFINITY, l = 0;
          for (Index j = 0; j < keys; ++j) {
            if (!sees(x, y, i, j)) continue;
            double dot = 0;
            for (Index d = 0; d < dim; ++d)
              dot += static_cast<double>(values("q")[usize(((x * h + y) * rows + i) * dim + d)]) *
                     values("k")[usize(((x * kv + g) * keys + j) * dim + d)];
            s[usize(j)] = dot * default_scale(dim);
            m = std::max(m, s[usize(j)]);
          }
          for (double& x2 : s) l += x2 = m == -INFINITY ? 0 : std::exp(x2 - m);
          lse.push_back(static_cast<float>(m + std::log(l)));
          for (Index d = 0; d < dim; ++d) {
            double sum = 0;
            for (Index j = 0; j < keys; ++j)
              sum += s[usize(j)] * values("v")[usize(((x * kv + g) * keys + j) * dim + d)];
            o.push_back(static_cast<float>(l > 0 ? sum / l : 0));
          }
        }
    tensors["o"] = {"F32", {b, h, rows, dim}, o};
    tensors["lse"] = {"F32", {b, h, rows}, lse};
  }
  // Writes the tensors in the order of the map. What follows an odd number of bytes is then not
  // aligned.
  void write(const std::string& path) const {
    nlohmann::json header = {{"__metadata__", metadata}};
    std::string data;
    for (const auto& [name, t] : tensors) {
      const auto& [dtype, shape, numbers] = t;
      const std::size_t begin = data.size();
      for (float x : numbers) {
        const auto put = [&](auto v) { data.append(reinterpret_cast<const char*>(&v), sizeof v); };
        if (dtype == "F32") put(x);
        else if (dtype == "I64") put(static_cast<std::int64_t>(x));
        else if (dtype == "I32") put(static_cast<std::int32_t>(x));
        else put(static_cast<std::uint8_t>(x));
      }
      header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string text = header.dump();
    std::uint64_t length = text.size();
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << text << data;
  }
  Outcome judged(const std::string& path) const {
    write(path);
    const RecordFile read(path);
    return verify(read, read.read(read.names().front())).outcome;
  }
  std::string refused(const std::string& path) const {
    write(path);
    try {
      const RecordFile read(path);
      read.read(read.names().front());
    } catch (const FileError& e) {
      return e.what();
    }
    return "accepted";
  }
};

const auto all = [](Index, Index, Index, Index) { return true; };

TEST_F(Records, WithoutACaseShowTheirLineAndShapes) {
  Made m = Made::attention(2, 4, 2, 3, 5, 6);
  m.metadata["record"] = "attention kernel=other";
  m.answer(all);
  m.write(file());
  const RecordFile read(file());
  EXPECT_EQ(verify(read, read.read("")).line,
            "the record in " + file() + ": attention kernel=other; b=2 h=4/2 l=3x5 d=6 dtype=f32");
}

// Power is that of what was compared.
TEST_F(Records, WithoutLseHaveNoPowerThroughLse) {
  Made m = Made::attention(1, 1, 1, 3, 5, 6);
  m.answer(all);
  m.write(file());
  const auto power = [&] {
    const RecordFile read(file());
    return verify(read, read.read("")).verdict.power;
  };
  EXPECT_GT(power().by_lse[0], 0);
  m.tensors.erase("lse");
  m.write(file());
  EXPECT_EQ(power().by_lse[0], 0);
  EXPECT_GT(power().pairs, 0);
}

TEST_F(Records, LayoutsRanksUnitsAndAlignment) {
  Made m = Made::attention(2, 4, 2, 3, 5, 6);
  m.answer(all);
  EXPECT_EQ(m.judged(file()), Outcome::pass);
  for (const char* name : {"o", "lse"}) {
    Made wrong = m;
    wrong.values(name)[7] += 1e-3f;
    EXPECT_EQ(wrong.judged(file()), Outcome::fail) << name;
  }
  // Without LSE only O is judged. An LSE in base 2 is converted to natural units.
  Made bare = m;
  bare.tensors.erase("lse");
  EXPECT_EQ(bare.judged(file()), Outcome::pass);
  Made base2 = m;
  for (float& x : base2.values("lse")) x *= 1.44269504f;
  EXPECT_EQ(base2.judged(file()), Outcome::fail);
  base2.metadata["record"] = "attention lse=base2";
  EXPECT_EQ(base2.judged(file()), Outcome::pass);
  // The positions come before the heads.
  Made turned = m;
  for (const char* name : {"q", "k", "v", "o"}) {
    auto& [dtype, shape, values] = turned.tensors.at(name);
    std::vector<float> other;
    for (Index b = 0; b < shape[0]; ++b)
      for (Index i = 0; i < shape[2]; ++i)
        for (Index h = 0; h < shape[1]; ++h)
          for (Index d = 0; d < shape[3]; ++d)
            other.push_back(values[usize(((b * shape[1] + h) * shape[2] + i) * shape[3] + d)]);
    values = other;
    std::swap(shape[1], shape[2]);
  }
  EXPECT_THAT(turned.refused(file()), HasSubstr("q has 3 heads, k 5: no multiple"));
  turned.metadata["record"] = "attention layout=bshd";
  EXPECT_EQ(turned.judged(file()), Outcome::pass);
  // The record has one batch in three extents, behind a mask of an odd number of bytes.
  Made single = Made::attention(1, 2, 1, 3, 5, 6);
  single.answer([](Index, Index, Index i, Index j) { return (i + j) % 3 != 0; });
  for (const char* name : {"q", "k", "v", "o", "lse"})
    std::get<1>(single.tensors.at(name)).erase(std::get<1>(single.tensors.at(name)).begin());
  std::vector<float> keep;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 5; ++j) keep.push_back((i + j) % 3 != 0 ? 2.0f : 0.0f);
  single.tensors["a"] = {"U8", {1}, {0}};  // it comes before everything else
  single.tensors["keep"] = {"U8", {3, 5}, keep};
  EXPECT_THAT(single.refused(file()), HasSubstr("tensor a belongs to nothing"));
  single.tensors.erase("a");
  EXPECT_EQ(single.judged(file()), Outcome::pass);
}

// What a reader makes of tokens that a cache stores as E4M3 with f32 scales. `read` is the scale
// that it takes for a scale.
std::vector<float> through_cache(const std::vector<float>& tokens, Index columns,
                                 const std::function<float(float)>& read) {
  std::vector<float> found;
  for (std::size_t first = 0; first < tokens.size(); first += usize(columns)) {
    float largest = 0;
    for (std::size_t d = 0; d < usize(columns); ++d)
      largest = std::max(largest, std::fabs(tokens[first + d]));
    const float scale = largest / 448;
    for (std::size_t d = 0; d < usize(columns); ++d)
      found.push_back(static_cast<float>(
                          decode(Dtype::f8e4m3, encode(Dtype::f8e4m3, tokens[first + d] / scale))) *
                      read(scale));
  }
  return found;
}

// The tokens of a record are those that were appended, if its line says how the cache stores them.
// A reader that takes another scale than the writer is found, and its fault is named.
TEST_F(Records, TokensOfACache) {
  constexpr Index dim = 32;
  const Made tokens = Made::attention(2, 4, 2, 3, 11, dim);
  const auto answered = [&](const std::function<float(float)>& read, const char* line) {
    Made m = tokens;
    for (const char* name : {"k", "v"}) m.values(name) = through_cache(m.values(name), dim, read);
    m.answer(all);
    for (const char* name : {"k", "v"}) m.values(name) = Made(tokens).values(name);
    m.metadata["record"] = line;
    return m;
  };
  const auto same = [](float scale) { return scale; };
  const auto power = [](float scale) { return std::exp2(std::ceil(std::log2(scale))); };
  EXPECT_EQ(answered(same, "attention store=f8e4m3:f32").judged(file()), Outcome::pass);
  EXPECT_EQ(answered(same, "attention").judged(file()), Outcome::fail);
  EXPECT_EQ(answered(same, "attention store=f8e4m3").judged(file()), Outcome::fail);
  const Made wrong = answered(power, "attention store=f8e4m3:f32");
  EXPECT_EQ(wrong.judged(file()), Outcome::fail);
  const RecordFile read(file());
  EXPECT_THAT(sentence_on(verify(read, read.read("")).diagnosis),
              HasSubstr("looks like: scales of the cache are rounded up to a power of two"));
  // The scales of a page or a tensor are given.
  Made given = answered(same, "attention store=f8e4m3:f32-tensor");
  EXPECT_THAT(given.refused(file()), HasSubstr("the scales of pages and tensors are given"));
  for (const char* name : {"k_scales", "v_scales"}) given.tensors[name] = {"F32", {1}, {0.01f}};
  EXPECT_EQ(given.judged(file()), Outcome::fail);
  for (const char* name : {"k", "v"})
    for (float& x : given.values(name))
      x = static_cast<float>(decode(Dtype::f8e4m3, encode(Dtype::f8e4m3, x / 0.01f))) * 0.01f;
  given.answer(all);
  for (const char* name : {"k", "v"}) given.values(name) = Made(tokens).values(name);
  EXPECT_EQ(given.judged(file()), Outcome::pass);
  given.values("k_scales")[0] = 0;
  EXPECT_THAT(given.refused(file()), HasSubstr("k_scales holds 0; a scale is finite and above 0"));
  Made other = tokens;
  other.answer(all);
  for (const auto& [line, words] : {std::pair{"attention store=f16:f32", "only f8 and f4"},
                                    {"attention store=f9", "store: expected one of"}}) {
    other.metadata["record"] = line;
    EXPECT_THAT(other.refused(file()), HasSubstr(words));
  }
}

TEST_F(Records, MasksSayWhatTheySay) {
  Made m = Made::attention(2, 4, 2, 4, 6, 6);
  const auto with = [&](const std::string& line,
                        const std::function<bool(Index, Index, Index, Index)>& sees) {
    Made x = m;
    x.metadata["record"] = line;
    x.answer(sees);
    return x;
  };
  EXPECT_EQ(with("attention causal", [](Index, Index, Index i, Index j) { return j <= i; })
                .judged(file()),
            Outcome::pass);
  EXPECT_EQ(
      with("attention causal offset=end", [](Index, Index, Index i, Index j) { return j <= i + 2; })
          .judged(file()),
      Outcome::pass);
  // Without an offset, where the diagonal begins is a convention.
  const auto from_the_end = [](Index, Index, Index i, Index j) { return j <= i + 2; };
  for (const auto& [line, outcome] :
       {std::pair{"attention causal", Outcome::convention},
        {"attention causal convention=anchor:bottom-right", Outcome::pass},
        {"attention causal convention=anchor:top-left", Outcome::fail},
        {"attention causal offset=0", Outcome::fail}})
    EXPECT_EQ(with(line, from_the_end).judged(file()), outcome) << line;
  EXPECT_EQ(with("attention window=1,0 offset=1",
                 [](Index, Index, Index i, Index j) { return j >= i && j <= i + 1; })
                .judged(file()),
            Outcome::pass);
  Made padded = with("attention", [](Index b, Index, Index, Index j) {
    return j < (b == 0 ? 6 : 2) && j >= (b == 0 ? 3 : 0);
  });
  padded.tensors["lengths"] = {"I64", {2}, {6, 2}};
  padded.tensors["starts"] = {"I32", {2}, {3, 0}};
  EXPECT_EQ(padded.judged(file()), Outcome::pass);
  padded.tensors["starts"] = {"I32", {2}, {0, 0}};
  EXPECT_EQ(padded.judged(file()), Outcome::fail);
}

// Where no diagonal is declared, a fault beside another one than ours is told as what it is.
TEST_F(Records, AFaultIsToldUnderTheDiagonalThatIsMeant) {
  Made m = Made::attention(1, 2, 2, 24, 40, 16);
  const auto told = [&](const char* line, Index diagonal) {
    m.metadata["record"] = line;
    m.answer([=](Index, Index, Index i, Index j) { return j <= i + diagonal; });
    EXPECT_EQ(m.judged(file()), Outcome::fail);
    const RecordFile read(file());
    const CaseResult r = verify(read, read.read(""));
    return r.reason + "; " + sentence_on(r.diagnosis);
  };
  EXPECT_THAT(told("attention causal", 17),
              AllOf(HasSubstr("judged under anchor:bottom-right"),
                    HasSubstr("looks like: the causal diagonal is one key late")));
  EXPECT_THAT(told("attention causal", 15), HasSubstr("the causal diagonal is one key early"));
  EXPECT_THAT(told("attention causal", 1),
              AllOf(Not(HasSubstr("judged under")), HasSubstr("one key late")));
  EXPECT_THAT(told("attention causal convention=anchor:top-left", 17),
              Not(HasSubstr("judged under")));
}

TEST_F(Records, ContradictionsAreNamed) {
  Made good = Made::attention(2, 4, 2, 3, 5, 6);
  good.answer(all);
  const auto refused = [&](const char* words, const std::function<void(Made&)>& change) {
    Made m = good;
    change(m);
    EXPECT_THAT(m.refused(file()), HasSubstr(words));
  };
  const auto line = [](const char* text) {
    return [text](Made& m) { m.metadata["record"] = text; };
  };
  refused("the metadata have no key assay", [](Made& m) { m.metadata.erase("assay"); });
  refused("records of version 2; version 1 is known", [](Made& m) { m.metadata["assay"] = "2"; });
  refused("the metadata have no key record", [](Made& m) { m.metadata.erase("record"); });
  refused("metadata key casual is not one of", [](Made& m) { m.metadata["casual"] = "yes"; });
  refused("a record without a name and records with names",
          [](Made& m) { m.metadata["record.x"] = "attention"; });
  refused("its line begins with 'attn'", line("attn"));
  refused("its line says casual, which attention does not have", line("attention casual"));
  refused("its line says causal twice", line("attention causal causal"));
  refused("causal=yes: a flag has no value", line("attention causal=yes"));
  refused("scale=fast: not a number", line("attention scale=fast"));
  refused("scale = -inf is not a finite number", line("attention scale=-inf"));
  refused("window=3: two numbers are wanted", line("attention window=3"));
  refused("window=-1,9223372036854775807: outside [-1, 2^40]",
          line("attention window=-1,9223372036854775807"));
  refused("metadata key case.x is the case of no record",
          [](Made& m) { m.metadata["case.x"] = "attention"; });
  refused("metadata key formatter is not one of", [](Made& m) { m.metadata["formatter"] = "pt"; });
  // A record that cannot be the case costs neither memory nor time.
  refused("an extent is not that of its case",
          [](Made& m) { m.metadata["case"] = "attention b=1 h=1 l=1000000000x1000000000 d=1024"; });
  refused("the dtype of q is not that of its case",
          [](Made& m) { m.metadata["case"] = "attention b=2 h=4/2 l=3x5 d=6 dtype=bf16"; });
  refused("the operation (a record has no cache) is not that of its case", [](Made& m) {
    m.metadata["case"] = "attention b=2 h=4/2 l=3x5 d=6 offset=end cache=paged:4";
  });
  refused("its line begins with 'at?[31mtn'", line("at\x1b[31mtn"));
  refused("layout=sbhd: bhsd or bshd", line("attention layout=sbhd"));
  refused("lse=base10: natural or base2", line("attention lse=base10"));
  refused("tensor do is missing", line("backward"));
  refused("its line does not say m=", line("product"));
  refused("tensor v is missing", [](Made& m) { m.tensors.erase("v"); });
  refused("tensor o is missing; did you mean o by out?", [](Made& m) {
    m.tensors["out"] = m.tensors.at("o");
    m.tensors.erase("o");
  });
  refused(
      "tensor softmax_lse belongs to nothing that the record's line asks for; did you mean lse?",
      [](Made& m) {
        m.tensors["softmax_lse"] = m.tensors.at("lse");
        m.tensors.erase("lse");
      });
  refused("tensor xyz belongs to nothing that the record's line asks for",
          [](Made& m) { m.tensors["xyz"] = m.tensors.at("o"); });
  refused("tensor mask belongs to nothing",
          [](Made& m) { m.tensors["mask"] = {"U8", {3, 5}, std::vector<float>(15)}; });
  refused(
      "tensor v is [2, 2, 4, 6] as batch, heads, positions, columns; q, k and v ask for [2, 2, 5, "
      "6]",
      [](Made& m) { m.tensors["v"] = {"F32", {2, 2, 4, 6}, std::vector<float>(96)}; });
  refused("tensor lse has shape [2, 3, 4]",
          [](Made& m) { std::get<1>(m.tensors["lse"]) = {2, 3, 4}; });
  refused("q has 4 heads, k 3: no multiple", [](Made& m) {
    m.tensors["k"] = {"F32", {2, 3, 5, 6}, std::vector<float>(180)};
    m.tensors["v"] = m.tensors["k"];
  });
  refused("tensor keep has shape [3, 4], which does not broadcast to [2, 4, 3, 5]",
          [](Made& m) { m.tensors["keep"] = {"U8", {3, 4}, std::vector<float>(12)}; });
  refused("tensor lengths holds 6, outside [0, 5]",
          [](Made& m) { m.tensors["lengths"] = {"I64", {2}, {6, 5}}; });
  refused("tensor lengths has 3 elements, not 2",
          [](Made& m) { m.tensors["lengths"] = {"I64", {3}, {5, 5, 5}}; });
  refused("tensor lengths is F32, not I32 or I64",
          [](Made& m) { m.tensors["lengths"] = {"F32", {2}, {5, 5}}; });
  refused("tensor q is I64; F32, F16 and BF16 can be judged",
          [](Made& m) { std::get<0>(m.tensors["q"]) = "I64"; });
  refused("q has no element", [](Made& m) { m.tensors["q"] = {"F32", {2, 4, 0, 6}, {}}; });
}

TEST_F(Records, BytesWithoutAMeaningAreRefused) {
  const auto refused = [&](const char* words, const char* case_line, const char* tensor,
                           std::size_t at, std::uint8_t value) {
    const std::unique_ptr<Candidate> host = make_candidate("host");
    write_records(file(), {parse_case(case_line)}, host.get());
    std::ifstream in(file(), std::ios::binary);
    std::string whole((std::istreambuf_iterator<char>(in)), {});
    const RecordFile read(file());
    const Safetensors s =
        parse_safetensors({reinterpret_cast<const std::byte*>(whole.data()), whole.size()});
    whole[usize(reinterpret_cast<const char*>(s.tensors.at(tensor).bytes.data()) - whole.data()) +
          at] = static_cast<char>(value);
    std::ofstream(file(), std::ios::binary) << whole;
    try {
      RecordFile(file()).read("");
      ADD_FAILURE() << words;
    } catch (const FileError& e) {
      EXPECT_THAT(e.what(), HasSubstr(words));
    }
  };
  refused("tensor w.extra: zero point 3 is 16, above 15", "product m=2 n=4 k=64 w=int4:64",
          "w.extra", 3, 16);
  refused("tensor w.scales: scale 1 is negative", "product m=2 n=4 k=64 w=nvfp4", "w.scales", 1,
          0x81);
  refused("tensor w.scales: scale 0 is infinite", "product m=2 n=4 k=64 w=fp4:64 weights=codes",
          "w.scales", 1, 0xFC);
  refused("tensor w.extra: column 0 keeps positions 1 and 1 of the four from k = 0 on",
          "product m=2 n=4 k=64 w=fp4-sparse", "w.extra", 0, 0x45);
}

// The gradients of a kernel that gives no LSE have a bound of their own. Right gradients pass and
// wrong ones fail.
TEST_F(Records, GradientsWithoutLse) {
  for (const auto& [candidate, outcome] : {std::pair{"host", Outcome::pass},
                                           {"fault:delta-omitted", Outcome::fail},
                                           {"fault:query-gradient-scaled-twice", Outcome::fail}}) {
    write_records(file("whole"), {parse_case("backward b=1 h=2 l=40x70 d=16 causal offset=end")},
                  make_candidate(candidate).get());
    const MappedFile whole(file("whole"));
    Safetensors s = parse_safetensors(whole.bytes());
    s.tensors.erase("lse");
    std::vector<TensorToStore> tensors;
    for (const auto& [name, t] : s.tensors)
      tensors.push_back({name, t.dtype, t.shape, t.bytes.size(),
                         [bytes = t.bytes](const auto& put) { put(bytes.data(), bytes.size()); }});
    write_safetensors(file(), std::move(tensors), s.metadata);
    const RecordFile read(file());
    const CaseResult result = verify(read, read.read(""));
    EXPECT_EQ(result.outcome, outcome) << candidate << ": " << result.reason;
    EXPECT_EQ(result.verdict.compared(Output::lse), 0);
  }
}

// With one key P is 1 and O is V, so all gradients come of dLSE: dQ is scale * dLSE * K.
TEST_F(Records, TheGradientOfLseIsAnInput) {
  constexpr float scale = 0.70710678F;
  const std::vector<float> zero = {0, 0}, k = {1, 1}, v = {1, 2}, lse = {scale}, d_lse = {1};
  const auto outcome = [&](float dq_element, const char* name, const std::vector<Index>& shape) {
    const std::vector<float> q = {1, 0}, dq = {dq_element, dq_element}, dk = {dq_element, 0};
    const auto tensor = [](const char* called, std::vector<Index> extents,
                           const std::vector<float>& data) {
      const std::size_t bytes = 4 * data.size();
      return TensorToStore{called, "F32", std::move(extents), bytes,
                           [&data, bytes](const auto& put) { put(data.data(), bytes); }};
    };
    const std::vector<Index> row = {1, 1, 1, 2};
    std::vector<TensorToStore> tensors = {
        tensor("q", row, q),   tensor("k", row, k),           tensor("v", row, v),
        tensor("o", row, v),   tensor("lse", {1, 1, 1}, lse), tensor("do", row, zero),
        tensor("dq", row, dq), tensor("dk", row, dk),         tensor("dv", row, zero)};
    if (name) tensors.push_back(tensor(name, shape, d_lse));
    write_safetensors(file(), tensors, {{"assay", "1"}, {"record", "backward"}});
    const RecordFile read(file());
    return verify(read, read.read("")).outcome;
  };
  const auto refused = [&](const char* name, const std::vector<Index>& shape, const char* words) {
    try {
      outcome(0, name, shape);
      ADD_FAILURE() << words;
    } catch (const FileError& e) {
      EXPECT_THAT(e.what(), HasSubstr(words));
    }
  };
  EXPECT_EQ(outcome(0, nullptr, {}), Outcome::pass);
  EXPECT_EQ(outcome(scale, nullptr, {}), Outcome::fail);
  EXPECT_EQ(outcome(scale, "dlse", {1, 1, 1}), Outcome::pass);
  EXPECT_EQ(outcome(0, "dlse", {1, 1, 1}), Outcome::fail);
  EXPECT_EQ(outcome(-scale, "dlse", {1, 1, 1}), Outcome::fail);
  refused("dlse", {1}, "tensor dlse has shape [1], not [1, 1, 1]");
  refused("dsoftmax_lse", {1, 1, 1}, "dlse");
}

// A NaN gradient is not taken for a sum that left the range of fp16.
TEST_F(Records, NanInSharedGradientsFails) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  for (const char* tensor : {"d_bias", "d_sink"}) {
    write_records(file(), {parse_case("backward b=1 h=1 l=2 d=8 dtype=f16 bias=normal@j sink=1")},
                  host.get());
    std::ifstream in(file(), std::ios::binary);
    std::string whole((std::istreambuf_iterator<char>(in)), {});
    const Safetensors s =
        parse_safetensors({reinterpret_cast<const std::byte*>(whole.data()), whole.size()});
    const float nan = std::nanf("");
    std::memcpy(whole.data() + (reinterpret_cast<const char*>(s.tensors.at(tensor).bytes.data()) -
                                whole.data()),
                &nan, 4);
    std::ofstream(file(), std::ios::binary) << whole;
    const RecordFile read(file());
    EXPECT_EQ(verify(read, read.read("")).outcome, Outcome::fail) << tensor;
  }
}

// Whatever a file holds, it is judged or refused with a sentence.
TEST_F(Records, MutatedFilesAreRefusedOrJudged) {
  const std::unique_ptr<Candidate> host = make_candidate("host");
  write_records(file(),
                {parse_case("backward b=1 h=2/1 l=3x4 d=2 bias=normal@j sink=1"),
                 parse_case("product m=2 n=3 k=32 w=nvfp4")},
                host.get());
  std::ifstream in(file(), std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  std::mt19937 random(20261125);
  const auto draw = [&](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  std::size_t refused = 0, judged = 0;
  constexpr const char* pieces[] = {"0",      "9",    "-1", "1e9",       "18446744073709551615",
                                    "null",   "[]",   "{}", "\"\"",      "F16",
                                    "I64",    "BOOL", ",",  "attention", "causal",
                                    "lengths"};
  for (int round = 0; round < 4000; ++round) {
    std::string text = whole.substr(8, header), data = whole.substr(8 + header);
    for (std::size_t k = 0; k <= draw(3); ++k) {
      const std::size_t at = draw(text.size());
      switch (draw(5)) {
        case 0: text[at] = static_cast<char>(draw(256)); break;
        case 1: text.erase(at, draw(6)); break;
        case 2: text.insert(at, pieces[draw(std::size(pieces))]); break;
        case 3:
          text.replace(at, std::min(text.size() - at, draw(8)), pieces[draw(std::size(pieces))]);
          break;
        default: data.resize(draw(2) ? data.size() : draw(data.size() + 8)); break;
      }
    }
    std::uint64_t length = draw(50) ? text.size() : draw(1 << 20);
    std::ofstream(file("m"), std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&length), 8) << text << data;
    try {
      const RecordFile read(file("m"));
      for (const std::string& name : read.names()) verify(read, read.read(name));
      ++judged;
    } catch (const FileError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 3000u);
  EXPECT_GT(judged, 20u);
}

TEST_F(Records, AFileIsWrittenWholeOrNotAtAll) {
  std::ofstream(file()) << "what was there";
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  if (getuid() == 0) fs::permissions(folder_, fs::perms::owner_all);
  // The tensor ends too early.
  EXPECT_THROW(
      write_safetensors(file(), {{"t", "U8", {4}, 4, [](const auto& put) { put("abc", 3); }}}, {}),
      std::exception);
  fs::permissions(folder_, fs::perms::owner_all);
  std::ifstream in(file());
  EXPECT_EQ(std::string((std::istreambuf_iterator<char>(in)), {}), "what was there");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  EXPECT_THROW(write_safetensors("/no/such/folder/t", {}, {}), std::system_error);
  // Something that is not a regular file is never replaced. A link stays a link.
  write_file("/dev/null", "nothing");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  fs::create_symlink(file(), file("link"));
  write_file(file("link"), "new");
  EXPECT_TRUE(fs::is_symlink(file("link")));
  std::ifstream behind(file());
  EXPECT_EQ(std::string((std::istreambuf_iterator<char>(behind)), {}), "new");
}

TEST(ValidateKernelOutput, IsJudgedByTheBoundAndNotByTheTolerance) {
  const AttentionFunction host = [](const Attention& p, const AttentionOutput& out) {
    return kernels::attention_forward(p, out, 1);
  };
  // The output is off by half a percent, which is inside the tolerance and wrong.
  const AttentionFunction wrong = [&](const Attention& p, const AttentionOutput& out) {
    Attention changed = p;
    changed.scale *= 1.005f;
    return host(changed, out);
  };
  const AttentionShape shapes[] = {{1, 2, 2, 33, 33, 16, 16}, {2, 4, 2, 5, 70, 8, 24}};
  for (const OutputValidation& v : validate_kernel_output(host, wrong, shapes)) {
    EXPECT_TRUE(v.passed()) << v.verdict.reason;
    EXPECT_EQ(v.reference->outcome, Outcome::fail);
    EXPECT_TRUE(v.within_tolerance);
    EXPECT_GT(v.relative_difference, 1e-4);
  }
  for (const OutputValidation& v : validate_kernel_output(wrong, wrong, shapes, 0.0)) {
    EXPECT_FALSE(v.passed());
    EXPECT_EQ(v.relative_difference, 0);  // the two wrong functions agree
    EXPECT_TRUE(v.within_tolerance);
  }
  EXPECT_FALSE(validate_kernel_output(wrong, host, shapes, 1e-6)[0].within_tolerance);
  const AttentionFunction lazy = [](const Attention&, const AttentionOutput&) {
    return kernels::Status{};
  };
  EXPECT_THAT(validate_kernel_output(lazy, nullptr, shapes)[0].verdict.reason,
              HasSubstr("was not written"));
  const AttentionFunction failing = [](const Attention&, const AttentionOutput&) {
    return kernels::Status{kernels::StatusCode::execution_failed, "no luck"};
  };
  EXPECT_THROW(validate_kernel_output(failing, nullptr, shapes), std::runtime_error);
}

TEST(ValidateKernelOutput, Products) {
  const ProductFunction host = [](const Product& p, const TensorView& c) {
    std::shared_ptr<const kernels::PackedWeights> w;
    if (kernels::Status status = kernels::PackedWeights::pack(p.w, w); !status.ok()) return status;
    return kernels::product(p.a, *w, c, 1);
  };
  const ProductFunction wrong = [&](const Product& p, const TensorView& c) {
    kernels::Status status = host(p, c);
    store(c, c.at(0, 0, p.m - 1, p.n - 1), load(c, c.at(0, 0, p.m - 1, p.n - 1)) * 1.001);
    return status;
  };
  ProductSpec spec;
  const OutputValidation right = validate_kernel_output(host, wrong, std::span(&spec, 1))[0];
  EXPECT_TRUE(right.passed()) << right.verdict.reason;
  EXPECT_TRUE(right.within_tolerance);
  EXPECT_EQ(right.reference->outcome, Outcome::fail);
}

}  // namespace
}  // namespace assay
