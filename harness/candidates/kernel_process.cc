#include "harness/candidates/kernel_process.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <span>
#include <system_error>

namespace assay {
namespace {

constexpr std::size_t page = 4096;
constexpr unsigned char slack =
    0xFF;  // around and in what is not written yet: NaN in every float format
// Addresses that are free in every process: they lie below those that the loader, stacks and the
// thread sanitizer use.
constexpr std::size_t bases[] = {0x7ea000000000, 0x7f0000000000, 0x7e9000000000};
constexpr std::size_t largest_arena = std::size_t{64} << 30;
constexpr int server_socket = 3, server_memory = 4;
constexpr std::size_t most_regions = 48;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

// Transfers all bytes; returns false at the end of the stream.
bool transfer(int socket, void* data, std::size_t bytes, bool out) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = out ? send(socket, at, bytes, MSG_NOSIGNAL) : recv(socket, at, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    bytes -= usize(n);
  }
  return true;
}

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

const char* name_of_operation(int operation) {
  switch (operation) {
    case ASSAY_FORWARD: return "forward";
    case ASSAY_BACKWARD: return "backward";
    case ASSAY_DECODE: return "decode";
    default: return "product";
  }
}

assay_dtype c_dtype(Dtype d) {
  const auto bits = static_cast<std::uint8_t>(format(d).bits);
  return {static_cast<std::uint8_t>(d == Dtype::bf16 ? ASSAY_BFLOAT : ASSAY_FLOAT), bits, 1};
}

// What is wrong with a stage that a library tells; empty if nothing is wrong.
std::string wrong_with(const assay_stage& made) {
  constexpr std::int64_t most = 1 << 24;
  if (made.version != ASSAY_VERSION || made.struct_size != sizeof(assay_stage))
    return "the library told a stage of another version or size";
  if (made.stage < ASSAY_STAGE_QUERY || made.stage > ASSAY_STAGE_SCORE_GRADIENTS)
    return fmt::format("the library told a stage of number {}", made.stage);
  if (!made.data || made.rows < 0 || made.columns < 0 || made.rows > most || made.columns > most ||
      made.rows * made.columns > most)
    return fmt::format("the library told a stage of {} rows and {} columns", made.rows,
                       made.columns);
  return {};
}

template <std::size_t n>
void copy_text(char (&to)[n], const char* from) {
  std::strncpy(to, from ? from : "", n - 1);
  to[n - 1] = '\0';
}

}  // namespace

enum class Question : std::int32_t { load, ask, run };

struct KernelProcess::Request {
  Question question = Question::load;
  std::int32_t operation = 0;
  Arguments arguments;
  assay_dtype output{};
  struct Mapping {
    std::uint64_t offset, bytes;
    std::int32_t writable, padding;
  };
  std::array<Mapping, most_regions> mappings{};
  std::uint32_t mapping_count = 0;
  std::int32_t probed = 0;
};

struct KernelProcess::Response {
  std::int32_t status = 0;
  std::int32_t told =
      0;  // 1: a stage, whose rows * columns floats follow; the answer is still to come
  std::int32_t forward = 0, backward = 0, product = 0, decode = 0, lse = 0, probes = 0,
               workspace_function = 0, has_arithmetic = 0, arithmetic_status = 0;
  assay_stage stage{};
  std::uint64_t workspace = 0;
  assay_arithmetic arithmetic{};
  char text[1024] = "";  // a reason, a name, or why the library cannot be used
};

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

// The offsets of the first and the last element of a view.
std::pair<Index, Index> reach(const TensorView& t) {
  Index low = t.origin, high = t.origin;
  for (std::size_t k = 0; k < 4; ++k) {
    if (t.shape[k] == 0) return {0, 0};
    const Index far = (t.shape[k] - 1) * t.stride[k];
    (far < 0 ? low : high) += far;
  }
  return {low, high + 1};
}

}  // namespace

const assay_tensor* KernelCall::add_input(const TensorView& t, std::optional<assay_dtype> as) {
  if (!t) return nullptr;
  const auto [low, high] = reach(t);
  const Index bytes = format(t.dtype).bits / 8;
  const std::size_t at =
      place(usize((high - low) * bytes), false, static_cast<const std::byte*>(t.data) + low * bytes,
            nullptr, "an input");
  return describe(t, reinterpret_cast<void*>(base_ + at), t.origin - low, as);
}

