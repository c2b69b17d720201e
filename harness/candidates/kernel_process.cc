#include "harness/candidates/kernel_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

#include "harness/candidates/kernel_messages.h"
#include "harness/confinement.h"
#include "harness/shortage.h"

namespace assay {
namespace {

constexpr std::size_t page = 4096;
constexpr unsigned char slack =
    0xFF;  // around and in what is not written yet: NaN in every float format
// Addresses that are free in every process. The system maps memory downwards from an address that
// it draws above 0x7eff00000000, and tensors of a distant layout take hundreds of GiB, so the first
// one lies far below. The thread sanitizer has only the others.
constexpr std::size_t bases[] = {0x700000000000, 0x7ea000000000, 0x7f0000000000, 0x7e9000000000};
constexpr std::size_t largest_arena = std::size_t{256} << 30;  // nearly all of it may be holes

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

// Preloads the allocator of glibc that checks its heap, if the library is installed and nothing
// else is preloaded. Sanitizers check the heap themselves.
std::vector<std::string> malloc_checks() {
#ifndef ASSAY_SANITIZED
  if (!getenv("LD_PRELOAD"))
    for (const char* checked : {"/lib/x86_64-linux-gnu/libc_malloc_debug.so.0",
                                "/lib/aarch64-linux-gnu/libc_malloc_debug.so.0"})
      if (access(checked, R_OK) == 0)
        return {std::string("LD_PRELOAD=") + checked, "MALLOC_CHECK_=3"};
#endif
  return {};
}

assay_dtype c_dtype(Dtype d) {
  const auto code = [d]() -> int {
    switch (d) {
      case Dtype::bf16: return ASSAY_BFLOAT;
      case Dtype::f8e4m3: return ASSAY_FLOAT8_E4M3FN;
      case Dtype::f8e5m2: return ASSAY_FLOAT8_E5M2;
      case Dtype::f4e2m1: return ASSAY_FLOAT4_E2M1FN;
      case Dtype::e8m0: return ASSAY_FLOAT8_E8M0FNU;
      default: return ASSAY_FLOAT;
    }
  };
  return {static_cast<std::uint8_t>(code()), static_cast<std::uint8_t>(format(d).bits), 1};
}

}  // namespace

const char* name_of_operation(int operation) {
  switch (operation) {
    case ASSAY_FORWARD: return "forward";
    case ASSAY_BACKWARD: return "backward";
    case ASSAY_DECODE: return "decode";
    case quantize_operation: return "quantize";
    case dequantize_operation: return "dequantize";
    case append_operation: return "append";
    case batch_operation: return "product_batch";
    default: return "product";
  }
}

// ---- A call ----

std::size_t KernelCall::place(std::size_t bytes, bool writable, const void* from, void* to,
                              const char* name) {
  Region r;
  r.bytes = bytes;
  r.from = from;
  r.to = to;
  r.writable = writable;
  r.name = name;
  r.pages_begin = end_ + page;  // an unmapped page lies between any two regions
  r.pages_end = r.pages_begin + round_up(std::max<std::size_t>(bytes, 1), page);
  // The region lies as close to the end of its pages as 64-byte alignment allows, so that reading
  // past it leaves the pages.
  r.offset = r.pages_end - round_up(std::max<std::size_t>(bytes, 1), 64);
  end_ = r.pages_end;
  regions_.push_back(r);
  return r.offset;
}

const assay_tensor* KernelCall::describe(const TensorView& t, void* data, Index origin,
                                         std::optional<assay_dtype> as) {
  assay_tensor c;
  const assay_dtype dtype = as ? *as : c_dtype(t.dtype);
  assay_tensor_init(&c, data, dtype.code, dtype.bits, t.shape[0], t.shape[1], t.shape[2],
                    t.shape[3]);
  std::copy(t.stride.begin(), t.stride.end(), c.strides);
  c.offset = origin;
  return add(c);
}

namespace {

// The bytes that a view reaches, and its first element, which begins at a byte.
struct Reach {
  Index first, bytes, element;
};
Reach reach(const TensorView& t) {
  const Index bits = format(t.dtype).bits;
  Index low = t.origin, high = t.origin;
  for (std::size_t k = 0; k < 4; ++k) {
    if (t.shape[k] == 0) return {0, 0, 0};
    const Index far = (t.shape[k] - 1) * t.stride[k];
    (far < 0 ? low : high) += far;
  }
  if (bits < 8) low = low / 2 * 2;
  return {low * bits / 8, ((high + 1) * bits + 7) / 8 - low * bits / 8, low};
}

// The parts of a view that hold elements, as bytes from its first one. Axes whose elements lie near
// one another are one part. An element takes whole bytes.
std::vector<std::pair<std::size_t, std::size_t>> parts_of(const TensorView& t) {
  constexpr Index most_bytes = 1 << 16;
  const Index width = format(t.dtype).bits / 8;
  TensorView far = t, near = t;
  for (std::size_t k = 0; k < 4; ++k) {
    const bool is_near = (t.shape[k] - 1) * std::abs(t.stride[k]) * width <= most_bytes;
    (is_near ? far : near).shape[k] = 1;
  }
  near.origin = 0;
  const Reach part = reach(near);
  const Index first = reach(t).element;
  std::vector<std::pair<std::size_t, std::size_t>> parts;
  for_each_index(far.shape, [&](Index b, Index h, Index i, Index d) {
    const Index begin = far.at(b, h, i, d) + part.element - first;
    parts.emplace_back(usize(begin * width), usize(begin * width + part.bytes));
  });
  return parts;
}

}  // namespace

std::size_t KernelCall::place(const char* name, const TensorView& t, bool writable) {
  constexpr Index hole = Index{1} << 28;
  const Reach r = reach(t);
  auto* data = static_cast<std::byte*>(t.data) + r.first;
  const std::size_t at = place(usize(r.bytes), writable, data, writable ? data : nullptr, name);
  const Index bits = format(t.dtype).bits;
  if (bits >= 8 && r.bytes > hole && r.bytes / 16 > element_count(t.shape) * bits / 8)
    regions_.back().parts = parts_of(t);
  return at;
}

bool KernelCall::has_holes() const {
  return std::ranges::any_of(regions_, [](const Region& r) { return !r.parts.empty(); });
}

const assay_tensor* KernelCall::add_input(const char* name, const TensorView& t,
                                          std::optional<assay_dtype> as) {
  if (!t) return nullptr;
  const std::size_t at = place(name, t, false);
  return describe(t, reinterpret_cast<void*>(base_ + at), t.origin - reach(t).element, as);
}

const assay_tensor* KernelCall::add_output(const char* name, const TensorView& t) {
  if (!t) return nullptr;
  const std::size_t at = place(name, t, true);
  return describe(t, reinterpret_cast<void*>(base_ + at), t.origin - reach(t).element);
}

std::vector<const assay_tensor*> KernelCall::add_pages(const char* name,
                                                       std::span<const TensorView> views,
                                                       bool writable,
                                                       std::span<const Index> pages) {
  if (!views[0]) return std::vector<const assay_tensor*>(views.size(), nullptr);
  Index first = reach(views[0]).first, last = first;
  for (const TensorView& t : views) {
    const Reach r = reach(t);
    first = std::min(first, r.first);
    last = std::max(last, r.first + r.bytes);
  }
  auto* data = static_cast<std::byte*>(views[0].data) + first;
  const std::size_t at =
      place(usize(last - first), writable, data, writable ? data : nullptr, name);
  std::vector<const assay_tensor*> described;
  for (const TensorView& t : views) {
    for (const Index index : pages) {
      TensorView one = t;
      one.origin = t.at(index, 0, 0, 0);
      one.shape[0] = 1;
      const Reach r = reach(one);
      regions_.back().parts.emplace_back(usize(r.first - first), usize(r.first - first + r.bytes));
    }
    described.push_back(describe(t, reinterpret_cast<void*>(base_ + at),
                                 t.origin - first * 8 / format(t.dtype).bits));
  }
  return described;
}

void* KernelCall::add_output_bytes(const char* name, void* to, std::size_t bytes) {
  return reinterpret_cast<void*>(base_ + place(bytes, true, to, to, name));
}

const void* KernelCall::add_input_bytes(const char* name, const void* from, std::size_t bytes) {
  const auto* first = static_cast<const std::byte*>(from);
  kept_.emplace_back(first, first + bytes);
  return reinterpret_cast<const void*>(base_ +
                                       place(bytes, false, kept_.back().data(), nullptr, name));
}

// The copy of what add_input_bytes() has placed there; null for anything else.
std::byte* KernelCall::kept_at(std::size_t at) {
  for (const Region& r : regions_)
    for (std::vector<std::byte>& kept : kept_)
      if (!kept.empty() && r.from == kept.data() && at >= r.offset && at < r.offset + r.bytes)
        return kept.data() + (at - r.offset);
  return nullptr;
}

std::vector<NamedBytes> KernelCall::named_bytes() const {
  std::vector<NamedBytes> all;
  for (const Region& r : regions_) all.push_back({r.name, base_ + r.offset, r.bytes});
  if (!arguments_.empty())
    all.push_back({"the structs and lists of the call", base_, argument_bytes});
  return all;
}

const assay_tensor* KernelCall::add_shape(const TensorView& t, std::optional<assay_dtype> as) {
  return t ? describe(t, nullptr, t.origin, as) : nullptr;
}

const void* KernelCall::add_bytes(const void* from, std::size_t bytes) {
  const auto* first = static_cast<const std::byte*>(from);
  if (const std::size_t at = round_up(arguments_.size(), 16); at + bytes <= argument_bytes) {
    arguments_.resize(at);
    arguments_.insert(arguments_.end(), first, first + bytes);
    return reinterpret_cast<const void*>(base_ + at);
  }
  return add_input_bytes("a list", from, bytes);
}

void* KernelCall::add_workspace(std::size_t bytes) {
  return bytes == 0 ? nullptr
                    : reinterpret_cast<void*>(
                          base_ + place(bytes, true, nullptr, nullptr, "the workspace"));
}

// ---- The process of a library ----

KernelProcess::KernelProcess(std::string library, std::string server)
    : library_(std::move(library)), server_(std::move(server)) {
  close_to_others();  // the library shares our user
  start();
}

KernelProcess::~KernelProcess() {
  stop();
  if (mapped_ > 0) munmap(reinterpret_cast<void*>(base_), mapped_);
}

void KernelProcess::start() {
  if (memory_.number() < 0) {
    memory_ = Descriptor(memfd_create("assay-kernel", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    // The library must not take away what we have mapped.
    if (memory_.number() < 0 || fcntl(memory_.number(), F_ADD_SEALS, F_SEAL_SHRINK) != 0)
      throw std::system_error(errno, std::generic_category(), "shared memory for a kernel library");
    for (std::size_t base : bases) {
      base_ = base;
      mapped_ = 0;
      try {
        reserve(std::size_t{1} << 20);
        break;
      } catch (const std::system_error&) {
        if (base == std::end(bases)[-1]) throw;
      }
    }
  }
  new (&crash_note()) CrashNote{};
  Channel ends = make_socket_pair("a socket for a kernel library");
  const Descriptor nothing_to_read = open_nothing("an input for a kernel library");
  process_.emplace(ProcessStart{
      .program = server_,
      .arguments = {"assay", "serve-kernel", library_, fmt::to_string(base_)},
      .descriptors = {{nothing_to_read.number(), STDIN_FILENO},
                      {STDERR_FILENO, STDOUT_FILENO},  // what the library prints is not our output
                      {ends.in.number(), server_socket},
                      {memory_.number(), server_memory}},
      .environment = malloc_checks(),
      .dies_with_thread = true,
      .ends_others = true});
  ends.in.close();  // only the library's process holds it, so the end of that process is heard
  socket_ = std::move(ends.out);
  KernelRequest request;
  KernelResponse response;
  KernelCall nothing(base_);
  if (const std::string finding = exchange(nothing, request, response); !finding.empty())
    throw LibraryError(fmt::format("{}: {}", library_, finding));
  if (response.status != ASSAY_SUCCESS) {
    stop();
    throw LibraryError(fmt::format("{}: {}", library_, response.text));
  }
  facts_ = {.name = response.text,
            .forward = response.forward != 0,
            .backward = response.backward != 0,
            .product = response.product != 0,
            .product_low_bit = response.product_low_bit != 0,
            .decode = response.decode != 0,
            .quantize = response.quantize != 0,
            .dequantize = response.dequantize != 0,
            .cache = response.cache != 0,
            .append = response.append != 0,
            .lse = response.lse != 0,
            .workspace = response.workspace_function != 0,
            .probes = response.probes != 0,
            .reentrant = response.not_reentrant == 0,
            .d_lse = response.d_lse != 0,
            .d_sink = response.no_d_sink == 0,
            .product_batch = response.product_batch != 0,
            .flushes = response.flushes != 0,
            .variants = std::max(1, response.variant_count),
            .variants_differ = response.variants_differ != 0,
            .promises = response.invariant_to,
            .conventions = conventions_of(response.conventions)};
}

void KernelProcess::stop() {
  process_.reset();
  socket_.close();
}

// It lies in the page of the arena behind the small arguments.
CrashNote& KernelProcess::crash_note() const {
  return *reinterpret_cast<CrashNote*>(base_ + KernelCall::argument_bytes);
}

std::string KernelProcess::how_it_ended(const KernelCall& call, const char* when) {
  constexpr double seconds_to_end = 5;  // the socket is closed, so little is left to do
  const bool ended = process_->wait_for(seconds_to_end);
  const int status = process_->wait();
  stop();
  if (!ended) return fmt::format("the library's process closed its connection in {}", when);
  std::string how =
      fmt::format("the library's process {} in {}", assay::how_it_ended(status), when);
  if (const std::string where = where_it_crashed(crash_note(), call.named_bytes()); !where.empty())
    how += ": " + where;
  if (was_killed(status)) throw ShortageError(how + ", as processes are when memory is short");
  return how;
}

// Makes room for an arena of that many bytes on this side.
void KernelProcess::reserve(std::size_t bytes) {
  if (bytes <= mapped_) return;
  if (bytes > largest_arena)
    throw std::system_error(ENOMEM, std::generic_category(), "tensors for a kernel library");
  const std::size_t wanted = std::min(largest_arena, round_up(std::max(bytes, 2 * mapped_), page));
  if (ftruncate(memory_.number(), static_cast<off_t>(wanted)) != 0)
    throw std::system_error(errno, std::generic_category(), "shared memory for a kernel library");
  auto* at = reinterpret_cast<std::byte*>(base_ + mapped_);
  void* got = mmap(at, wanted - mapped_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE,
                   memory_.number(), static_cast<off_t>(mapped_));
  if (got != at) {
    const int error = got == MAP_FAILED ? errno : EEXIST;
    if (got != MAP_FAILED) munmap(got, wanted - mapped_);
    throw std::system_error(error, std::generic_category(), "mapping tensors for a kernel library");
  }
  mapped_ = wanted;
}

// Gives memory back to the system that an earlier, much larger call has filled.
void KernelProcess::give_back(std::size_t end) {
  constexpr std::size_t worth_it = std::size_t{64} << 20;
  const std::size_t needed = round_up(end, page);
  if (filled_ > worth_it && filled_ / 4 > needed) {
    fallocate(memory_.number(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              static_cast<off_t>(needed), static_cast<off_t>(filled_ - needed));
    filled_ = needed;
  }
  filled_ = std::max(filled_, needed);
}

// Receives a stage that the library told, with its floats. The fields are checked before use.
std::string KernelProcess::hear(const KernelCall& call, const KernelResponse& told,
                                const Probe& probe) {
  assay_stage stage = told.stage;
  if (std::string wrong = wrong_with(stage); !wrong.empty()) {
    stop();
    return wrong;
  }
  std::vector<float> data(usize(stage.rows * stage.columns));
  if (!transfer(socket_.number(), data.data(), data.size() * sizeof(float), false))
    return how_it_ended(call, "telling a stage");
  stage.data = data.data();
  stage.row_stride = stage.columns;
  stage.column_stride = 1;
  if (probe) probe(stage);
  return {};
}

std::string KernelProcess::exchange(KernelCall& call, KernelRequest& request,
                                    KernelResponse& response, const Probe& probe) {
  if (!process_) start();
  if (call.regions_.size() >= most_regions)
    throw std::logic_error("a call of a kernel library has too many arguments");
  reserve(call.end_ + page);
  give_back(call.end_);
  if (!call.arguments_.empty()) {
    std::memcpy(reinterpret_cast<void*>(base_), call.arguments_.data(), call.arguments_.size());
    request.mappings[request.mapping_count++] = {0, KernelCall::argument_bytes, 0, 0};
  }
  for (const KernelCall::Region& r : call.regions_) {
    auto* pages = reinterpret_cast<std::byte*>(base_ + r.pages_begin);
    const std::size_t before = r.offset - r.pages_begin, after = r.pages_end - r.offset - r.bytes;
    std::memset(pages, slack, before);
    const auto* from = static_cast<const std::byte*>(r.from);
    for (const auto& [begin, end] : r.parts)
      std::memcpy(pages + before + begin, from + begin, end - begin);
    if (!from) std::memset(pages + before, slack, r.bytes);
    else if (r.parts.empty()) std::memcpy(pages + before, from, r.bytes);
    std::memset(pages + before + r.bytes, slack, after);
    request.mappings[request.mapping_count++] = {r.pages_begin, r.pages_end - r.pages_begin,
                                                 r.writable ? 1 : 0, r.to ? 1 : 0};
  }
  const char* when = request.question == Question::load     ? "loading"
                     : request.question == Question::ask    ? "answering what it supports"
                     : request.question == Question::memory ? "standing idle"
                                                            : name_of_operation(request.operation);
  if (!transfer(socket_.number(), &request, sizeof request, true)) return how_it_ended(call, when);
  do {
    if (!transfer(socket_.number(), &response, sizeof response, false))
      return how_it_ended(call, when);
    if (response.told)
      if (std::string ended = hear(call, response, probe); !ended.empty()) return ended;
  } while (response.told);
  response.text[sizeof response.text - 1] = '\0';
  if (response.shortage) {
    stop();
    throw ShortageError(fmt::format("{}, in {}", response.text, when));
  }
  for (const KernelCall::Region& r : call.regions_) {
    if (!r.writable) continue;
    const auto* pages = reinterpret_cast<const unsigned char*>(base_ + r.pages_begin);
    const std::size_t before = r.offset - r.pages_begin, after = r.pages_end - r.offset - r.bytes;
    const auto intact = [&](std::size_t from, std::size_t count) {
      return std::all_of(pages + from, pages + from + count,
                         [](unsigned char c) { return c == slack; });
    };
    if (!intact(0, before))
      return fmt::format("the library wrote before the begin of {}, in {}", r.name, when);
    if (!intact(before + r.bytes, after))
      return fmt::format("the library wrote behind the end of {}, in {}", r.name, when);
  }
  return {};
}

KernelProcess::Answer KernelProcess::ask(KernelCall& call, int operation,
                                         const Arguments& arguments, const assay_dtype& output,
                                         int variant) {
  KernelRequest request;
  request.variant = variant;
  request.question = Question::ask;
  request.operation = operation;
  request.arguments = arguments;
  request.output = output;
  KernelResponse response;
  Answer answer;
  answer.finding = exchange(call, request, response);
  answer.status = response.status;
  answer.reason = response.text;
  answer.workspace = response.workspace;
  answer.scale_rule = response.scale_rule;
  if (response.has_arithmetic) {
    if (response.arithmetic_status != ASSAY_SUCCESS && answer.finding.empty())
      answer.finding =
          fmt::format("the library's {} answered {}",
                      operation == ASSAY_PRODUCT ? "product_arithmetic" : "arithmetic function",
                      response.arithmetic_status);
    if (operation == ASSAY_PRODUCT) answer.product_arithmetic = response.product_arithmetic;
    else answer.arithmetic = response.arithmetic;
  }
  return answer;
}

KernelProcess::Answer KernelProcess::run(KernelCall& call, KernelRequest& request,
                                         const Probe& probe) {
  KernelResponse response;
  Answer answer;
  answer.finding = exchange(call, request, response, probe);
  answer.status = response.status;
  if (answer.finding.empty() && response.text[0] != '\0') answer.finding = response.text;
  if (!answer.finding.empty()) return answer;
  for (const KernelCall::Region& r : call.regions_) {
    if (!r.to) continue;
    const auto* from = reinterpret_cast<const std::byte*>(base_ + r.offset);
    for (const auto& [begin, end] : r.parts)
      std::memcpy(static_cast<std::byte*>(r.to) + begin, from + begin, end - begin);
    if (r.parts.empty()) std::memcpy(r.to, from, r.bytes);
  }
  return answer;
}

KernelProcess::Answer KernelProcess::run(KernelCall& call, int operation,
                                         const Arguments& arguments, const Probe& probe) {
  KernelRequest request;
  request.question = Question::run;
  request.operation = operation;
  request.arguments = arguments;
  request.probed = probe ? 1 : 0;
  return run(call, request, probe);
}

KernelProcess::Answer KernelProcess::run_at_once(KernelCall& call, int operation,
                                                 const Arguments& one, const Arguments& other,
                                                 int rounds) {
  KernelRequest request;
  request.question = Question::run_at_once;
  request.operation = operation;
  request.arguments = one;
  request.other = other;
  request.rounds = rounds;
  return run(call, request, {});
}

UsedMemory KernelProcess::memory(std::string& ended) {
  KernelCall nothing(base_);
  KernelRequest request;
  request.question = Question::memory;
  KernelResponse response;
  ended = exchange(nothing, request, response);
  return response.memory;
}

}  // namespace assay
