#include "harness/candidates/wrong_calls.h"

#include <fmt/format.h>

#include <initializer_list>
#include <limits>
#include <utility>

namespace assay {
namespace {

using Arguments = KernelProcess::Arguments;

constexpr std::uint8_t unknown_code = 99;
constexpr const char* axes[] = {"batches", "heads", "rows", "columns"};

// The arguments of an attention call, which may be changed until the call is made. Absent ones are
// null.
struct Attending {
  Attending(KernelCall& call, Arguments& arguments)
      : a(arguments),
        p(*call.edit(arguments.problem)),
        q(call.edit(p.q)),
        k(call.edit(p.k)),
        v(call.edit(p.v)),
        keep(call.edit(p.keep)),
        bias(call.edit(p.bias)),
        o(call.edit(a.o)),
        lse(call.edit(a.lse)),
        d_o(call.edit(a.d_o)),
        gradients(call.edit(a.gradients)),
        dq(gradients ? call.edit(gradients->dq) : nullptr),
        pages(call.edit(a.pages)),
        paged_k(pages ? call.edit(pages->k) : nullptr) {}

  Arguments& a;
  assay_attention& p;
  assay_tensor *q, *k, *v, *keep, *bias, *o, *lse, *d_o;
  assay_gradients* gradients;
  assay_tensor* dq;
  assay_pages* pages;
  assay_tensor* paged_k;

  std::int64_t batch() const { return q->shape[0]; }
  std::int64_t heads() const { return q->shape[1]; }
  std::int64_t kv_heads() const { return k->shape[1]; }
  std::int64_t keys() const { return k->shape[2]; }
};

// One less on an axis of a tensor that has at least two there.
std::string shorten(const char* name, assay_tensor* t, std::size_t axis) {
  if (!t || t->shape[axis] < 2) return {};
  --t->shape[axis];
  return fmt::format("{} with {} {} instead of {}", name, t->shape[axis], axes[axis],
                     t->shape[axis] + 1);
}

std::string heads(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  if (c.kv_heads() < 2) return {};
  const std::int64_t fewer = c.heads() - 1;
  for (assay_tensor* t : {c.q, c.keep, c.bias, c.o, c.lse, c.d_o, c.dq})
    if (t) t->shape[1] = fewer;
  for (std::int64_t* count : {&c.p.alibi_slope_count, &c.p.sink_count})
    if (*count > 0) *count = fewer;
  return fmt::format("{} query heads over {} key/value heads", fewer, c.kv_heads());
}

std::string columns_of_keys(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  if (c.paged_k && c.paged_k->shape[3] > 1) --c.paged_k->shape[3];
  return shorten("K", c.k, 3);
}

std::string keys_of_values(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return shorten("V", c.v, 2);
}

std::string heads_of_values(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return shorten("V", c.v, 1);
}

std::string batches_of_keys(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return shorten("K", c.k, 0);
}

std::string rows_of_output(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return c.gradients ? shorten("dQ", c.dq, 2) : shorten("O", c.o, 2);
}

std::string columns_of_output(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return c.gradients ? shorten("dO", c.d_o, 3) : shorten("O", c.o, 3);
}

std::string rows_of_lse(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return shorten("LSE", c.lse, 2);
}

std::string negative_rows(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  for (assay_tensor* t : {c.q, c.keep, c.bias, c.o, c.lse, c.d_o, c.dq})
    if (t) t->shape[2] = -1;
  return "-1 rows";
}

std::string rank(KernelCall& call, Arguments& arguments) {
  Attending(call, arguments).q->rank = 3;
  return "Q of rank 3";
}

std::string unknown_dtype(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  for (assay_tensor* t : {c.q, c.k, c.v}) t->dtype.code = unknown_code;
  return fmt::format("Q, K and V of dtype code {}", unknown_code);
}

std::string other_dtype(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  c.k->dtype = {ASSAY_INT, 64, 1};
  return "K of int64";
}

std::string null_query(KernelCall& call, Arguments& arguments) {
  Attending(call, arguments).p.q = nullptr;
  return "Q is NULL";
}

std::string null_keys(KernelCall& call, Arguments& arguments) {
  Attending(call, arguments).p.k = nullptr;
  return "K is NULL";
}

std::string null_output(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  if (c.gradients) c.gradients->dq = nullptr;
  else c.a.o = nullptr;
  return c.gradients ? "dQ is NULL" : "O is NULL";
}

std::string scale(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  c.p.flags &= ~static_cast<std::uint32_t>(ASSAY_DEFAULT_SCALE);
  c.p.scale = std::numeric_limits<float>::quiet_NaN();
  return "a scale of NaN";
}

// Another entry for the first sequence.
template <class T>
bool set_first(KernelCall& call, const T* list, T to) {
  T* entry = call.edit(list);
  if (entry) *entry = to;
  return entry != nullptr;
}

std::string long_length(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  if (!set_first(call, c.p.key_lengths, c.keys() + 1)) return {};
  return fmt::format("a key length of {} with {} keys", c.keys() + 1, c.keys());
}

std::string negative_length(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return set_first(call, c.p.key_lengths, std::int64_t{-1}) ? "a key length of -1" : "";
}

std::string late_start(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  if (!set_first(call, c.p.key_starts, c.keys() + 1)) return {};
  return fmt::format("a key start of {} with {} keys", c.keys() + 1, c.keys());
}

std::string negative_start(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  return set_first(call, c.p.key_starts, std::int64_t{-1}) ? "a key start of -1" : "";
}

// A list with an entry too much, which lies behind the list.
std::string counts(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  const std::pair<std::int64_t*, const char*> lists[] = {
      {&c.p.key_length_count, "key lengths"},
      {&c.p.key_start_count, "key starts"},
      {&c.p.offset_count, "offsets"},
      {&c.p.alibi_slope_count, "ALiBi slopes"},
      {&c.p.sink_count, "sinks"},
      {&c.p.query_segment_count, "query segments"},
  };
  for (const auto& [count, name] : lists) {
    if (*count == 0) continue;
    ++*count;
    return fmt::format("{} {} instead of {}", *count, name, *count - 1);
  }
  return {};
}

std::string unknown_page(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  if (!c.pages) return {};
  const auto pages = static_cast<std::int32_t>(c.paged_k->shape[0]);
  if (!set_first(call, c.pages->block_table, pages)) return {};
  return fmt::format("page {} of {} in the block table", pages, pages);
}

std::string no_page_size(KernelCall& call, Arguments& arguments) {
  const Attending c(call, arguments);
  if (!c.pages) return {};
  c.pages->page_size = 0;
  return "pages of 0 tokens";
}

constexpr WrongCall attention_calls[] = {
    {"heads", heads},
    {"columns-of-k", columns_of_keys},
    {"keys-of-v", keys_of_values},
    {"heads-of-v", heads_of_values},
    {"batches-of-k", batches_of_keys},
    {"rows-of-output", rows_of_output},
    {"columns-of-output", columns_of_output},
    {"rows-of-lse", rows_of_lse},
    {"negative-rows", negative_rows},
    {"rank", rank},
    {"unknown-dtype", unknown_dtype},
    {"other-dtype", other_dtype},
    {"null-q", null_query},
    {"null-k", null_keys},
    {"null-output", null_output},
    {"scale", scale},
    {"long-length", long_length},
    {"negative-length", negative_length},
    {"late-start", late_start},
    {"negative-start", negative_start},
    {"count", counts},
    {"unknown-page", unknown_page},
    {"page-size", no_page_size},
};

std::string columns_of_a(KernelCall& call, Arguments& arguments) {
  return shorten("A", call.edit(arguments.a), 3);
}

std::string columns_of_c(KernelCall& call, Arguments& arguments) {
  return shorten("C", call.edit(arguments.c), 3);
}

std::string rows_of_c(KernelCall& call, Arguments& arguments) {
  return shorten("C", call.edit(arguments.c), 2);
}

std::string format_of_weights(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.w)->format = unknown_code;
  return fmt::format("weights of format {}", unknown_code);
}

std::string group_of_weights(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.w)->group_size = -7;
  return "groups of -7 weights";
}