const assay_tensor* KernelCall::add_output(const TensorView& t) {
  if (!t) return nullptr;
  const auto [low, high] = reach(t);
  const Index bytes = format(t.dtype).bits / 8;
  auto* data = static_cast<std::byte*>(t.data) + low * bytes;
  const std::size_t at = place(usize((high - low) * bytes), true, data, data, "an output");
  return describe(t, reinterpret_cast<void*>(base_ + at), t.origin - low);
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
  kept_.emplace_back(first, first + bytes);
  const std::size_t at = place(bytes, false, kept_.back().data(), nullptr, "an argument");
  return reinterpret_cast<const void*>(base_ + at);
}

void* KernelCall::add_workspace(std::size_t bytes) {
  return bytes == 0 ? nullptr
                    : reinterpret_cast<void*>(
                          base_ + place(bytes, true, nullptr, nullptr, "the workspace"));
}

// ---- The process of a library ----

KernelProcess::KernelProcess(std::string library, std::string server)
    : library_(std::move(library)), server_(std::move(server)) {
  start();
}

KernelProcess::~KernelProcess() {
  stop();
  if (mapped_ > 0) munmap(reinterpret_cast<void*>(base_), mapped_);
}

void KernelProcess::start() {
  if (memory_.number() < 0) {
    memory_ = Descriptor(memfd_create("assay-kernel", MFD_CLOEXEC));
    if (memory_.number() < 0)
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
  Channel ends = make_socket_pair("a socket for a kernel library");
  process_.emplace(ProcessStart{
      .program = server_,
      .arguments = {"assay", "serve-kernel", library_, fmt::to_string(base_)},
      .descriptors = {{STDERR_FILENO, STDOUT_FILENO},  // what the library prints is not our output
                      {ends.in.number(), server_socket},
                      {memory_.number(), server_memory}},
      .environment = malloc_checks()});
  socket_ = std::move(ends.out);
  Request request;
  Response response;
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
            .decode = response.decode != 0,
            .lse = response.lse != 0,
            .workspace = response.workspace_function != 0,
            .probes = response.probes != 0};
}

void KernelProcess::stop() {
  process_.reset();
  socket_.close();
}

