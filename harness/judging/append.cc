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

struct CacheTensor {
  const char* name;
  const PagedTensor &mine, &rule;
};

// Takes over from the candidate what no rule says: the bits of a NaN, and the nibble behind a row
// of an odd number of nibbles.
void take_over_free_bits(const CacheTensor& part, Index page, Index slot) {
  const TensorView &mine = part.mine.elements, &rule = part.rule.elements;
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

// The first element or scale of a token that is not stored as the rule says.
std::string compare_token(const CacheTensor& part, Index b, Index j, Index page, Index slot) {
  const auto compare = [&](const char* what, const TensorView& mine,
                           const TensorView& rule) -> std::string {
    for (Index g = 0; mine && g < mine.shape[1]; ++g)
      for (Index d = 0; d < mine.shape[3]; ++d) {
        const double got = load(mine, mine.at(page, g, slot, d)),
                     wanted = load(rule, rule.at(page, g, slot, d));
        if (!stored_alike(got, wanted))
          return fmt::format(
              "{} of token {} of sequence {} (head {}, {} {}) is stored as {:.9g}, "
              "by the rule {:.9g}",
              part.name, j, b, g, what, d, got, wanted);
      }
    return {};
  };
  std::string wrong = compare("scale", part.mine.scales, part.rule.scales);
  if (!wrong.empty()) return wrong;
  return compare("column", part.mine.elements, part.rule.elements);
}

struct Pages {
  PagedTokens mine, rule;
  std::array<CacheTensor, 2> parts() const {
    return {{{"K", mine.k, rule.k}, {"V", mine.v, rule.v}}};
  }
};

// The tokens [first, last) of every sequence, and the slots that they go to.
struct Appended {
  Index first, last;
  std::vector<Index> slots;
};

std::string compare_pages(const Pages& pages, const Appended& tokens) {
  for (std::size_t n = 0; n < tokens.slots.size(); ++n) {
    const Index at = tokens.slots[n], count = tokens.last - tokens.first;
    if (at < 0) continue;
    for (const CacheTensor& part : pages.parts()) {
      const Index page = at / pages.rule.size, slot = at % pages.rule.size;
      const auto b = static_cast<Index>(n) / count,
                 j = tokens.first + static_cast<Index>(n) % count;
      if (std::string wrong = compare_token(part, b, j, page, slot); !wrong.empty()) return wrong;
      take_over_free_bits(part, page, slot);
    }
  }
  const std::vector<PagedBytes> mine = pages.mine.parts(), rule = pages.rule.parts();
  for (std::size_t n = 0; n < mine.size(); ++n)
    if (!std::ranges::equal(mine[n].bytes, rule[n].bytes))
      return fmt::format("a byte of the pages of {} that belongs to no new token was changed",
                         mine[n].of);
  if (!pages.mine.guards_intact()) return "a guard band of the pages was overwritten";
  return {};
}

// Appends tokens in one call, and compares.
std::string append(const Case& c, Candidate& candidate, const Inputs& in, const Appended& tokens,
                   Pages& pages) {
  const TensorView k = tokens_between(in.token_k.view(), tokens.first, tokens.last),
                   v = tokens_between(in.token_v.view(), tokens.first, tokens.last);
  const Request request{AppendCall{k, v, tokens.slots, pages.mine}, execution_of(c)};
  const WatchedInputs watched{{{"k", &in.token_k}, {"v", &in.token_v}}};
  if (std::string wrong = call_guarded(candidate, request, watched, {}, Poison::nan);
      !wrong.empty())
    return wrong;
  store_tokens(c, in, tokens.first, tokens.last, tokens.slots, pages.rule);
  return compare_pages(pages, tokens);
}

// The numbers of tokens after each call.
std::vector<Index> steps_of(const Case& c) {
  const Index past = c.shape.keys - c.shape.rows;
  std::vector<Index> steps = {past / 3, past};
  for (const Chunk& rows : chunks_of(c)) steps.push_back(past + rows.first + rows.count);
  return steps;
}

// A call that writes where tokens were before, as a server of many sequences makes it when it gives
// their pages to others. A page may be copied before the call.
struct Rewriting {
  const char* name;
  Appended tokens;
  Index copied_from = -1;
};

// The tokens [0, count) of every sequence, each with its slot; -1 for a token that goes nowhere.
template <class Slot>
Appended first_tokens(const Case& c, Index count, const Slot& slot) {
  Appended tokens{0, count, {}};
  for (Index b = 0; b < c.shape.batch; ++b)
    for (Index i = 0; i < count; ++i) tokens.slots.push_back(slot(b, i));
  return tokens;
}

// Sequences are cut back and appended to again; they go round in a ring; a page that one sequence
// dropped belongs to another one; and a sequence that shares its last page with its source gets a
// copy of that page, into which it writes while the source writes into its own.
std::vector<Rewriting> rewritings(const Case& c, const PagedTokens& pages) {
  const auto begin = [&](Index b) { return start_of(c, b); };
  const auto stored = [&](Index b) { return std::max<Index>(0, length_of(c, b) - begin(b)); };
  const Index third = std::max<Index>(1, c.shape.keys / 3);
  std::vector<Rewriting> all;
  all.push_back({"a sequence that was cut back", first_tokens(c, third, [&](Index b, Index i) {
                   return i < stored(b) && third <= stored(b)
                              ? pages.slot_of(b, length_of(c, b) - third + i)
                              : -1;
                 })});
  all.push_back({"a ring of pages", first_tokens(c, third, [&](Index b, Index i) {
                   const Index n = stored(b);
                   return third < n ? pages.slot_of(b, begin(b) + (n - third / 2 - 1 + i) % n) : -1;
                 })});
  const Index last = c.shape.batch - 1;
  if (pages.spare < 0 || last < 0 || stored(0) == 0) return all;
  const Index dropped = pages.slot_of(0, begin(0)) / pages.size * pages.size;
  const Index reused = std::min(pages.size, c.shape.keys);
  all.push_back(
      {"a page that another sequence dropped",
       first_tokens(c, reused, [&](Index b, Index i) { return b == last ? dropped + i : -1; })});
  const Index open = pages.slot_of(0, length_of(c, 0) - 1), slot = open % pages.size;
  all.push_back(
      {"a copy of a page that a fork shared",
       first_tokens(c, 1,
                    [&](Index b, Index) { return b == 0 ? pages.spare * pages.size + slot : -1; }),
       open / pages.size});
  all.push_back({"a page whose copy a fork has",
                 first_tokens(c, 1, [&](Index b, Index) { return b == 0 ? open : -1; })});
  return all;
}

// What is wrong with the pages after every call; empty if nothing is.
std::string judge_calls(const Case& c, Candidate& candidate, const Inputs& in, Pages& pages) {
  Index first = 0;
  for (const Index last : steps_of(c)) {
    if (last <= first) continue;
    if (std::string wrong =
            append(c, candidate, in, {first, last, slots_of(c, pages.rule, first, last)}, pages);
        !wrong.empty())
      return "append: " + wrong;
    first = last;
  }
  if (c.shape.keys == 0) return {};
  for (const Rewriting& r : rewritings(c, pages.rule)) {
    for (const PagedTokens* p : {&pages.mine, &pages.rule})
      if (r.copied_from >= 0) p->copy_page(r.copied_from, p->spare);
    if (std::string wrong = append(c, candidate, in, r.tokens, pages); !wrong.empty())
      return fmt::format("append to {}: {}", r.name, wrong);
  }
  return {};
}

// Appends all tokens in one call.
class Appending : public KnownCall {
 public:
  Appending(const Case& c, Surroundings around)
      : c_(c),
        in_(c_, around),
        k_(tokens_between(in_.token_k.view(), 0, c.shape.keys)),
        v_(tokens_between(in_.token_v.view(), 0, c.shape.keys)) {
    prepare({});
    tokens_ = {0, c.shape.keys, slots_of(c_, pages_.rule, 0, c.shape.keys)};
  }
  Call call() override { return AppendCall{k_, v_, tokens_.slots, pages_.mine}; }
  WatchedInputs watched() const override { return {{{"k", &in_.token_k}, {"v", &in_.token_v}}}; }
  void prepare(std::byte filling) override {
    pages_.mine = empty_pages(c_, in_, filling);
    pages_.rule = empty_pages(c_, in_, filling);
  }
  std::vector<WrittenBytes> written() override {
    std::vector<WrittenBytes> parts;
    for (const PagedBytes& part : pages_.mine.parts())
      parts.push_back({fmt::format("the pages of {}", part.of), part.bytes});
    return parts;
  }
  std::string wrong() override {
    store_tokens(c_, in_, tokens_.first, tokens_.last, tokens_.slots, pages_.rule);
    return compare_pages(pages_, tokens_);
  }

 private:
  const Case c_;
  const Inputs in_;
  const TensorView k_, v_;
  Pages pages_;
  Appended tokens_{};
};

JudgedBits judge_append(const Case& c, Candidate& candidate, const Inputs& in) {
  if (!c.cache || !candidate.abilities().append || !without_pages(c).empty()) return {};
  const Index stored = c.shape.batch * c.shape.kv_heads * c.shape.keys;
  JudgedBits judged{true, stored * (c.shape.dim + c.shape.value_dim), {}, {}};
  for (const std::byte filling : {std::byte{0xFF}, std::byte{0x11}}) {
    Pages pages{empty_pages(c, in, filling), empty_pages(c, in, filling)};
    const TensorView k = tokens_between(in.token_k.view(), 0, c.shape.keys),
                     v = tokens_between(in.token_v.view(), 0, c.shape.keys);
    if (!why_unsupported(candidate, AppendCall{k, v, {}, pages.mine}).empty()) return {};
    judged.wrong = judge_calls(c, candidate, in, pages);
    if (!judged.wrong.empty()) return judged;
  }
  return judged;
}

}  // namespace

BitsOperation appending(const Inputs& in) {
  const auto judge = [&in](const Case& c, Candidate& candidate) {
    return judge_append(c, candidate, in);
  };
  return {"append", Output::tokens, "every token is stored by the rule, bit for bit", judge,
          known_call<Appending>(in.around)};
}

}  // namespace assay