std::string negative_depth(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.w)->k = -1;
  return "weights with -1 rows";
}

std::string null_codes(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.w)->codes = nullptr;
  return "the codes of the weights are NULL";
}

std::string null_scales(KernelCall& call, Arguments& arguments) {
  assay_low_bit& w = *call.edit(arguments.w);
  if (!w.scales) return {};
  w.scales = nullptr;
  return "the scales of the weights are NULL";
}

std::string dtype_of_a(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.a)->dtype.code = unknown_code;
  return fmt::format("A of dtype code {}", unknown_code);
}

std::string rank_of_a(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.a)->rank = 3;
  return "A of rank 3";
}

std::string null_a(KernelCall&, Arguments& arguments) {
  arguments.a = nullptr;
  return "A is NULL";
}

std::string null_c(KernelCall&, Arguments& arguments) {
  arguments.c = nullptr;
  return "C is NULL";
}

constexpr WrongCall product_calls[] = {
    {"columns-of-a", columns_of_a},
    {"columns-of-c", columns_of_c},
    {"rows-of-c", rows_of_c},
    {"format", format_of_weights},
    {"group", group_of_weights},
    {"negative-depth", negative_depth},
    {"null-codes", null_codes},
    {"null-scales", null_scales},
    {"dtype-of-a", dtype_of_a},
    {"rank-of-a", rank_of_a},
    {"null-a", null_a},
    {"null-c", null_c},
};

}  // namespace

std::span<const WrongCall> wrong_attention_calls() { return attention_calls; }
std::span<const WrongCall> wrong_product_calls() { return product_calls; }

}  // namespace assay
