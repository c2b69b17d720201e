#include "harness/candidates/library_candidate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <utility>

#include "harness/candidates/cached.h"
#include "harness/candidates/declared_arithmetic.h"
#include "harness/candidates/kernel_process.h"
#include "harness/candidates/paged.h"
#include "harness/candidates/wrong_calls.h"
#include "harness/faults/planted_faults.h"
#include "kernels/c_interface/c_fields.h"

namespace assay {
namespace {

using kernels::Status;
using kernels::StatusCode;

assay_dtype c_dtype_of(Dtype d) {
  return {static_cast<std::uint8_t>(d == Dtype::bf16 ? ASSAY_BFLOAT : ASSAY_FLOAT),
          static_cast<std::uint8_t>(format(d).bits), 1};
}

// Which tensors of a problem lie in the arena: all of them, none (for questions), or all but K and
// V, which are in a cache.
enum class Elements { all, none, but_keys };

const assay_attention* add_problem(KernelCall& call, const Attention& p, Elements elements) {
  const bool with_elements = elements != Elements::none;
  const auto tensor = [&](const char* name, const TensorView& t) {
    return with_elements ? call.add_input(name, t) : call.add_shape(t);
  };
  assay_attention a;
  assay_attention_init(&a);
  a.q = tensor("q", p.q);
  a.k = elements == Elements::all ? tensor("k", p.k) : call.add_shape(p.k);
  a.v = elements == Elements::all ? tensor("v", p.v) : call.add_shape(p.v);
  kernels::for_each_c_number([&](const auto& field, auto c) { a.*c = p.*field.number; });
  a.flags = 0;
  for (std::size_t k = 0; k < attention_flags.size(); ++k)
    if (p.*attention_flags[k].flag) a.flags |= kernels::c_flags[k];
  const AttentionShape& s = p.shape;
  if (p.bias) {
    TensorView bias = p.bias;  // for a chunk of rows it may still have the shape of all rows
    bias.shape = s.pair_extents();
    a.bias = tensor("bias", bias);
  }
  if (p.keep) {
    const TensorView bytes{const_cast<std::uint8_t*>(p.keep.data), Dtype::f8e5m2, s.pair_extents(),
                           p.keep.stride, 0};
    const assay_dtype boolean = {ASSAY_BOOL, 8, 1};
    a.keep =
        with_elements ? call.add_input("keep", bytes, boolean) : call.add_shape(bytes, boolean);
  }
  kernels::for_each_c_list([&](const auto& field, const auto& c) {
    a.*c.entries = call.add_list(p.*field.list);
    a.*c.count = std::ssize(p.*field.list);
  });
  return call.add(a);
}

// A library gives gradients alone if it has no forward pass, or one that gives no LSE.
bool gradients_alone(const LibraryFacts& facts) {
  return facts.backward && !(facts.forward && facts.lse);
}

Abilities abilities_of(const LibraryFacts& facts) {
  return {.forward = facts.forward,
          .cache = facts.decode,
          .backward = facts.backward,
          .product = facts.product || facts.product_low_bit,
          .quantizer = facts.quantize,
          .dequantizer = facts.dequantize,
          .append = facts.append,
          .lse = facts.lse,
          .gradients_alone = gradients_alone(facts),
          .d_sink = facts.d_sink,
          .stages = facts.probes,
          .promises_bits = false,
          .promises = facts.promises,
          .variants = facts.variants,
          .variants_differ = facts.variants_differ,
          .own_process = true,
          .at_once = facts.reentrant,
          .pages = facts.decode,
          .batches = facts.product_batch};
}

class Library : public Candidate, private Guest {
 public:
  Library(const std::string& path, std::unique_ptr<KernelProcess> process)
      : Candidate({.name = "lib:" + path,
                   .abilities = abilities_of(process->facts()),
                   .conventions = process->facts().conventions}),
        path_(path),
        own_process_(std::move(process)),
        process_(*own_process_) {}

