// The text form of a case: for each field, one row of a table says how it is printed, parsed and
// explained.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <span>

#include "problem/case.h"
#include "problem/read_number.h"

namespace assay {
namespace {

// The names of the values, in their order.
template <class Values>
std::vector<std::string_view> names_of(const Values& values) {
  std::vector<std::string_view> names;
  for (const auto value : values) names.push_back(name_of(value));
  return names;
}

// Joins names to "a, b or c".
template <class Values>
std::string one_of(const Values& values) {
  const std::vector<std::string_view> names = names_of(values);
  return fmt::format("{} or {}", fmt::join(names.begin(), names.end() - 1, ", "), names.back());
}

// A cursor over the value of one field; every error it throws points at the column it has reached.
class Cursor {
 public:
  Cursor(std::string_view line, std::string_view field, std::size_t begin, std::size_t end)
      : line_(line), field_(field), at_(begin), end_(end) {}

  bool done() const { return at_ == end_; }
  bool accept(char c) {
    if (done() || line_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("expected '{}'", c));
  }
  void expect_end() const {
    if (!done()) fail("expected a space or the end of the line");
  }
  [[noreturn]] void fail(std::string_view what) const {
    const std::string_view rest = line_.substr(at_, end_ - at_);
    throw CaseError(at_ + 1,
                    fmt::format("{}: {}, found {}", field_, what,
                                rest.empty() ? "the end of the field" : fmt::format("'{}'", rest)));
  }
  std::string_view word() {
    const std::size_t begin = at_;
    while (!done() && (std::isalnum(static_cast<unsigned char>(line_[at_])) || line_[at_] == '-' ||
                       line_[at_] == '_'))
      ++at_;
    return line_.substr(begin, at_ - begin);
  }
  Index integer() { return number<Index>("an integer"); }
  std::uint64_t natural() { return number<std::uint64_t>("an integer of at least 0"); }
  float real() { return number<float>("a number"); }
  double real64() { return number<double>("a number, nan, inf or -inf"); }
  // The index of the word in a list of names.
  std::size_t choice(std::span<const std::string_view> names) {
    const std::size_t begin = at_;
    const auto found = std::ranges::find(names, word());
    if (found != names.end()) return usize(found - names.begin());
    at_ = begin;
    fail(fmt::format("expected one of {}", fmt::join(names, ", ")));
  }
  // The value that the word names, which must be one of those allowed here.
  template <NamedEnum E>
  E value(std::span<const E> allowed = values_of<E>) {
    return allowed[choice(names_of(allowed))];
  }
  std::vector<Index> integers() {
    std::vector<Index> list{integer()};
    while (accept(',')) list.push_back(integer());
    return list;
  }

