#include "harness/judging/append.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "harness/candidates/paged.h"
#include "harness/judging/guarded_call.h"

namespace assay {
namespace {

struct Part {
  const char* name;
  const PagedTensor &mine, &rule;
};

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.size_in_bytes() == b.size_in_bytes() &&
         (a.size_in_bytes() == 0 || std::memcmp(a.bytes(), b.bytes(), a.size_in_bytes()) == 0);
}

// Takes over from the candidate what no rule says: the bits of a NaN, and the nibble behind a row
// of an odd number of nibbles.
void take_over_free_bits(const Part& part, Index page, Index slot) {
  const TensorView &mine = part.mine.elements.view(), &rule = part.rule.elements.view();
  const auto copy = [&](Index at) {
    const Index bytes = format(mine.dtype).bits / 8;
    std::memcpy(static_cast<std::byte*>(rule.data) + at * bytes,
                static_cast<const std::byte*>(mine.data) + at * bytes, usize(bytes));
  };
  const Index columns = mine.shape[3];
  for (Index g = 0; g < mine.shape[1]; ++g) {
    for (Index d = 0; d < columns && mine.dtype != Dtype::f4e2m1; ++d) {
      const Index at = mine.at(page, g, slot, d);
      if (std::isnan(load(mine, at)) && std::isnan(load(rule, at))) copy(at);
    }
    if (mine.dtype == Dtype::f4e2m1 && columns % 2)
      store(rule, rule.at(page, g, slot, columns - 1) + 1,
            load(mine, mine.at(page, g, slot, columns - 1) + 1));
  }
}

bool same_number(double x, double y) {
  return x == y ? std::signbit(x) == std::signbit(y) : std::isnan(x) && std::isnan(y);
}

// The first element or scale of a token that is not stored as the rule says.
std::string compare_token(const Part& part, Index b, Index j, Index page, Index slot) {
  const auto compare = [&](const char* what, const TensorView& mine,
                           const TensorView& rule) -> std::string {
    for (Index g = 0; mine && g < mine.shape[1]; ++g)
      for (Index d = 0; d < mine.shape[3]; ++d) {
        const double got = load(mine, mine.at(page, g, slot, d)),
                     wanted = load(rule, rule.at(page, g, slot, d));
        if (!same_number(got, wanted))
          return fmt::format(
              "{} of token {} of sequence {} (head {}, {} {}) is stored as {:.9g}, "
              "by the rule {:.9g}",
              part.name, j, b, g, what, d, got, wanted);
      }
    return {};
  };
  std::string wrong = compare("scale", part.mine.scales.view(), part.rule.scales.view());
  if (!wrong.empty()) return wrong;
  return compare("column", part.mine.elements.view(), part.rule.elements.view());
}

struct Pages {
  PagedTokens mine, rule;
  std::array<Part, 2> parts() const { return {{{"K", mine.k, rule.k}, {"V", mine.v, rule.v}}}; }
};

std::string compare_pages(const Case& c, const Pages& pages, Index first, Index last) {
  for (const Part& part : pages.parts()) {
    for (Index b = 0; b < c.shape.batch; ++b)
      for (Index j = std::max(first, start_of(c, b)); j < std::min(last, length_of(c, b)); ++j) {
        const Index at = pages.rule.slot_of(b, j);
        const Index page = at / pages.rule.size, slot = at % pages.rule.size;
        if (std::string wrong = compare_token(part, b, j, page, slot); !wrong.empty()) return wrong;
        take_over_free_bits(part, page, slot);
      }
    if (!same_bytes(part.mine.elements, part.rule.elements) ||
        !same_bytes(part.mine.scales, part.rule.scales))
      return fmt::format("a byte of the pages of {} that belongs to no new token was changed",
                         part.name);
    if (!part.mine.elements.guards_intact() || !part.mine.scales.guards_intact())
      return fmt::format("the pages of {}: a guard band was overwritten", part.name);
  }
  return {};
}

// The tokens [first, last) of a tensor.
TensorView tokens_of(const TensorView& t, Index first, Index last) {
  TensorView part = t;
  part.origin = t.at(0, 0, first, 0);
  part.shape[2] = last - first;
  return part;
}

// Appends the tokens [first, last) of every sequence in one call, and compares.
std::string append(const Case& c, Candidate& candidate, const Inputs& in, Index first, Index last,
                   Pages& pages) {
  const TensorView k = tokens_of(in.token_k.view(), first, last),
                   v = tokens_of(in.token_v.view(), first, last);
  std::vector<Index> slots;
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index j = first; j < last; ++j)
      slots.push_back(j < start_of(c, b) || j >= length_of(c, b) ? -1 : pages.rule.slot_of(b, j));
  const Request request{AppendCall{k, v, slots, pages.mine}, execution_of(c)};
  const WatchedInputs watched{{{"k", &in.token_k}, {"v", &in.token_v}}};
  if (std::string wrong = call_guarded(candidate, request, watched, {}, Poison::nan);
      !wrong.empty())
    return wrong;
  store_tokens(c, in, first, last, pages.rule);
  return compare_pages(c, pages, first, last);
}

// The numbers of tokens after each call.
std::vector<Index> steps_of(const Case& c) {
  const Index past = c.shape.keys - c.shape.rows;
  std::vector<Index> steps = {past / 3, past};
  for (const Chunk& rows : chunks_of(c)) steps.push_back(past + rows.first + rows.count);
  return steps;
}

}  // namespace

JudgedBits judge_append(const Case& c, Candidate& candidate, const Inputs& in) {
  if (!c.cache || !candidate.abilities().append || !without_pages(c).empty()) return {};
  const Index stored = c.shape.batch * c.shape.kv_heads * c.shape.keys;
  JudgedBits judged{true, stored * (c.shape.dim + c.shape.value_dim), {}};
  for (const std::byte filling : {std::byte{0xFF}, std::byte{0x11}}) {
    Pages pages{empty_pages(c, filling), empty_pages(c, filling)};
    const TensorView k = tokens_of(in.token_k.view(), 0, c.shape.keys),
                     v = tokens_of(in.token_v.view(), 0, c.shape.keys);
    if (!why_unsupported(candidate, AppendCall{k, v, {}, pages.mine}).empty()) return {};
    Index first = 0;
    for (const Index last : steps_of(c)) {
      if (last <= first) continue;
      judged.wrong = append(c, candidate, in, first, last, pages);
      if (!judged.wrong.empty()) return judged.wrong = "append: " + judged.wrong, judged;
      first = last;
    }
  }
  return judged;
}

}  // namespace assay