  std::string unsupported(const Call& call) const override {
    return std::visit(
        ByCall{[&](const ForwardCall& c) { return ask(ASSAY_FORWARD, c.problem, c.out.o.dtype); },
               [&](const CachedCall& c) {
                 std::string why = unsupported_cached(c.c, c.inputs.problem);
                 if (why.empty() && c.pages == PagesFrom::writer)
                   why = unsupported_append(c.inputs.token_k.view(), c.inputs.token_v.view(),
                                            page_shapes(c.c));
                 return why;
               },
               [&](const BackwardCall& c) {
                 return unsupported_backward(c.problem, c.out.dq.dtype, bool{c.in.d_lse});
               },
               [&](const ProductCall& c) { return unsupported_product(c.problem, c.c.dtype); },
               [&](const QuantizeCall& c) {
                 return unsupported_quantize(c.w, described_output(c.format, c.w, c.group));
               },
               [&](const DequantizeCall& c) {
                 return unsupported_dequantize(described(c.w), c.to.dtype);
               },
               [&](const AppendCall& c) { return unsupported_append(c.k, c.v, c.to.views()); }},
        call);
  }
  std::optional<Arithmetic> arithmetic(const Call& call, const kernels::Execution&) const override {
    const auto declared = declared_.find({operation_of(call), variant()});
    if (declared == declared_.end()) return std::nullopt;
    return declared->second;
  }
  Status run(const Request& r) override {
    return std::visit(
        ByCall{[&](const ForwardCall& c) { return run(ASSAY_FORWARD, c, r); },
               [&](const CachedCall& c) { return decode(c, r); },
               [&](const BackwardCall& c) { return run(ASSAY_BACKWARD, c, r); },
               [&](const ProductCall& c) { return run(ASSAY_PRODUCT, c, r); },
               [&](const QuantizeCall& c) { return run(quantize_operation, c, r); },
               [&](const DequantizeCall& c) { return run(dequantize_operation, c, r); },
               [&](const AppendCall& c) { return run(append_operation, c, r); }},
        r.call);
  }
  Guest* guest() override { return this; }

 private:
  std::string declines(const Case& c) const override {
    asks_any_variant_ = true;
    try {
      std::string why = declined(c);
      asks_any_variant_ = false;
      return why;
    } catch (...) {
      asks_any_variant_ = false;
      throw;
    }
  }
  std::string declines(const ProductBatch& batch) const override {
    Product first = batch.products.front();
    if (first.a) first.a = batch.a;
    return unsupported_product(first, batch.c.dtype);
  }
  Status run(const ProductBatch& batch, const kernels::Execution& how) override {
    std::vector<assay_low_bit> a_low, w;
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    for (const Product& p : batch.products) {
      w.push_back(with_bytes(call, "w", p.w));
      if (!batch.a) a_low.push_back(with_bytes(call, "a", p.a_low));
    }
    a.batch = std::ssize(batch.products);
    if (batch.a) a.a = call.add_input("a", batch.a);
    a.a_low = call.add_list(a_low);
    a.w = call.add_list(w);
    a.c = call.add_output("c", batch.c);
    a.run = call.add(plain_run(how.threads));
    const KernelProcess::Answer answer = process_.run(call, batch_operation, a);
    if (answer.finding.empty() && answer.status == ASSAY_UNSUPPORTED)
      throw CandidateDeclined("product_batch answered unsupported");
    return finish(answer, batch_operation);
  }
  GroupScale scale_rule() const override { return scale_rule_; }
  std::unique_ptr<Candidate> fresh() const override {
    auto other = std::make_unique<Library>(path_, std::make_unique<KernelProcess>(path_));
    other->use_variant(variant());
    return other;
  }
  Status run_at_once(const Request& one, const Request& other, int rounds) override {
    const auto both = [&]<class C>(int operation, const C& c) {
      return at_once(operation, c, std::get<C>(other.call), one, rounds);
    };
    return std::visit(ByCall{[&](const ForwardCall& c) { return both(ASSAY_FORWARD, c); },
                             [&](const CachedCall& c) {
                               return decode_at_once(c, std::get<CachedCall>(other.call), one,
                                                     rounds);
                             },
                             [&](const BackwardCall& c) { return both(ASSAY_BACKWARD, c); },
                             [&](const ProductCall& c) { return both(ASSAY_PRODUCT, c); },
                             [&](const QuantizeCall& c) { return both(quantize_operation, c); },
                             [&](const DequantizeCall& c) { return both(dequantize_operation, c); },
                             [&](const AppendCall& c) { return both(append_operation, c); }},
                      one.call);
  }
  std::vector<std::string> wrong_calls(const Call& call) const override {
    std::vector<std::string> names;
    for (const WrongCall& wrong : wrong_calls_of(call)) names.emplace_back(wrong.name);
    return names;
  }
  std::string run_wrong(const Request& r, const std::string& name, Status& answer) override {
    const auto all = wrong_calls_of(r.call);
    const auto& wrong = *std::ranges::find(all, name, &WrongCall::name);
    const auto make = [&](int operation, const auto& c) {
      KernelCall call = process_.call();
      KernelProcess::Arguments a = arguments(call, c, r);
      std::string what = wrong.spoil(call, a);
      if (!what.empty()) answer = answer_to_wrong(process_.run(call, operation, a), what);
      return what;
    };
    return std::visit(ByCall{[&](const ForwardCall& c) { return make(ASSAY_FORWARD, c); },
                             [&](const CachedCall& c) {
                               const Encoded encoded(c, chunks_of(c.c)[0]);
                               return make(ASSAY_DECODE, encoded.decoding);
                             },
                             [&](const BackwardCall& c) { return make(ASSAY_BACKWARD, c); },
                             [&](const ProductCall& c) { return make(ASSAY_PRODUCT, c); },
                             [&](const QuantizeCall& c) { return make(quantize_operation, c); },
                             [&](const DequantizeCall& c) { return make(dequantize_operation, c); },
                             [&](const AppendCall& c) { return make(append_operation, c); }},
                      r.call);
  }
  std::string remark() const override {
    if (!process_.facts().flushes) return {};
    return "the library makes its thread compute 0 in the place of subnormal numbers when it is "
           "loaded (gcc -ffast-math links code that does)";
  }
  UsedMemory used_memory() override {
    std::string ended;
    const UsedMemory used = process_.memory(ended);
    if (!ended.empty()) throw CandidateError(ended);
    return used;
  }