std::string KernelProcess::how_it_ended(const char* when) {
  const std::string how = assay::how_it_ended(process_->wait());
  stop();
  return fmt::format("the library's process {} in {}", how, when);
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

// Receives a stage that the library told, with its floats. The fields are checked before use.
std::string KernelProcess::hear(const Response& told, const Probe& probe) {
  assay_stage stage = told.stage;
  if (std::string wrong = wrong_with(stage); !wrong.empty()) {
    stop();
    return wrong;
  }
  std::vector<float> data(usize(stage.rows * stage.columns));
  if (!transfer(socket_.number(), data.data(), data.size() * sizeof(float), false))
    return how_it_ended("telling a stage");
  stage.data = data.data();
  stage.row_stride = stage.columns;
  stage.column_stride = 1;
  if (probe) probe(stage);
  return {};
}

std::string KernelProcess::exchange(KernelCall& call, Request& request, Response& response,
                                    const Probe& probe) {
  if (!process_) start();
  if (call.regions_.size() >= most_regions)
    throw std::logic_error("a call of a kernel library has too many arguments");
  reserve(call.end_ + page);
  if (!call.arguments_.empty()) {
    std::memcpy(reinterpret_cast<void*>(base_), call.arguments_.data(), call.arguments_.size());
    request.mappings[request.mapping_count++] = {0, KernelCall::argument_bytes, 0, 0};
  }
  for (const KernelCall::Region& r : call.regions_) {
    auto* pages = reinterpret_cast<std::byte*>(base_ + r.pages_begin);
    const std::size_t before = r.offset - r.pages_begin, after = r.pages_end - r.offset - r.bytes;
    std::memset(pages, slack, before);
    if (r.from) std::memcpy(pages + before, r.from, r.bytes);
    else std::memset(pages + before, slack, r.bytes);
    std::memset(pages + before + r.bytes, slack, after);
    request.mappings[request.mapping_count++] = {r.pages_begin, r.pages_end - r.pages_begin,
                                                 r.writable ? 1 : 0, 0};
  }
  const char* when = request.question == Question::load  ? "loading"
                     : request.question == Question::ask ? "answering what it supports"
                                                         : name_of_operation(request.operation);
  if (!transfer(socket_.number(), &request, sizeof request, true)) return how_it_ended(when);
  do {
    if (!transfer(socket_.number(), &response, sizeof response, false)) return how_it_ended(when);
    if (response.told)
      if (std::string ended = hear(response, probe); !ended.empty()) return ended;
  } while (response.told);
  response.text[sizeof response.text - 1] = '\0';
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
                                         const assay_attention* problem,
                                         const assay_dtype& output) {
  Request request;
  request.question = Question::ask;
  request.operation = operation;
  request.arguments.problem = problem;
  request.output = output;
  Response response;
  Answer answer;
  answer.finding = exchange(call, request, response);
  answer.status = response.status;
  answer.reason = response.text;
  answer.workspace = response.workspace;
  if (response.has_arithmetic) {
    if (response.arithmetic_status != ASSAY_SUCCESS && answer.finding.empty())
      answer.finding =
          fmt::format("the library's arithmetic function answered {}", response.arithmetic_status);
    answer.arithmetic = response.arithmetic;
  }
  return answer;
}

KernelProcess::Answer KernelProcess::ask_product(KernelCall& call, const assay_tensor* a,
                                                 const assay_low_bit* w,
                                                 const assay_dtype& output) {
  Request request;
  request.question = Question::ask;
  request.operation = ASSAY_PRODUCT;
  request.arguments.a = a;
  request.arguments.w = w;
  request.output = output;
  Response response;
  Answer answer;
  answer.finding = exchange(call, request, response);
  answer.status = response.status;
  answer.reason = response.text;
  return answer;
}

KernelProcess::Answer KernelProcess::run(KernelCall& call, int operation,
                                         const Arguments& arguments, const Probe& probe) {
  Request request;
  request.question = Question::run;
  request.operation = operation;
  request.arguments = arguments;
  request.probed = probe ? 1 : 0;
  Response response;
  Answer answer;
  answer.finding = exchange(call, request, response, probe);
  answer.status = response.status;
  if (answer.finding.empty() && response.text[0] != '\0') answer.finding = response.text;
  if (!answer.finding.empty()) return answer;
  for (const KernelCall::Region& r : call.regions_)
    if (r.to) std::memcpy(r.to, reinterpret_cast<const void*>(base_ + r.offset), r.bytes);
  return answer;
}

// ---- The other end ----

namespace {

const assay_kernel* load_kernel(const std::string& library, std::string& why) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    why = fmt::format("cannot be loaded: {}", dlerror());
    return nullptr;
  }
  const auto entry =
      reinterpret_cast<assay_kernel_entry_function>(dlsym(handle, "assay_kernel_entry"));
  if (!entry) {
    why = "has no symbol assay_kernel_entry; include/assay/kernel.h declares it";
    return nullptr;
  }
  const assay_kernel* kernel = entry(ASSAY_VERSION);
  if (!kernel)
    why = fmt::format("does not work with version {} of kernel.h: its entry answered null",
                      ASSAY_VERSION);
  else if (kernel->version < 1 || kernel->version > ASSAY_VERSION)
    why = fmt::format("its table has version = {}; between 1 and {} are known", kernel->version,
                      ASSAY_VERSION);
  else if (kernel->struct_size != sizeof(assay_kernel))
    why = fmt::format("its table has struct_size = {}, not {}", kernel->struct_size,
                      sizeof(assay_kernel));
  else if (kernel->probes != 0 && kernel->probes != 1)
    why = fmt::format("its table has probes = {}, neither 0 nor 1", kernel->probes);
  else if (!kernel->forward && !kernel->backward && !kernel->product && !kernel->decode)
    why = "its table has no function";
  else return kernel;
  return nullptr;
}

}  // namespace

// The probe that a kernel calls. It sends the stage at once, from any thread, while the call of the
// kernel lasts.
struct KernelProcess::Teller {
  std::mutex mutex;
  bool open = false;
  std::string wrong;

  static void tell(void* context, const assay_stage* made) {
    auto& self = *static_cast<Teller*>(context);
    const std::lock_guard lock(self.mutex);
    if (!self.open) self.wrong = "the library told a stage when its call had returned";
    else if (self.wrong.empty())
      self.wrong = made ? wrong_with(*made) : "the library told no stage";
    if (!self.wrong.empty()) return;
    Response response;
    response.told = 1;
    response.stage = *made;
    std::vector<float> dense(usize(made->rows * made->columns));
    for (std::int64_t r = 0; r < made->rows; ++r)
      for (std::int64_t c = 0; c < made->columns; ++c)
        dense[usize(r * made->columns + c)] =
            made->data[r * made->row_stride + c * made->column_stride];
    transfer(server_socket, &response, sizeof response, true);
    transfer(server_socket, dense.data(), dense.size() * sizeof(float), true);
  }
  void set_open(bool to) {
    const std::lock_guard lock(mutex);
    open = to;
  }
};

