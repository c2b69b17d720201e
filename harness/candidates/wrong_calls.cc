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

std::string depth_of_a(KernelCall& call, Arguments& arguments) {
  assay_low_bit& a = *call.edit(arguments.a_low);
  if (a.k < 2) return {};
  --a.k;
  return fmt::format("A with {} columns instead of {}", a.k, a.k + 1);
}

std::string format_of_a(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.a_low)->format = unknown_code;
  return fmt::format("A of format {}", unknown_code);
}

std::string codes_of_a(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.a_low)->codes = nullptr;
  return "the codes of A are NULL";
}

constexpr WrongCall low_bit_product_calls[] = {
    {"columns-of-a", depth_of_a},
    {"columns-of-c", columns_of_c},
    {"rows-of-c", rows_of_c},
    {"format", format_of_weights},
    {"format-of-a", format_of_a},
    {"group", group_of_weights},
    {"negative-depth", negative_depth},
    {"null-codes", null_codes},
    {"null-codes-of-a", codes_of_a},
    {"null-scales", null_scales},
    {"null-c", null_c},
};

// ---- Quantizers and dequantizers ----

std::string rows_of_weights(KernelCall& call, Arguments& arguments) {
  return shorten("W", call.edit(arguments.a), 2);
}

std::string columns_of_weights(KernelCall& call, Arguments& arguments) {
  return shorten("W", call.edit(arguments.a), 3);
}

std::string dtype_of_weights(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.a)->dtype.code = unknown_code;
  return fmt::format("W of dtype code {}", unknown_code);
}

std::string rank_of_weights(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.a)->rank = 3;
  return "W of rank 3";
}

std::string null_weights(KernelCall&, Arguments& arguments) {
  arguments.a = nullptr;
  return "W is NULL";
}

std::string format_of_output(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.to)->format = unknown_code;
  return fmt::format("an output of format {}", unknown_code);
}

std::string group_of_output(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.to)->group_size = -7;
  return "an output in groups of -7 weights";
}

std::string depth_of_output(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.to)->k = -1;
  return "an output with -1 rows";
}

std::string codes_of_output(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.to)->codes = nullptr;
  return "the codes of the output are NULL";
}

std::string scales_of_output(KernelCall& call, Arguments& arguments) {
  assay_low_bit_output& to = *call.edit(arguments.to);
  if (!to.scales) return {};
  to.scales = nullptr;
  return "the scales of the output are NULL";
}

std::string null_matrix(KernelCall&, Arguments& arguments) {
  arguments.to = nullptr;
  return "the output is NULL";
}

constexpr WrongCall quantize_calls[] = {
    {"rows-of-w", rows_of_weights},   {"columns-of-w", columns_of_weights},
    {"dtype-of-w", dtype_of_weights}, {"rank-of-w", rank_of_weights},
    {"null-w", null_weights},         {"format", format_of_output},
    {"group", group_of_output},       {"negative-depth", depth_of_output},
    {"null-codes", codes_of_output},  {"null-scales", scales_of_output},
    {"null-output", null_matrix},
};

std::string rows_of_numbers(KernelCall& call, Arguments& arguments) {
  return shorten("the output", call.edit(arguments.c), 2);
}

std::string columns_of_numbers(KernelCall& call, Arguments& arguments) {
  return shorten("the output", call.edit(arguments.c), 3);
}

std::string dtype_of_numbers(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.c)->dtype.code = unknown_code;
  return fmt::format("an output of dtype code {}", unknown_code);
}

std::string rank_of_numbers(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.c)->rank = 3;
  return "an output of rank 3";
}

std::string null_numbers(KernelCall&, Arguments& arguments) {
  arguments.c = nullptr;
  return "the output is NULL";
}

constexpr WrongCall dequantize_calls[] = {
    {"rows-of-output", rows_of_numbers},
    {"columns-of-output", columns_of_numbers},
    {"dtype-of-output", dtype_of_numbers},
    {"rank-of-output", rank_of_numbers},
    {"null-output", null_numbers},
    {"format", format_of_weights},
    {"group", group_of_weights},
    {"negative-depth", negative_depth},
    {"null-codes", null_codes},
    {"null-scales", null_scales},
};

// ---- Writers of pages ----