  std::string declined(const Case& c) const {
    if (std::string lacking = lacking_ability(*this, c); !lacking.empty()) return lacking;
    if (c.operation == Operation::product) return unsupported_product(c);
    const Attention p = assay::described(c);
    if (c.cache) return declined_cached(c, p);
    if (c.operation == Operation::backward)
      if (std::string why = unsupported_backward(p, c.out_dtype(), c.lse_gradient.has_value());
          !why.empty() || abilities().gradients_alone)
        return why;
    return ask(ASSAY_FORWARD, p, c.out_dtype());
  }

  // The operation whose arithmetic may be declared; -1 for quantizers, dequantizers and writers,
  // which follow a rule.
  static int operation_of(const Call& call) {
    return std::visit(
        ByCall{[](const ForwardCall&) { return +ASSAY_FORWARD; },
               [](const CachedCall&) { return +ASSAY_DECODE; },
               [](const BackwardCall&) { return +ASSAY_BACKWARD; },
               [](const ProductCall&) { return +ASSAY_PRODUCT; }, [](const auto&) { return -1; }},
        call);
  }

  // Whether the library answers for the pages of decode.
  bool asks_for_pages() const { return process_.facts().cache || process_.facts().variants_differ; }
  // The variant that computes and answers, or all while suites are drawn.
  int asked_variant() const { return asks_any_variant_ ? KernelProcess::any_variant : variant(); }

