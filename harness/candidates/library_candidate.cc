#include "harness/candidates/library_candidate.h"

#include <fmt/format.h>

#include <cmath>
#include <map>

#include "harness/candidates/cached.h"
#include "harness/candidates/declared_arithmetic.h"
#include "harness/candidates/kernel_process.h"
#include "harness/candidates/paged.h"
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
  const auto tensor = [&](const TensorView& t) {
    return with_elements ? call.add_input(t) : call.add_shape(t);
  };
  assay_attention a;
  assay_attention_init(&a);
  a.q = tensor(p.q);
  a.k = elements == Elements::all ? tensor(p.k) : call.add_shape(p.k);
  a.v = elements == Elements::all ? tensor(p.v) : call.add_shape(p.v);
  kernels::for_each_c_number([&](const auto& field, auto c) { a.*c = p.*field.number; });
  a.flags = 0;
  for (std::size_t k = 0; k < attention_flags.size(); ++k)
    if (p.*attention_flags[k].flag) a.flags |= kernels::c_flags[k];
  const AttentionShape& s = p.shape;
  if (p.bias) {
    TensorView bias = p.bias;  // for a chunk of rows it may still have the shape of all rows
    bias.shape = s.pair_extents();
    a.bias = tensor(bias);
  }
  if (p.keep) {
    const TensorView bytes{const_cast<std::uint8_t*>(p.keep.data), Dtype::f8e5m2, s.pair_extents(),
                           p.keep.stride, 0};
    const assay_dtype boolean = {ASSAY_BOOL, 8, 1};
    a.keep = with_elements ? call.add_input(bytes, boolean) : call.add_shape(bytes, boolean);
  }
  kernels::for_each_c_list([&](const auto& field, const auto& c) {
    a.*c.entries = call.add_list(p.*field.list);
    a.*c.count = std::ssize(p.*field.list);
  });
  return call.add(a);
}

class Library : public Candidate {
 public:
  explicit Library(const std::string& path) : path_(path), process_(path) {}

  std::string name() const override { return "lib:" + path_; }

  Abilities abilities() const override {
    const LibraryFacts& facts = process_.facts();
    return {.forward = facts.forward,
            .cache = facts.decode,
            .backward = facts.backward,
            .product = facts.product,
            .lse = facts.lse,
            .stages = facts.probes,
            .promises_bits = false};
  }
  std::string unsupported(const Call& call) const override {
    return std::visit(
        ByCall{
            [&](const ForwardCall& c) { return unsupported_forward(c.problem, c.out.o.dtype); },
            [&](const CachedCall& c) { return unsupported_cached(c.c, c.inputs.problem); },
            [&](const BackwardCall& c) { return unsupported_backward(c.problem, c.out.dq.dtype); },
            [&](const ProductCall& c) {
              return unsupported_product(c.problem.a, described(c.problem.w), c.c.dtype);
            },
            [](const QuantizeCall&) { return std::string("no quantizer"); }},
        call);
  }
  Conventions conventions() const override { return process_.facts().conventions; }
  bool is_asked() const override { return true; }
  std::string declines(const Case& c) const override {
    if (std::string lacking = lacking_ability(*this, c); !lacking.empty()) return lacking;
    if (c.operation == Operation::product) return unsupported_product(c);
    const Attention p = assay::described(c);
    if (c.cache) return unsupported_cached(c, p);
    if (c.operation == Operation::backward)
      if (std::string why = unsupported_backward(p, c.out_dtype()); !why.empty()) return why;
    return unsupported_forward(p, c.out_dtype());
  }
  std::optional<Arithmetic> arithmetic(const Call& call, const kernels::Execution&) const override {
    const auto declared = declared_.find(operation_of(call));
    if (declared == declared_.end()) return std::nullopt;
    return declared->second;
  }
  Status run(const Request& r) override {
    return std::visit(ByCall{[&](const ForwardCall& c) { return forward(c, r); },
                             [&](const CachedCall& c) { return decode(c, r); },
                             [&](const BackwardCall& c) { return backward(c, r); },
                             [&](const ProductCall& c) { return product(c, r); },
                             [](const QuantizeCall&) -> Status {
                               return {StatusCode::unsupported, "a library has no quantizer"};
                             }},
                      r.call);
  }