int KernelProcess::serve(const std::string& library, std::size_t base) {
  constexpr int socket = server_socket, memory = server_memory;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::string why;
  const assay_kernel* kernel = load_kernel(library, why);
  std::vector<Request::Mapping> mapped;
  Teller teller;  // a library may keep its address
  for (Request request; transfer(socket, &request, sizeof request, false);) {
    Response response;
    if (!kernel) {
      response.status = ASSAY_INVALID_ARGUMENTS;
      copy_text(response.text, why.c_str());
      transfer(socket, &response, sizeof response, true);
      continue;
    }
    const std::span<const Request::Mapping> wanted(request.mappings.data(), request.mapping_count);
    const bool as_before = std::ranges::equal(mapped, wanted, [](const auto& x, const auto& y) {
      return x.offset == y.offset && x.bytes == y.bytes && x.writable == y.writable;
    });
    if (!as_before)
      for (const auto& m : mapped) munmap(reinterpret_cast<void*>(base + m.offset), m.bytes);
    if (!as_before) mapped.assign(wanted.begin(), wanted.end());
    for (const auto& m : as_before ? std::span<const Request::Mapping>() : wanted)
      if (mmap(reinterpret_cast<void*>(base + m.offset), m.bytes,
               m.writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_FIXED, memory,
               static_cast<off_t>(m.offset)) == MAP_FAILED)
        return 120;  // the parent reports it as the exit status
    const Arguments& a = request.arguments;
    switch (request.question) {
      case Question::load:
        copy_text(response.text, kernel->name ? kernel->name : "unnamed");
        response.forward = kernel->forward != nullptr;
        response.backward = kernel->backward != nullptr;
        response.product = kernel->product != nullptr;
        response.decode = kernel->decode != nullptr;
        response.lse = kernel->no_lse == 0;
        response.probes = kernel->probes;
        response.workspace_function = kernel->workspace != nullptr;
        break;
      case Question::ask: {
        const char* reason = nullptr;
        if (request.operation == ASSAY_PRODUCT) {
          if (kernel->supports_product)
            response.status = kernel->supports_product(a.a, a.w, &request.output, &reason);
          copy_text(response.text, reason);
          break;
        }
        if (kernel->supports)
          response.status =
              kernel->supports(request.operation, a.problem, &request.output, &reason);
        copy_text(response.text, reason);
        if (response.status != ASSAY_SUCCESS) break;
        if (kernel->workspace) response.workspace = kernel->workspace(request.operation, a.problem);
        if (kernel->arithmetic) {
          assay_arithmetic_init(&response.arithmetic);
          response.has_arithmetic = 1;
          response.arithmetic_status = kernel->arithmetic(a.problem, &response.arithmetic);
        }
        break;
      }
      case Question::run: {
        assay_run told = *a.run;
        teller.set_open(true);
        if (request.probed) told.probe = Teller::tell, told.probe_context = &teller;
        switch (request.operation) {
          case ASSAY_FORWARD:
            response.status = kernel->forward(a.problem, a.o, a.lse, &told);
            break;
          case ASSAY_BACKWARD:
            response.status = kernel->backward(a.problem, a.o, a.lse, a.d_o, a.gradients, &told);
            break;
          case ASSAY_DECODE:
            response.status = kernel->decode(a.problem, a.pages, a.o, a.lse, &told);
            break;
          default: response.status = kernel->product(a.a, a.w, a.c, &told);
        }
        teller.set_open(false);
        // The allocator checks its heap here. A heap that a stray write broke ends the process now,
        // not during the next call.
        for (std::size_t bytes = 16; bytes <= 65536; bytes *= 2) std::free(std::malloc(bytes));
        break;
      }
    }
    // No other thread writes to the socket meanwhile.
    const std::lock_guard lock(teller.mutex);
    if (request.question == Question::run) copy_text(response.text, teller.wrong.c_str());
    if (!transfer(socket, &response, sizeof response, true)) break;
  }
  _exit(0);  // the destructors of a library are not judged
}

}  // namespace assay