  // Every call has a number of rows and of keys of its own.
  std::string unsupported_cached(const Case& c, const Attention& problem) const {
    const LibraryFacts& facts = process_.facts();
    if (!facts.decode) return "no cache";
    if (std::string why = without_pages(c); !why.empty()) return why;
    if (c.cache_dtype() != c.dtype && !facts.cache)
      return fmt::format("a cache in {}: the library has no supports_cache",
                         format(c.cache_dtype()).name);
    const PageViews pages = page_shapes(c);
    for (const Chunk& rows : chunks_of(c))
      if (std::string why = ask(ASSAY_DECODE, paged_problem(c, problem, rows), c.out_dtype(),
                                asks_for_pages() ? &pages : nullptr);
          !why.empty())
        return why;
    return {};
  }
  std::string unsupported_append(const TensorView& k, const TensorView& v,
                                 const PageViews& to) const {
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.k = call.add_shape(k);
    a.v = call.add_shape(v);
    a.pages = add_pages(call, to, Pages::shapes, {});
    return reason_of(process_.ask(call, append_operation, a, c_dtype_of(k.dtype), asked_variant()));
  }
  // Suites are drawn for the caches that a library reads; for one that reads none, for those that
  // it writes.
  std::string declined_cached(const Case& c, const Attention& problem) const {
    if (process_.facts().decode) return unsupported_cached(c, problem);
    if (std::string why = without_pages(c); !why.empty()) return why;
    return unsupported_append(problem.k, problem.v, page_shapes(c));
  }
  std::string unsupported_backward(const Attention& p, Dtype out, bool d_lse) const {
    if (d_lse && !process_.facts().d_lse) return "the library takes no gradient of LSE";
    return ask(ASSAY_BACKWARD, p, out);
  }
  std::string unsupported_product(const Product& p, Dtype out) const {
    const LibraryFacts& facts = process_.facts();
    if (!p.a && !facts.product_low_bit) return "a low-bit A: the library has no product_low_bit";
    if (p.a && !facts.product) return "an A in f32, f16 or bf16: the library has no product";
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    if (p.a) a.a = call.add_shape(p.a);
    else a.a_low = call.add(described(p.a_low));
    a.w = call.add(described(p.w));
    return ask(call, ASSAY_PRODUCT, a, out);
  }
  // Asks the library, and keeps the rule by which it rounds scales.
  std::string unsupported_quantize(const TensorView& w, const assay_low_bit_output& to) const {
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.a = call.add_shape(w);
    a.to = call.add(to);
    const KernelProcess::Answer answer =
        process_.ask(call, quantize_operation, a, c_dtype_of(Dtype::f32), asked_variant());
    if (std::string why = reason_of(answer); !why.empty()) return why;
    if (answer.scale_rule < 0 || answer.scale_rule >= count_of<GroupScale>)
      throw CandidateError(fmt::format("the library's scale_rule = {} is outside [0, {}]",
                                       answer.scale_rule, count_of<GroupScale> - 1));
    scale_rule_ = static_cast<GroupScale>(answer.scale_rule);
    return {};
  }
  std::string unsupported_dequantize(const assay_low_bit& w, Dtype out) const {
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.w = call.add(w);
    return reason_of(process_.ask(call, dequantize_operation, a, c_dtype_of(out), asked_variant()));
  }
  // What the library does of a case: the product, the quantizer of its weights, or the dequantizer.
  // The tensors have no elements.
  std::string unsupported_product(const Case& c) const {
    static std::uint8_t nothing;
    const LibraryFacts& facts = process_.facts();
    const ProductSpec& spec = c.product;
    Product p;
    p.w.format = spec.format;
    p.w.k = spec.k;
    p.w.n = spec.n;
    p.w.group = spec.group_size();
    if (spec.a_format) {
      p.a_low.format = *spec.a_format;
      p.a_low.k = spec.k;
      p.a_low.n = spec.m;
      p.a_low.group = traits(*spec.a_format).group;
    } else {
      const Extents shape{1, 1, spec.m, spec.k};
      const Layout layout = make_layout(c.q_layout, shape, 1);
      p.a = {&nothing, c.dtype, shape, layout.stride, layout.origin};
    }
    std::string why = "no low-bit products";
    if (facts.product || facts.product_low_bit) why = unsupported_product(p, c.out_dtype());
    if (!why.empty() && facts.quantize && spec.weights == Weights::quantized) {
      const TensorView w{&nothing, Dtype::f32, {1, 1, spec.k, spec.n}, {0, 0, spec.n, 1}, 0};
      why = unsupported_quantize(w, described_output(spec.format, w, p.w.group));
    }
    if (!why.empty() && facts.dequantize)
      why = unsupported_dequantize(described(p.w), c.out_dtype());
    return why;
  }