 private:
  static int operation_of(const Call& call) {
    return std::visit(ByCall{[](const ForwardCall&) { return +ASSAY_FORWARD; },
                             [](const CachedCall&) { return +ASSAY_DECODE; },
                             [](const BackwardCall&) { return +ASSAY_BACKWARD; },
                             [](const auto&) { return +ASSAY_PRODUCT; }},
                      call);
  }

  std::string unsupported_forward(const Attention& p, Dtype out) const {
    // The call would copy every byte between two elements.
    for (const TensorView* t : {&p.q, &p.k, &p.v})
      for (std::size_t axis = 0; axis < 4; ++axis)
        if (t->shape[axis] > 1 && std::abs(t->stride[axis]) > (Index{1} << 32) / t->shape[axis])
          return "a tensor whose storage has holes of gigabytes";
    return ask(ASSAY_FORWARD, p, out);
  }
  // Every call has a number of rows and of keys of its own.
  std::string unsupported_cached(const Case& c, const Attention& problem) const {
    if (c.cache.kind == CacheSpec::Kind::latent) return "a latent cache for a library";
    if (c.cache_dtype() != c.dtype)
      return fmt::format("a cache in {} for a library", format(c.cache_dtype()).name);
    for (const Chunk& rows : chunks_of(c))
      if (std::string why = ask(ASSAY_DECODE, paged_problem(c, problem, rows), c.out_dtype());
          !why.empty())
        return why;
    return {};
  }
  std::string unsupported_backward(const Attention& p, Dtype out) const {
    if (!process_.facts().lse) return "no LSE in the library, which its backward pass would read";
    return ask(ASSAY_BACKWARD, p, out);
  }
  std::string unsupported_product(const TensorView& a, const assay_low_bit& w, Dtype out) const {
    if (!a) return "a low-bit A for a library";
    KernelCall call = process_.call();
    return reason_of(process_.ask_product(call, call.add_shape(a), call.add(w), c_dtype_of(out)));
  }
  // The same for the product of a case, whose tensors have no elements.
  std::string unsupported_product(const Case& c) const {
    static std::uint8_t nothing;
    const ProductSpec& p = c.product;
    const Extents shape{1, 1, p.m, p.k};
    const Layout layout = make_layout(c.q_layout, shape, 1);
    LowBitView w;
    w.format = p.format;
    w.k = p.k;
    w.n = p.n;
    w.group = p.group_size();
    TensorView a;
    if (!p.a_format) a = {&nothing, c.dtype, shape, layout.stride, layout.origin};
    return unsupported_product(a, described(w), c.out_dtype());
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

  Status forward(const ForwardCall& c, const Request& r) {
    const Attention& p = c.problem;
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.problem = add_problem(call, p, Elements::all);
    a.o = call.add_output(shaped(c.out.o, p.shape.value_dim, p));
    if (process_.facts().lse) a.lse = call.add_output(shaped(c.out.lse, 1, p));
    a.run = add_run(call, ASSAY_FORWARD, p, c.out.o.dtype, threads_of(r));
    return finish(process_.run(call, ASSAY_FORWARD, a, probe_of(r.observer)), "forward");
  }

  Status backward(const BackwardCall& c, const Request& r) {
    const Attention& p = c.problem;
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.problem = add_problem(call, p, Elements::all);
    a.o = call.add_input(shaped(c.in.o, p.shape.value_dim, p));
    a.lse = call.add_input(shaped(c.in.lse, 1, p));
    a.d_o = call.add_input(shaped(c.in.d_o, p.shape.value_dim, p));
    assay_gradients g;
    assay_gradients_init(&g);
    g.dq = call.add_output(c.out.dq);
    g.dk = call.add_output(c.out.dk);
    g.dv = call.add_output(c.out.dv);
    g.d_bias = call.add_output(c.out.d_bias);
    g.d_sink = call.add_output(c.out.d_sink);
    a.gradients = call.add(g);
    a.run = add_run(call, ASSAY_BACKWARD, p, c.out.dq.dtype, threads_of(r));
    return finish(process_.run(call, ASSAY_BACKWARD, a, probe_of(r.observer)), "backward");
  }

  Status product(const ProductCall& c, const Request& r) {
    const LowBitView& weights = c.problem.w;
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.a = call.add_input(c.problem.a);
    const LowBitSizes sizes = sizes_of(weights.format, weights.k, weights.n, weights.group);
    const auto bytes = [&](const std::byte* from, Index count) {
      return call.add_bytes(from, usize(count));
    };
    assay_low_bit w = described(weights);
    w.codes = bytes(weights.codes, sizes.codes);
    if (sizes.scales > 0) w.scales = bytes(weights.scales, sizes.scales);
    if (sizes.extra > 0) w.extra = bytes(weights.extra, sizes.extra);
    a.w = call.add(w);
    a.c = call.add_output(c.c);
    a.run = call.add(plain_run(r.how.threads));
    return finish(process_.run(call, ASSAY_PRODUCT, a), "product");
  }

  Status decode(const CachedCall& c, const Request& r) {
    for (const Chunk& rows : chunks_of(c.c)) {
      const AttentionOutput out = rows_of(c.out, rows);
      if (Status status = decode(c.c, c.inputs, rows, out, r.how.threads); !status.ok())
        return status;
    }
    return {};
  }

  Status decode(const Case& c, const Inputs& in, Chunk rows, const AttentionOutput& out,
                int threads) {
    const AttentionShape& s = c.shape;
    const Attention p = paged_problem(c, in.problem, rows);
    const PagedTokens tokens = paged_tokens(c, in, p);
    KernelCall call = process_.call();
    KernelProcess::Arguments a;
    a.problem = add_problem(call, p, Elements::but_keys);
    assay_pages pages{ASSAY_VERSION,
                      sizeof(assay_pages),
                      call.add_input(tokens.k.view()),
                      call.add_input(tokens.v.view()),
                      tokens.size,
                      tokens.each,
                      call.add_list(tokens.table)};
    a.pages = call.add(pages);
    a.o = call.add_output(shaped(out.o, s.value_dim, p));
    if (process_.facts().lse) a.lse = call.add_output(shaped(out.lse, 1, p));
    a.run = add_run(call, ASSAY_DECODE, p, out.o.dtype, threads);
    return finish(process_.run(call, ASSAY_DECODE, a), "decode");
  }

  static assay_run plain_run(int threads) {
    return {ASSAY_VERSION, sizeof(assay_run), nullptr, 0, threads, 0, nullptr, nullptr};
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

  // Asks the library, and keeps the arithmetic that it declares for such a problem.
  std::string ask(int operation, const Attention& p, Dtype out) const {
    KernelCall call = process_.call();
    const assay_attention* problem = add_problem(call, p, Elements::none);
    const KernelProcess::Answer answer = process_.ask(call, operation, problem, c_dtype_of(out));
    if (std::string why = reason_of(answer); !why.empty()) return why;
    declared_.erase(operation);
    if (answer.arithmetic) {
      std::string wrong;
      declared_[operation] =
          contract_of(fmt::format("{}, as its library declares it", process_.facts().name),
                      *answer.arithmetic, wrong);
      if (!wrong.empty())
        throw CandidateError("the library declares an arithmetic that cannot be: " + wrong);
    }
    return {};
  }

  const assay_run* add_run(KernelCall& call, int operation, const Attention& p, Dtype out,
                           int threads) {
    assay_run run = plain_run(threads);
    if (!process_.facts().workspace) return call.add(run);
    KernelCall question = process_.call();
    const assay_attention* problem = add_problem(question, p, Elements::none);
    const KernelProcess::Answer answer =
        process_.ask(question, operation, problem, c_dtype_of(out));
    if (!answer.finding.empty()) throw CandidateError(answer.finding);
    if (answer.workspace > std::size_t{32} << 30)
      throw CandidateError(
          fmt::format("the library asks for a workspace of {} bytes", answer.workspace));
    run.workspace = call.add_workspace(answer.workspace);
    run.workspace_bytes = answer.workspace;
    return call.add(run);
  }

  static Status finish(const KernelProcess::Answer& answer, const char* operation) {
    if (!answer.finding.empty()) throw CandidateError(answer.finding);
    if (answer.status == ASSAY_SUCCESS) return {};
    if (answer.status == ASSAY_UNSUPPORTED)
      throw CandidateError(
          fmt::format("the library said that it supports this, and then answered unsupported in {}",
                      operation));
    return {static_cast<StatusCode>(answer.status),
            fmt::format("the answer of the library in {}", operation)};
  }

  const std::string path_;
  mutable KernelProcess process_;
  // The arithmetic that the library declared, by operation, when it was last asked about a problem.
  mutable std::map<int, Contract> declared_;
};

}  // namespace

std::unique_ptr<Candidate> make_library_candidate(const std::string& path) {
  return std::make_unique<Library>(path);
}

}  // namespace assay