 private:
  template <class T>
  T number(std::string_view what) {
    T value{};
    const char* begin = line_.data() + at_;
    const auto [stop, error] = read_number(begin, line_.data() + end_, value);
    if (error == std::errc::result_out_of_range)
      fail(fmt::format("expected {} that its type can hold", what));
    if (error != std::errc()) fail(fmt::format("expected {}", what));
    at_ += usize(stop - begin);
    return value;
  }
  std::string_view line_, field_;
  std::size_t at_, end_;
};

// Parses "a/b", or "a" for both numbers.
void parse_pair(Cursor& in, char separator, Index& first, Index& second) {
  first = second = in.integer();
  if (in.accept(separator)) second = in.integer();
}
std::string print_pair(Index first, char separator, Index second) {
  return first == second ? fmt::format("{}", first)
                         : fmt::format("{}{}{}", first, separator, second);
}

std::string print_mask(const MaskSpec& m) {
  if (m.pattern == MaskPattern::none) return {};
  std::string text(name_of(m.pattern));
  if (m.varies != MaskSpec{}.varies) {
    text += '@';
    for (std::size_t axis = 0; axis < 4; ++axis)
      if (m.varies[axis]) text += "bhij"[axis];
  }
  return text;
}
void parse_mask(Cursor& in, MaskSpec& m, std::span<const MaskPattern> allowed) {
  m.pattern = in.value(allowed);
  if (!in.accept('@')) return;
  m.varies = {};
  for (std::size_t axis = 0; axis < 4; ++axis) m.varies[axis] = in.accept("bhij"[axis]);
}

// The letters of the tensors that a layout can name. A layout that names none is that of the first
// four of attention; dO (g) then has that of O.
constexpr std::array<std::string_view, 5> attention_tensors = {"q", "k", "v", "o", "g"};
constexpr std::array<std::string_view, 2> product_tensors = {"a", "c"};

template <std::size_t n>
std::string print_layouts(std::span<const std::string_view> tensors,
                          const std::array<LayoutKind, n>& kinds,
                          std::optional<LayoutKind> of_d_o = {}) {
  const bool equal = std::equal(kinds.begin() + 1, kinds.end(), kinds.begin());
  if (!of_d_o && equal && kinds[0] == LayoutKind{}) return {};
  if (!of_d_o && equal) return std::string(name_of(kinds[0]));
  std::vector<std::string> named;
  for (std::size_t t = 0; t < n; ++t)
    if (kinds[t] != LayoutKind{})
      named.push_back(fmt::format("{}:{}", tensors[t], name_of(kinds[t])));
  if (of_d_o) named.push_back(fmt::format("{}:{}", tensors[n], name_of(*of_d_o)));
  return fmt::format("{}", fmt::join(named, ","));
}
// Calls set(t, kind) for each tensor that the text names, or for the first `all` of them.
template <class Set>
void parse_layouts(Cursor& in, std::span<const std::string_view> tensors, std::size_t all,
                   const Set& set) {
  Cursor ahead = in;
  const std::string_view first = ahead.word();
  if (!(first.size() == 1 && ahead.accept(':'))) {
    const auto kind = in.value<LayoutKind>();
    for (std::size_t t = 0; t < all; ++t) set(t, kind);
    return;
  }
  do {
    const std::size_t t = in.choice(tensors);
    in.expect(':');
    set(t, in.value<LayoutKind>());
  } while (in.accept(','));
}

std::string print_pokes(const Case& c) {
  std::string text;
  for (const Poke& p : c.pokes)
    text += fmt::format("{}{}:{}:{}:{}:{}={}", text.empty() ? "" : ";", p.tensor, p.position[0],
                        p.position[1], p.position[2], p.position[3], p.value);
  return text;
}
void parse_pokes(Cursor& in, Case& c) {
  static constexpr std::array<std::string_view, 6> tensors = {"q", "k", "v", "m", "g", "a"};
  do {
    Poke p;
    p.tensor = tensors[in.choice(tensors)][0];
    for (Index& x : p.position) {
      in.expect(':');
      x = in.integer();
    }
    in.expect('=');
    p.value = in.real64();
    if (std::isnan(p.value)) p.value = std::numeric_limits<double>::quiet_NaN();
    c.pokes.push_back(p);
  } while (in.accept(';'));
}

std::string print_cache(const CacheSpec& k) {
  if (!k) return {};
  std::string text(name_of(k.kind));
  if (k.kind != CacheSpec::Kind::contiguous) text += fmt::format(":{}", k.page);
  if (k.kind == CacheSpec::Kind::latent) text += fmt::format(":{}+{}", k.rank, k.rotary);
  return text;
}
void parse_cache(Cursor& in, CacheSpec& k) {
  k.kind = in.value(std::span(values_of<CacheSpec::Kind>).subspan(1));
  if (k.kind == CacheSpec::Kind::contiguous || !in.accept(':')) return;
  k.page = in.integer();
  if (k.kind != CacheSpec::Kind::latent || !in.accept(':')) return;
  k.rank = in.integer();
  in.expect('+');
  k.rotary = in.integer();
}

std::string print_list(const std::vector<Index>& list) {
  return fmt::format("{}", fmt::join(list, ","));
}

std::string convention_help() {
  std::string text =
      "what a kernel means where nobody agreed, as masked-rows:nan,masked-lse:zero; ";
  for (const ConventionRow& row : table_of<Convention>)
    text += fmt::format("{}{}: {}", row.value == Convention{} ? "" : "; ", row.name,
                        fmt::join(row.values, ", "));
  return text;
}
void parse_conventions(Cursor& in, Conventions& to) {
  do {
    const auto c = in.value<Convention>();
    if (to.declares(c)) in.fail(fmt::format("{} stands twice", name_of(c)));
    in.expect(':');
    to.declare(c, in.choice(row_of(c).values));
  } while (in.accept(','));
}

struct Field {
  std::string_view name;
  std::string help;
  // Returns an empty text for the default, which is left out. A flag prints its own name.
  std::function<std::string(const Case&)> print;
  std::function<void(Case&, Cursor&)> parse;
  bool is_flag = false;
};

template <class Member>
Field flag(std::string_view name, const std::string& help, Member member) {
  return {name, help, [=](const Case& c) { return c.*member ? std::string(name) : std::string(); },
          [=](Case& c, Cursor&) { c.*member = true; }, true};
}

// The fields that every operation has.
Field seed_field() {
  return {"seed", "of the generator",
          [](const Case& c) { return c.seed == 1 ? "" : fmt::format("{}", c.seed); },
          [](Case& c, Cursor& in) { c.seed = in.natural(); }};
}
Field threads_field() {
  return {"threads", "of the candidate; 0: all",
          [](const Case& c) { return c.threads == 1 ? "" : fmt::format("{}", c.threads); },
          [](Case& c, Cursor& in) { c.threads = in.integer(); }};
}
Field target_field() {
  return {"target", "SIMD target by name, as AVX2; default: the best",
          [](const Case& c) { return c.target; },
          [](Case& c, Cursor& in) {
            c.target = std::string(in.word());
            if (c.target.empty()) in.fail("expected a name");
          }};
}
Field rows_field(const std::string& help) {
  return {"rows", help,
          [](const Case& c) { return c.sample_rows == 0 ? "" : fmt::format("{}", c.sample_rows); },
          [](Case& c, Cursor& in) { c.sample_rows = in.integer(); }};
}
Field dtype_field(const std::string& help) {
  return {"dtype", help, [](const Case& c) { return std::string(format(c.dtype).name); },
          [](Case& c, Cursor& in) { c.dtype = in.value<Dtype>(); }};
}
Field out_field(const std::string& help) {
  return {"out", help, [](const Case& c) { return c.out ? std::string(format(*c.out).name) : ""; },
          [](Case& c, Cursor& in) { c.out = in.value<Dtype>(); }};
}
Field values_field(const std::string& help) {
  return {"values", help,
          [](const Case& c) {
            return c.values == Values::normal ? "" : std::string(name_of(c.values));
          },
          [](Case& c, Cursor& in) { c.values = in.value<Values>(); }};
}

const std::vector<Field>& product_fields() {
  static const ProductSpec defaults;
  static const std::vector<Field> table = {
      {"m", "rows of A and C", [](const Case& c) { return fmt::format("{}", c.product.m); },
       [](Case& c, Cursor& in) { c.product.m = in.integer(); }},
      {"n", "columns of W and C", [](const Case& c) { return fmt::format("{}", c.product.n); },
       [](Case& c, Cursor& in) { c.product.n = in.integer(); }},
      {"k", "columns of A, rows of W: the sum's length",
       [](const Case& c) { return fmt::format("{}", c.product.k); },
       [](Case& c, Cursor& in) { c.product.k = in.integer(); }},
      dtype_field("f32, f16 or bf16, of A"),
      out_field("dtype of C; default: that of A"),
      {"w",
       "format of W, and its group size where that is free: mxfp4, nvfp4, fp4:128, fp4-sparse, "
       "f8e4m3:0 (no scales), f8e5m2, int8:32, int4",
       [](const Case& c) {
         return std::string(traits(c.product.format).name) +
                (c.product.group ? fmt::format(":{}", *c.product.group) : "");
       },
       [](Case& c, Cursor& in) {
         c.product.format = in.value<LowBit>();
         if (in.accept(':')) c.product.group = in.integer();
       }},
      {"a",
       "format of A, where it is low-bit too: mxfp4, nvfp4, f8e4m3 or f8e5m2, quantized from "
       "values",
       [](const Case& c) {
         return c.product.a_format ? std::string(traits(*c.product.a_format).name) : "";
       },
       [](Case& c, Cursor& in) { c.product.a_format = in.value<LowBit>(); }},
      {"weights", "how the codes of W are drawn",
       [](const Case& c) {
         return c.product.weights == defaults.weights ? ""
                                                      : std::string(name_of(c.product.weights));
       },
       [](Case& c, Cursor& in) { c.product.weights = in.value<Weights>(); }},
      {"scales", "how the scales of W are, unless it is quantized",
       [](const Case& c) {
         return c.product.scales == defaults.scales ? "" : std::string(name_of(c.product.scales));
       },
       [](Case& c, Cursor& in) { c.product.scales = in.value<ScaleFamily>(); }},
      {"zeros", "zero points of integers, unless W is quantized: " + one_of(values_of<ZeroFamily>),
       [](const Case& c) {
         return c.product.zeros == defaults.zeros ? "" : std::string(name_of(c.product.zeros));
       },
       [](Case& c, Cursor& in) { c.product.zeros = in.value<ZeroFamily>(); }},
      values_field("family of A"),
      {"poke", "elements of A overwritten: a:0:0:m:k=nan, separated by ';'", print_pokes,
       [](Case& c, Cursor& in) { parse_pokes(in, c); }},
      seed_field(),
      {"layout",
       "bhsd (contiguous), padded, strided or reversed; for both, or as a:padded,c:strided",
       [](const Case& c) { return print_layouts<2>(product_tensors, {c.q_layout, c.o_layout}); },
       [](Case& c, Cursor& in) {
         parse_layouts(in, product_tensors, 2, [&](std::size_t t, LayoutKind kind) {
           (t == 0 ? c.q_layout : c.o_layout) = kind;
         });
       }},
      threads_field(),
      target_field(),
      rows_field("judge so many seeded rows; 0: all"),
  };
  return table;
}

// Shapes, dtypes, and what becomes of a score before its masks.
std::vector<Field> shape_fields() {
  return {
      {"b", "batch", [](const Case& c) { return fmt::format("{}", c.shape.batch); },
       [](Case& c, Cursor& in) { c.shape.batch = in.integer(); }},
      {"h", "query heads, or query/kv heads (GQA): 8 or 8/2",
       [](const Case& c) { return print_pair(c.shape.query_heads, '/', c.shape.kv_heads); },
       [](Case& c, Cursor& in) { parse_pair(in, '/', c.shape.query_heads, c.shape.kv_heads); }},
      {"l", "length, or rows x keys: 512 or 37x512",
       [](const Case& c) { return print_pair(c.shape.rows, 'x', c.shape.keys); },
       [](Case& c, Cursor& in) { parse_pair(in, 'x', c.shape.rows, c.shape.keys); }},
      {"d", "head dimension, or that of Q and K / that of V: 64 or 192/128",
       [](const Case& c) { return print_pair(c.shape.dim, '/', c.shape.value_dim); },
       [](Case& c, Cursor& in) { parse_pair(in, '/', c.shape.dim, c.shape.value_dim); }},
      dtype_field("f64, f32, f16 or bf16, of Q, K, V and bias"),
      out_field("dtype of O; default: the same"),
      {"scale", "of the scores, also below 0; default: 1/sqrt(d) in binary32",
       [](const Case& c) { return c.scale ? fmt::format("{}", *c.scale) : ""; },
       [](Case& c, Cursor& in) { c.scale = in.real(); }},
      {"softcap", "c > 0: scores become c tanh(t/c)",
       [](const Case& c) { return c.softcap != 0 ? fmt::format("{}", c.softcap) : ""; },
       [](Case& c, Cursor& in) { c.softcap = in.real(); }},
  };
}
// What changes scores and weights besides Q and K.
std::vector<Field> mask_fields() {
  return {
      flag("causal", "flag: row i sees keys j <= i + offset", &Case::causal),
      {"offset",
       "integer, end (keys - rows) or lengths (n[b] - rows); for causal, window and alibi",
       [](const Case& c) -> std::string {
         if (c.offset.kind == OffsetSpec::Kind::end) return "end";
         if (c.offset.kind == OffsetSpec::Kind::lengths) return "lengths";
         return c.offset.value != 0 ? fmt::format("{}", c.offset.value) : "";
       },
       [](Case& c, Cursor& in) {
         Cursor ahead = in;
         const std::string_view w = ahead.word();
         if (w == "end" || w == "lengths") {
           c.offset.kind = w == "end" ? OffsetSpec::Kind::end : OffsetSpec::Kind::lengths;
           in = ahead;
         } else {
           c.offset.value = in.integer();
         }
       }},
      {"window", "left,right keys around i + offset; -1: open",
       [](const Case& c) {
         return c.window_left == -1 && c.window_right == -1
                    ? ""
                    : fmt::format("{},{}", c.window_left, c.window_right);
       },
       [](Case& c, Cursor& in) {
         c.window_left = in.integer();
         in.expect(',');
         c.window_right = in.integer();
       }},
      {"bool",
       "boolean mask: " + one_of(patterns_of<MaskKind::boolean>) +
           "; @bhij says which axes vary: random@bj",
       [](const Case& c) { return print_mask(c.keep); },
       [](Case& c, Cursor& in) { parse_mask(in, c.keep, patterns_of<MaskKind::boolean>); }},
      {"bias", "additive mask: " + one_of(patterns_of<MaskKind::additive>) + "; axes as for bool",
       [](const Case& c) { return print_mask(c.bias); },
       [](Case& c, Cursor& in) { parse_mask(in, c.bias, patterns_of<MaskKind::additive>); }},
      flag("finite-min-masks", "flag: the bias dtype's minimum means -inf",
           &Case::finite_min_masks),
      {"lengths", "valid keys (right padding), one for each batch or one for all: 5,64",
       [](const Case& c) { return print_list(c.lengths); },
       [](Case& c, Cursor& in) { c.lengths = in.integers(); }},
      {"starts", "first valid key (left padding), as lengths",
       [](const Case& c) { return print_list(c.starts); },
       [](Case& c, Cursor& in) { c.starts = in.integers(); }},
      {"docs", "lengths of packed documents; the last runs to the end: 5,7,9",
       [](const Case& c) { return print_list(c.documents); },
       [](Case& c, Cursor& in) { c.documents = in.integers(); }},
      flag("alibi", "flag: ALiBi with the published slopes", &Case::alibi),
      {"sink", "sink logit of head 0; head h has sink + h/4",
       [](const Case& c) { return c.sink ? fmt::format("{}", *c.sink) : ""; },
       [](Case& c, Cursor& in) { c.sink = in.real(); }},
      {"dropout", "probability:seed, as 0.1:7",
       [](const Case& c) {
         return c.dropout != 0 || c.dropout_seed != 0
                    ? fmt::format("{}:{}", c.dropout, c.dropout_seed)
                    : "";
       },
       [](Case& c, Cursor& in) {
         c.dropout = in.real();
         in.expect(':');
         c.dropout_seed = in.natural();
       }},
  };
}
Field convention_field() {
  return {"convention", convention_help(),
          [](const Case& c) { return fmt::format("{}", fmt::join(c.conventions.names(), ",")); },
          [](Case& c, Cursor& in) { parse_conventions(in, c.conventions); }};
}
// What the tensors hold, and how they lie in memory.
std::vector<Field> input_fields() {
  static const Case defaults;
  return {
      {"scores", "family of Q and K",
       [](const Case& c) {
         return c.scores == defaults.scores ? "" : std::string(name_of(c.scores));
       },
       [](Case& c, Cursor& in) { c.scores = in.value<Scores>(); }},
      values_field("family of V"),
      {"grad", "family of dO, as values (backward only)",
       [](const Case& c) {
         return c.gradient == defaults.gradient ? "" : std::string(name_of(c.gradient));
       },
       [](Case& c, Cursor& in) { c.gradient = in.value<Values>(); }},
      {"dlse",
       "family of dLSE, as values (backward only); without it the loss does not depend on LSE",
       [](const Case& c) {
         return c.lse_gradient ? std::string(name_of(*c.lse_gradient)) : std::string();
       },
       [](Case& c, Cursor& in) { c.lse_gradient = in.value<Values>(); }},
      {"hidden",
       "what K and V hold where lengths and starts hide them: " + one_of(values_of<Hidden>),
       [](const Case& c) {
         return c.hidden == Hidden::generated ? "" : std::string(name_of(c.hidden));
       },
       [](Case& c, Cursor& in) { c.hidden = in.value<Hidden>(); }},
      {"poke",
       "elements overwritten: v:b:h:i:d=nan, separated by ';' (q, k, v, m for the bias, g for dO)",
       print_pokes, [](Case& c, Cursor& in) { parse_pokes(in, c); }},
      seed_field(),
      {"layout",
       one_of(values_of<LayoutKind>) +
           " (rows so far apart that offsets need 64 bits); for all, or as q:bshd,o:padded (g for "
           "dO, which otherwise has that of O)",
       [](const Case& c) {
         return print_layouts<4>(attention_tensors,
                                 {c.q_layout, c.k_layout, c.v_layout, c.o_layout}, c.d_o_layout);
       },
       [](Case& c, Cursor& in) {
         parse_layouts(in, attention_tensors, 4, [&](std::size_t t, LayoutKind kind) {
           if (t == 4) c.d_o_layout = kind;
           else *std::array{&c.q_layout, &c.k_layout, &c.v_layout, &c.o_layout}[t] = kind;
         });
       }},
  };
}
// The cache from which keys and values come.
std::vector<Field> cache_fields() {
  return {
      {"cache",
       "keys and values come out of a cache, the rows are the last tokens: contiguous, paged:PAGE "
       "or latent:PAGE:RANK+ROTARY",
       [](const Case& c) { return print_cache(c.cache); },
       [](Case& c, Cursor& in) { parse_cache(in, c.cache); }},
      {"store",
       "dtype of the cache, and elements a scale (f8, f4): f8e4m3/32; default: that of Q, one "
       "scale a token and head; scales are " +
           one_of(values_of<CacheScale>) + ": f8e4m3/32:f32",
       [](const Case& c) {
         const CacheSpec& k = c.cache;
         if (!k.dtype && k.group == 0 && k.scale == CacheScale::e8m0) return std::string();
         return std::string(format(c.cache_dtype()).name) +
                (k.group > 0 ? fmt::format("/{}", k.group) : "") +
                (k.scale != CacheScale::e8m0 ? fmt::format(":{}", name_of(k.scale)) : "");
       },
       [](Case& c, Cursor& in) {
         c.cache.dtype = in.value<Dtype>();
         if (in.accept('/')) c.cache.group = in.integer();
         if (in.accept(':')) c.cache.scale = in.value<CacheScale>();
       }},
      {"pages",
       "how K and V lie in the pages that a kernel gets: " + one_of(values_of<PageOrder>) +
           " (in one buffer, [page][2][tokens][heads][D] or [page][tokens][heads][2][D])",
       [](const Case& c) {
         return c.cache.order == PageOrder::apart ? std::string()
                                                  : std::string(name_of(c.cache.order));
       },
       [](Case& c, Cursor& in) { c.cache.order = in.value<PageOrder>(); }},
      {"chunks",
       "rows of each call after another, the last again and again: 5,1; default: one call",
       [](const Case& c) { return print_list(c.cache.chunks); },
       [](Case& c, Cursor& in) { c.cache.chunks = in.integers(); }},
  };
}

const std::vector<Field>& attention_fields() {
  static const std::vector<Field> table = [] {
    std::vector<Field> all = shape_fields();
    for (const std::vector<Field>& part : {mask_fields(), input_fields(), cache_fields()})
      all.insert(all.end(), part.begin(), part.end());
    all.insert(all.end(), {convention_field(), threads_field(), target_field(),
                           rows_field("judge so many seeded rows of each head; 0: all")});
    return all;
  }();
  return table;
}

const std::vector<Field>& fields(Operation operation) {
  return operation == Operation::product ? product_fields() : attention_fields();
}

// Sets the fields that a line holds from a column on.
void parse_fields(Case& c, std::string_view line, std::size_t at) {
  std::vector<std::string_view> seen;
  while ((at = line.find_first_not_of(' ', at)) != std::string_view::npos) {
    const std::size_t end = std::min(line.find(' ', at), line.size());
    const std::size_t equals = std::min(line.find('=', at), end);
    const std::string_view name = line.substr(at, equals - at);
    const std::vector<Field>& known = fields(c.operation);
    const auto field =
        std::find_if(known.begin(), known.end(), [&](const Field& f) { return f.name == name; });
    if (field == known.end()) {
      std::vector<std::string_view> names;
      for (const Field& f : known) names.push_back(f.name);
      throw CaseError(at + 1, fmt::format("unknown field '{}'; the fields are {}", name,
                                          fmt::join(names, ", ")));
    }
    if (std::find(seen.begin(), seen.end(), name) != seen.end())
      throw CaseError(at + 1, fmt::format("field '{}' stands twice", name));
    seen.push_back(name);
    if (field->is_flag && equals != end)
      throw CaseError(equals + 1, fmt::format("'{}' is a flag and takes no value", name));
    if (!field->is_flag && equals == end)
      throw CaseError(end + 1, fmt::format("expected '=' and a value after '{}'", name));
    Cursor in(line, name, std::min(equals + 1, end), end);
    field->parse(c, in);
    in.expect_end();
    at = end;
  }
}

}  // namespace

std::string print_case(const Case& c) {
  std::string line(name_of(c.operation));
  for (const Field& f : fields(c.operation)) {
    const std::string text = f.print(c);
    if (text.empty()) continue;
    line += ' ';
    if (!f.is_flag) (line += f.name) += '=';
    line += text;
  }
  return line;
}

Case parse_case(std::string_view line) {
  Case c;
  const std::size_t at = std::min(line.find_first_not_of(' '), line.size());
  const std::size_t word_end = std::min(line.find(' ', at), line.size());
  const std::string_view word = line.substr(at, word_end - at);
  const std::optional<Operation> operation = value_named<Operation>(word);
  if (!operation)
    throw CaseError(at + 1, fmt::format("expected an operation ({}), found '{}'",
                                        fmt::join(names_of(values_of<Operation>), ", "), word));
  c.operation = *operation;
  parse_fields(c, line, word_end);
  check_case(c);
  return c;
}

void set_fields(Case& c, std::string_view text) { parse_fields(c, text, 0); }

std::string case_help() {
  std::string text =
      fmt::format("OPERATION FIELD=VALUE ...   (defaults may be left out)\n  operations: {}\n",
                  fmt::join(names_of(values_of<Operation>), ", "));
  text += "attention, backward:\n";
  for (const Field& f : attention_fields()) text += fmt::format("  {:<17} {}\n", f.name, f.help);
  text += "product:\n";
  for (const Field& f : product_fields()) text += fmt::format("  {:<17} {}\n", f.name, f.help);
  text += fmt::format("  families of scores: {}\n", fmt::join(names_of(values_of<Scores>), ", "));
  text += fmt::format("  families of values: {}\n", fmt::join(names_of(values_of<Values>), ", "));
  text += fmt::format("  families of weights: {}\n  families of scales: {}\n",
                      fmt::join(names_of(values_of<Weights>), ", "),
                      fmt::join(names_of(values_of<ScaleFamily>), ", "));
  return text;
}

}  // namespace assay