  // Passes on the stages that the library tells. The observer sees the type of view that our own
  // kernels give.
  static KernelProcess::Probe probe_of(StageObserver* observer) {
    if (!observer) return {};
    return [observer](const assay_stage& s) {
      constexpr kernels::Stage stages[] = {kernels::Stage::query,
                                           kernels::Stage::key,
                                           kernels::Stage::value,
                                           kernels::Stage::scores,
                                           kernels::Stage::masked,
                                           kernels::Stage::row_max,
                                           kernels::Stage::rescale,
                                           kernels::Stage::weights,
                                           kernels::Stage::row_sum,
                                           kernels::Stage::accumulated,
                                           kernels::Stage::output,
                                           kernels::Stage::lse,
                                           kernels::Stage::output_gradient,
                                           kernels::Stage::delta,
                                           kernels::Stage::weight_gradients,
                                           kernels::Stage::score_gradients};
      observer->at(stages[s.stage],
                   {s.b, s.head, s.row0, s.key0, s.rows, s.columns, const_cast<float*>(s.data),
                    s.row_stride, s.column_stride, s.first_key, s.keys});
    };
  }

  // A watched call runs on one thread, so that the stages come in order.
  static int threads_of(const Request& r) { return r.observer ? 1 : r.how.threads; }

  // The arguments of a call, which lie in `call`.
  KernelProcess::Arguments arguments(KernelCall& call, const ForwardCall& c, const Request& r) {
    const Attention& p = c.problem;
    KernelProcess::Arguments a;
    a.problem = add_problem(call, p, Elements::all);
    a.o = call.add_output("o", shaped(c.out.o, p.shape.value_dim, p));
    if (process_.facts().lse) a.lse = call.add_output("lse", shaped(c.out.lse, 1, p));
    a.run = add_run(call, ASSAY_FORWARD, p, c.out.o.dtype, r);
    return a;
  }

  KernelProcess::Arguments arguments(KernelCall& call, const BackwardCall& c, const Request& r) {
    const Attention& p = c.problem;
    KernelProcess::Arguments a;
    a.problem = add_problem(call, p, Elements::all);
    a.o = call.add_input("o", shaped(c.in.o, p.shape.value_dim, p));
    a.lse = call.add_input("lse", shaped(c.in.lse, 1, p));
    a.d_o = call.add_input("d_o", shaped(c.in.d_o, p.shape.value_dim, p));
    assay_gradients g;
    assay_gradients_init(&g);
    g.dq = call.add_output("dq", c.out.dq);
    g.dk = call.add_output("dk", c.out.dk);
    g.dv = call.add_output("dv", c.out.dv);
    g.d_bias = call.add_output("d_bias", c.out.d_bias);
    g.d_sink = call.add_output("d_sink", c.out.d_sink);
    if (c.in.d_lse) g.d_lse = call.add_input("d_lse", shaped(c.in.d_lse, 1, p));
    a.gradients = call.add(g);
    a.run = add_run(call, ASSAY_BACKWARD, p, c.out.dq.dtype, r);
    return a;
  }

  // A low-bit matrix, whose bytes lie in `call`.
  static assay_low_bit with_bytes(KernelCall& call, const char* name, const LowBitView& m) {
    const LowBitSizes sizes = sizes_of(m.format, m.k, m.n, m.group);
    const auto bytes = [&](const char* part, const std::byte* from, Index count) {
      const std::string whole = fmt::format("{}.{}", name, part);
      return count > 0 ? call.add_input_bytes(whole.c_str(), from, usize(count)) : nullptr;
    };
    assay_low_bit c = described(m);
    c.codes = bytes("codes", m.codes, sizes.codes);
    c.scales = bytes("scales", m.scales, sizes.scales);
    c.extra = bytes("extra", m.extra, sizes.extra);
    return c;
  }

  KernelProcess::Arguments arguments(KernelCall& call, const ProductCall& c, const Request& r) {
    KernelProcess::Arguments a;
    if (c.problem.a) a.a = call.add_input("a", c.problem.a);
    else a.a_low = call.add(with_bytes(call, "a", c.problem.a_low));
    a.w = call.add(with_bytes(call, "w", c.problem.w));
    a.c = call.add_output("c", c.c);
    a.run = call.add(plain_run(threads_of(r)));
    return a;
  }

  KernelProcess::Arguments arguments(KernelCall& call, const QuantizeCall& c, const Request& r) {
    const auto bytes = [&](const char* name, std::vector<std::byte>& to) {
      return to.empty() ? nullptr : call.add_output_bytes(name, to.data(), to.size());
    };
    assay_low_bit_output to = described_output(c.format, c.w, c.group);
    to.codes = bytes("the codes", c.to.codes);
    to.scales = bytes("the scales", c.to.scales);
    to.extra = bytes("the extra bytes", c.to.extra);
    if (c.format == LowBit::nvfp4)
      to.tensor_scale = static_cast<float*>(
          call.add_output_bytes("the tensor scale", &c.to.tensor_scale, sizeof(float)));
    KernelProcess::Arguments a;
    a.a = call.add_input("w", c.w);
    a.to = call.add(to);
    a.run = call.add(plain_run(threads_of(r)));
    return a;
  }