std::string columns_of_tokens(KernelCall& call, Arguments& arguments) {
  return shorten("K", call.edit(arguments.k), 3);
}

std::string columns_of_value_tokens(KernelCall& call, Arguments& arguments) {
  return shorten("V", call.edit(arguments.v), 3);
}

std::string heads_of_tokens(KernelCall& call, Arguments& arguments) {
  return shorten("K", call.edit(arguments.k), 1);
}

std::string heads_of_value_tokens(KernelCall& call, Arguments& arguments) {
  return shorten("V", call.edit(arguments.v), 1);
}

std::string value_tokens(KernelCall& call, Arguments& arguments) {
  return shorten("V", call.edit(arguments.v), 2);
}

std::string batches_of_value_tokens(KernelCall& call, Arguments& arguments) {
  return shorten("V", call.edit(arguments.v), 0);
}

std::string negative_tokens(KernelCall& call, Arguments& arguments) {
  for (const assay_tensor* t : {arguments.k, arguments.v}) call.edit(t)->shape[2] = -1;
  return "-1 tokens";
}

std::string rank_of_tokens(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.k)->rank = 3;
  return "K of rank 3";
}

std::string dtype_of_tokens(KernelCall& call, Arguments& arguments) {
  for (const assay_tensor* t : {arguments.k, arguments.v}) call.edit(t)->dtype.code = unknown_code;
  return fmt::format("K and V of dtype code {}", unknown_code);
}

std::string null_tokens(KernelCall&, Arguments& arguments) {
  arguments.k = nullptr;
  return "K is NULL";
}

std::string null_slots(KernelCall&, Arguments& arguments) {
  arguments.slots = nullptr;
  return "the slots are NULL";
}

std::string null_pages(KernelCall&, Arguments& arguments) {
  arguments.pages = nullptr;
  return "the pages are NULL";
}

std::string no_slots_in_pages(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.pages)->page_size = 0;
  return "pages of 0 tokens";
}

std::string null_pages_of_keys(KernelCall& call, Arguments& arguments) {
  call.edit(arguments.pages)->k = nullptr;
  return "the pages of K are NULL";
}

std::string null_scales_of_keys(KernelCall& call, Arguments& arguments) {
  assay_pages& pages = *call.edit(arguments.pages);
  if (!pages.k_scales) return {};
  pages.k_scales = nullptr;
  return "the scales of K are NULL";
}

std::string unknown_slot(KernelCall& call, Arguments& arguments) {
  const assay_pages& pages = *call.edit(arguments.pages);
  const std::int64_t slots = call.edit(pages.k)->shape[0] * pages.page_size;
  if (!set_first(call, arguments.slots, slots)) return {};
  return fmt::format("slot {} of {}", slots, slots);
}

std::string negative_slot(KernelCall& call, Arguments& arguments) {
  return set_first(call, arguments.slots, std::int64_t{-2}) ? "slot -2" : "";
}

constexpr WrongCall append_calls[] = {
    {"columns-of-k", columns_of_tokens},  {"columns-of-v", columns_of_value_tokens},
    {"heads-of-k", heads_of_tokens},      {"heads-of-v", heads_of_value_tokens},
    {"tokens-of-v", value_tokens},        {"batches-of-v", batches_of_value_tokens},
    {"negative-tokens", negative_tokens}, {"rank", rank_of_tokens},
    {"unknown-dtype", dtype_of_tokens},   {"null-k", null_tokens},
    {"null-slots", null_slots},           {"null-pages", null_pages},
    {"page-size", no_slots_in_pages},     {"null-pages-of-k", null_pages_of_keys},
    {"null-scales", null_scales_of_keys}, {"unknown-slot", unknown_slot},
    {"negative-slot", negative_slot},
};

}  // namespace

std::span<const WrongCall> wrong_attention_calls() { return attention_calls; }
std::span<const WrongCall> wrong_product_calls() { return product_calls; }
std::span<const WrongCall> wrong_low_bit_product_calls() { return low_bit_product_calls; }
std::span<const WrongCall> wrong_quantize_calls() { return quantize_calls; }
std::span<const WrongCall> wrong_dequantize_calls() { return dequantize_calls; }
std::span<const WrongCall> wrong_append_calls() { return append_calls; }

}  // namespace assay