  KernelProcess::Arguments arguments(KernelCall& call, const DequantizeCall& c, const Request& r) {
    KernelProcess::Arguments a;
    a.w = call.add(with_bytes(call, "w", c.w));
    a.c = call.add_output("c", c.to);
    a.run = call.add(plain_run(threads_of(r)));
    return a;
  }

  KernelProcess::Arguments arguments(KernelCall& call, const AppendCall& c, const Request& r) {
    KernelProcess::Arguments a;
    a.k = call.add_input("k", c.k);
    a.v = call.add_input("v", c.v);
    a.slots = call.add_table("the slots", c.slots);
    a.pages = add_pages(call, c.to.views(), Pages::outputs, {});
    a.run = call.add(plain_run(threads_of(r)));
    return a;
  }

  enum class Pages { shapes, inputs, outputs };
  static const assay_pages* add_pages(KernelCall& call, const PageViews& views, Pages as,
                                      const std::vector<std::int32_t>& table) {
    const auto add = [&](const char* name, const std::vector<TensorView>& of) {
      if (as != Pages::shapes) return call.add_pages(name, of, as == Pages::outputs, views.used);
      std::vector<const assay_tensor*> shapes;
      for (const TensorView& t : of) shapes.push_back(call.add_shape(t));
      return shapes;
    };
    assay_pages pages{};
    pages.version = ASSAY_VERSION;
    pages.struct_size = sizeof pages;
    if (views.together) {
      const auto both = add("the pages of k and v", {views.k, views.v});
      pages.k = both[0];
      pages.v = both[1];
    } else {
      pages.k = add("the pages of k", {views.k})[0];
      pages.v = add("the pages of v", {views.v})[0];
    }
    pages.k_scales = add("the scales of k", {views.k_scales})[0];
    pages.v_scales = add("the scales of v", {views.v_scales})[0];
    pages.group_size = views.group;
    pages.page_size = views.size;
    pages.pages_per_sequence = views.each;
    pages.block_table = call.add_table("the block table", table);
    return call.add(pages);
  }

  // The rows of a cached call that the library computes at once. `tokens` are those of the cache.
  struct Decoding {
    Attention problem;
    const PagedTokens& tokens;
    AttentionOutput out;
    Decoding(const CachedCall& c, Chunk rows, const PagedTokens& pages)
        : problem(paged_problem(c.c, c.inputs.problem, rows)),
          tokens(pages),
          out(rows_of(c.out, rows)) {}
  };
  // The same over pages that the harness fills.
  struct Encoded {
    PagedTokens tokens;
    Decoding decoding;
    Encoded(const CachedCall& c, Chunk rows)
        : tokens(paged_tokens(c.c, c.inputs, paged_problem(c.c, c.inputs.problem, rows))),
          decoding(c, rows, tokens) {
      if (c.pages == PagesFrom::sharing) share_pages(tokens);
    }
    Encoded(const Encoded&) = delete;
  };

  KernelProcess::Arguments arguments(KernelCall& call, const Decoding& d, const Request& r) {
    const Attention& p = d.problem;
    KernelProcess::Arguments a;
    a.problem = add_problem(call, p, Elements::but_keys);
    const PageViews pages = d.tokens.views();
    a.pages = add_pages(call, pages, Pages::inputs, d.tokens.table);
    a.o = call.add_output("o", shaped(d.out.o, p.shape.value_dim, p));
    if (process_.facts().lse) a.lse = call.add_output("lse", shaped(d.out.lse, 1, p));
    a.run = add_run(call, ASSAY_DECODE, p, d.out.o.dtype, r, &pages);
    return a;
  }

  template <class C>
  Status run(int operation, const C& c, const Request& r) {
    KernelCall call = process_.call();
    const KernelProcess::Arguments a = arguments(call, c, r);
    return finish(process_.run(call, operation, a, probe_of(r.observer)), operation);
  }

  Status decode(const CachedCall& c, const Request& r) {
    if (c.pages == PagesFrom::writer) return append_and_decode(c, r);
    for (const Chunk& rows : chunks_of(c.c))
      if (Status status = run(ASSAY_DECODE, Encoded(c, rows).decoding, r); !status.ok())
        return status;
    return {};
  }

  // The library writes the tokens itself: those before the rows in two calls, and those of every
  // chunk of rows before it.
  Status append_and_decode(const CachedCall& c, const Request& r) {
    PagedTokens pages = empty_pages(c.c, c.inputs, std::byte{0xFF});
    const std::vector<std::int32_t> table = pages.table;
    const Index past = c.c.shape.keys - c.c.shape.rows;
    Index stored = 0;
    for (const Chunk& rows : chunks_of(c.c)) {
      pages.table = table;
      for (const Index last : {past / 3, past, past + rows.first + rows.count}) {
        if (last <= stored) continue;
        const TensorView k = tokens_between(c.inputs.token_k.view(), stored, last),
                         v = tokens_between(c.inputs.token_v.view(), stored, last);
        const std::vector<Index> slots = slots_of(c.c, pages, stored, last);
        if (Status status = run(append_operation, AppendCall{k, v, slots, pages}, r); !status.ok())
          return status;
        stored = last;
      }
      cut_table(pages, stored);
      if (Status status = run(ASSAY_DECODE, Decoding(c, rows, pages), r); !status.ok())
        return status;
    }
    return {};
  }

  Status decode_at_once(const CachedCall& one, const CachedCall& other, const Request& r,
                        int rounds) {
    if (chunks_of(one.c).size() != 1 || chunks_of(other.c).size() != 1)
      throw CandidateDeclined("the rows come in several calls");
    const Encoded first(one, chunks_of(one.c)[0]), second(other, chunks_of(other.c)[0]);
    return at_once(ASSAY_DECODE, first.decoding, second.decoding, r, rounds);
  }

  template <class C>
  Status at_once(int operation, const C& one, const C& other, const Request& r, int rounds) {
    KernelCall call = process_.call();
    const KernelProcess::Arguments a = arguments(call, one, r), b = arguments(call, other, r);
    if (call.has_holes()) throw CandidateDeclined("a tensor with holes of gigabytes");
    return finish(process_.run_at_once(call, operation, a, b, rounds), operation);
  }

  assay_run plain_run(int threads) const {
    return {ASSAY_VERSION, sizeof(assay_run), nullptr, 0,
            threads,       asked_variant(),   nullptr, nullptr};
  }

  static TensorView shaped(const TensorView& t, Index columns, const Attention& p) {
    TensorView view = t;
    view.shape = {p.shape.batch, p.shape.query_heads, p.shape.rows, columns};
    return view;
  }

  // Describes a low-bit matrix without its bytes.
  static assay_low_bit described(const LowBitView& w) {
    assay_low_bit c;
    assay_low_bit_init(&c, static_cast<std::int32_t>(w.format), w.k, w.n);
    c.tensor_scale = w.tensor_scale;
    c.group_size = w.group == 0 ? -1 : w.group;
    return c;
  }

  // Describes what a quantizer fills, without its bytes.
  static assay_low_bit_output described_output(LowBit format, const TensorView& w, Index group) {
    assay_low_bit_output to{};
    to.version = ASSAY_VERSION;
    to.struct_size = sizeof to;
    to.format = static_cast<std::int32_t>(format);
    to.k = w.shape[2];
    to.n = w.shape[3];
    to.group_size = group == 0 ? -1 : group;
    return to;
  }

  // The reason why something is not supported; empty if it is supported.
  static std::string reason_of(const KernelProcess::Answer& answer) {
    if (!answer.finding.empty()) throw CandidateError(answer.finding);
    if (answer.status == ASSAY_UNSUPPORTED)
      return answer.reason.empty() ? "the library gives no reason" : answer.reason;
    if (answer.status != ASSAY_SUCCESS)
      throw CandidateError(fmt::format("the library's answer to what it supports is {}: {}",
                                       answer.status, answer.reason));
    return {};
  }

  std::string ask(int operation, const Attention& p, Dtype out,
                  const PageViews* pages = nullptr) const {
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.problem = add_problem(call, p, Elements::none);
    if (pages) a.pages = add_pages(call, *pages, Pages::shapes, {});
    return ask(call, operation, a, out);
  }
  // Asks the library, and keeps the arithmetic that it declares for such a problem.
  std::string ask(KernelCall& call, int operation, const KernelProcess::Arguments& a,
                  Dtype out) const {
    const KernelProcess::Answer answer =
        process_.ask(call, operation, a, c_dtype_of(out), asked_variant());
    if (std::string why = reason_of(answer); !why.empty()) return why;
    declared_.erase({operation, asked_variant()});
    const auto keep = [&](const auto& arithmetic) {
      if (!arithmetic) return;
      std::string wrong;
      declared_[{operation, asked_variant()}] = contract_of(
          fmt::format("{}, as its library declares it", process_.facts().name), *arithmetic, wrong);
      if (!wrong.empty())
        throw CandidateError("the library declares an arithmetic that cannot be: " + wrong);
    };
    keep(answer.arithmetic);
    keep(answer.product_arithmetic);
    return {};
  }

  // `pages` is that of decode.
  const assay_run* add_run(KernelCall& call, int operation, const Attention& p, Dtype out,
                           const Request& r, const PageViews* pages = nullptr) {
    assay_run run = plain_run(threads_of(r));
    if (!process_.facts().workspace) return call.add(run);
    KernelCall question = process_.call();
    KernelProcess::Arguments a;
    a.problem = add_problem(question, p, Elements::none);
    if (pages && asks_for_pages()) a.pages = add_pages(question, *pages, Pages::shapes, {});
    const KernelProcess::Answer answer =
        process_.ask(question, operation, a, c_dtype_of(out), asked_variant());
    if (!answer.finding.empty()) throw CandidateError(answer.finding);
    if (answer.workspace > std::size_t{32} << 30)
      throw CandidateError(
          fmt::format("the library asks for a workspace of {} bytes", answer.workspace));
    run.workspace = call.add_workspace(answer.workspace);
    run.workspace_bytes = answer.workspace;
    return call.add(run);
  }

  static std::span<const WrongCall> wrong_calls_of(const Call& call) {
    return std::visit(ByCall{[](const ProductCall& c) {
                               return c.problem.a ? wrong_product_calls()
                                                  : wrong_low_bit_product_calls();
                             },
                             [](const QuantizeCall&) { return wrong_quantize_calls(); },
                             [](const DequantizeCall&) { return wrong_dequantize_calls(); },
                             [](const AppendCall&) { return wrong_append_calls(); },
                             [](const auto&) { return wrong_attention_calls(); }},
                      call);
  }
  static Status answer_to_wrong(const KernelProcess::Answer& answer, const std::string& what) {
    if (!answer.finding.empty()) throw CandidateError(fmt::format("{}: {}", what, answer.finding));
    return {static_cast<StatusCode>(answer.status), {}};
  }

  Status finish(const KernelProcess::Answer& answer, int operation) const {
    if (!answer.finding.empty()) throw CandidateError(answer.finding);
    if (answer.status == ASSAY_SUCCESS) return {};
    if (answer.status == ASSAY_UNSUPPORTED && asked_variant() > 0 &&
        !process_.facts().variants_differ)
      throw CandidateDeclined("the variant answered unsupported, and gives no reason");
    if (answer.status == ASSAY_UNSUPPORTED)
      throw CandidateError(
          fmt::format("the library said that it supports this, and then answered unsupported in {}",
                      name_of_operation(operation)));
    return {static_cast<StatusCode>(answer.status),
            fmt::format("the answer of the library in {}", name_of_operation(operation))};
  }

  const std::string path_;
  const std::unique_ptr<KernelProcess> own_process_;
  KernelProcess& process_;
  // The arithmetic that the library declared, by operation and variant, when it was last asked
  // about a problem.
  mutable std::map<std::pair<int, int>, Arithmetic> declared_;
  mutable bool asks_any_variant_ = false;
  mutable GroupScale scale_rule_ = GroupScale::floor;
};

}  // namespace

std::unique_ptr<Candidate> make_library_candidate(const std::string& path) {
  return std::make_unique<Library>(path, std::make_unique<KernelProcess>(path));
}

}  // namespace assay
