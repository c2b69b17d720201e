#include "harness/candidates/kernel_server.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <system_error>
#include <thread>
#include <vector>

#include "harness/candidates/kernel_messages.h"
#include "harness/confinement.h"
#include "harness/crash_note.h"
#include "harness/keeper.h"

namespace assay {
namespace {

template <std::size_t n>
void copy_text(char (&to)[n], const char* from) {
  std::strncpy(to, from ? from : "", n - 1);
  to[n - 1] = '\0';
}

bool answer(KernelResponse& response) {
  return transfer(server_socket, &response, sizeof response, true);
}

bool answer_shortage(const std::string& what) {
  KernelResponse response;
  response.shortage = 1;
  copy_text(response.text, what.c_str());
  return answer(response);
}

// The loader tells what the system lacked in words alone.
bool tells_shortage(const std::string& words) {
  return std::ranges::any_of(std::initializer_list<int>{EMFILE, ENFILE, ENOMEM}, [&](int error) {
    return words.find(std::strerror(error)) != std::string::npos;
  });
}

constexpr int most_variants = 1 << 20;

// The size of the table in version 1 of kernel.h.
constexpr std::size_t first_size = offsetof(assay_kernel, product) + sizeof(assay_kernel::product);

// The table of the library, as this version of kernel.h has it: a shorter one comes from an older
// header and lacks the functions at its end. Throws std::system_error if the machine lacks
// something.
std::optional<assay_kernel> load_kernel(const std::string& library, std::string& why) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    why = fmt::format("cannot be loaded: {}", dlerror());
    if (tells_shortage(why)) throw std::bad_alloc();
    return std::nullopt;
  }
  const auto entry =
      reinterpret_cast<assay_kernel_entry_function>(dlsym(handle, "assay_kernel_entry"));
  if (!entry) {
    why = "has no symbol assay_kernel_entry; include/assay/kernel.h declares it";
    return std::nullopt;
  }
  const assay_kernel* table = entry(ASSAY_VERSION);
  if (!table) {
    why = fmt::format("does not work with version {} of kernel.h: its entry answered null",
                      ASSAY_VERSION);
    return std::nullopt;
  }
  if (table->version < 1 || table->version > ASSAY_VERSION) {
    why = fmt::format("its table has version = {}; between 1 and {} are known", table->version,
                      ASSAY_VERSION);
    return std::nullopt;
  }
  if (table->struct_size < first_size || table->struct_size > sizeof(assay_kernel) ||
      table->struct_size % sizeof(void*) != 0) {
    why = fmt::format("its table has struct_size = {}, which is not a multiple of {} from {} to {}",
                      table->struct_size, sizeof(void*), first_size, sizeof(assay_kernel));
    return std::nullopt;
  }
  assay_kernel kernel;
  assay_kernel_init(&kernel, nullptr);
  std::memcpy(&kernel, table, table->struct_size);
  if (kernel.probes != 0 && kernel.probes != 1)
    why = fmt::format("its table has probes = {}, neither 0 nor 1", kernel.probes);
  else if (kernel.not_reentrant != 0 && kernel.not_reentrant != 1)
    why = fmt::format("its table has not_reentrant = {}, neither 0 nor 1", kernel.not_reentrant);
  else if (kernel.d_lse != 0 && kernel.d_lse != 1)
    why = fmt::format("its table has d_lse = {}, neither 0 nor 1", kernel.d_lse);
  else if (kernel.no_d_sink != 0 && kernel.no_d_sink != 1)
    why = fmt::format("its table has no_d_sink = {}, neither 0 nor 1", kernel.no_d_sink);
  else if (kernel.variant_count < 0 || kernel.variant_count > most_variants)
    why = fmt::format("its table has variant_count = {}, outside [0, {}]", kernel.variant_count,
                      most_variants);
  else if (kernel.invariant_to > all_promises)
    why =
        fmt::format("its table has invariant_to = {}, above {}", kernel.invariant_to, all_promises);
  else if (!kernel.forward && !kernel.backward && !kernel.product && !kernel.decode &&
           !kernel.product_low_bit && !kernel.quantize && !kernel.dequantize && !kernel.append)
    why = "its table has no function";
  else if (assay_conventions read; kernel.conventions)
    why = read_conventions(*kernel.conventions, read);
  if (why.empty()) return kernel;
  return std::nullopt;
}

// The probe that a kernel calls. It sends the stage at once, from any thread, while the call of the
// kernel lasts.
struct Teller {
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
    KernelResponse response;
    response.told = 1;
    response.stage = *made;
    std::vector<float> dense(usize(made->rows * made->columns));
    for (std::int64_t r = 0; r < made->rows; ++r)
      for (std::int64_t c = 0; c < made->columns; ++c)
        dense[usize(r * made->columns + c)] =
            made->data[r * made->row_stride + c * made->column_stride];
    answer(response);
    transfer(server_socket, dense.data(), dense.size() * sizeof(float), true);
  }
  void set_open(bool to) {
    const std::lock_guard lock(mutex);
    open = to;
  }
};

// The tensors of a call, at the addresses that they have in the process of the owner.
class Mappings {
 public:
  explicit Mappings(std::size_t base) : base_(base) {}

  // Throws std::system_error.
  void show(std::span<const KernelRequest::Mapping> wanted) {
    const bool as_before = std::ranges::equal(shown_, wanted, [](const auto& x, const auto& y) {
      return x.offset == y.offset && x.bytes == y.bytes && x.writable == y.writable;
    });
    if (as_before) return;
    for (const auto& m : shown_) munmap(reinterpret_cast<void*>(base_ + m.offset), m.bytes);
    shown_.assign(wanted.begin(), wanted.end());
    for (const auto& m : wanted)
      if (mmap(reinterpret_cast<void*>(base_ + m.offset), m.bytes,
               m.writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_FIXED,
               server_memory, static_cast<off_t>(m.offset)) == MAP_FAILED)
        throw std::system_error(errno, std::generic_category(), "mapping tensors for a library");
  }

 private:
  const std::size_t base_;
  std::vector<KernelRequest::Mapping> shown_;
};

// Whether this thread computes 0 in the place of subnormal numbers, as code that gcc links with
// -ffast-math makes every thread do that loads it.
bool flushes_subnormals() {
  volatile float least = std::numeric_limits<float>::min();
  volatile float half = least / 2;
  return half == 0;
}

void describe(const assay_kernel& kernel, KernelResponse& response) {
  copy_text(response.text, kernel.name ? kernel.name : "unnamed");
  response.forward = kernel.forward != nullptr;
  response.backward = kernel.backward != nullptr;
  response.product = kernel.product != nullptr;
  response.product_low_bit = kernel.product_low_bit != nullptr;
  response.decode = kernel.decode != nullptr;
  response.quantize = kernel.quantize != nullptr;
  response.dequantize = kernel.dequantize != nullptr;
  response.cache = kernel.supports_cache != nullptr;
  response.append = kernel.append != nullptr;
  response.lse = kernel.no_lse == 0;
  response.probes = kernel.probes;
  response.workspace_function = kernel.workspace != nullptr || kernel.workspace_variant != nullptr;
  response.not_reentrant = kernel.not_reentrant;
  response.variant_count = kernel.variant_count;
  response.variants_differ =
      kernel.supports_variant != nullptr || kernel.supports_product_variant != nullptr;
  response.d_lse = kernel.d_lse;
  response.no_d_sink = kernel.no_d_sink;
  response.flushes = flushes_subnormals();
  response.product_batch = kernel.product_batch != nullptr;
  response.invariant_to = kernel.invariant_to;
  if (kernel.conventions) read_conventions(*kernel.conventions, response.conventions);
}

// Asks the variant of the request, or each variant until one says yes. The answer to the last
// question stays in the response.
template <class Ask>
void ask_variants(const assay_kernel& kernel, const KernelRequest& request,
                  KernelResponse& response, const Ask& ask) {
  const bool any = request.variant == KernelProcess::any_variant;
  const int first = any ? 0 : request.variant, end = any ? kernel.variant_count : first + 1;
  response.status = ask(first);
  for (int k = first + 1; k < end && response.status == ASSAY_UNSUPPORTED; ++k)
    response.status = ask(k);
}

// Asks about the operations that are no attention. Returns false for attention.
bool ask_without_problem(const assay_kernel& kernel, const KernelRequest& request,
                         KernelResponse& response, const char*& reason) {
  const KernelProcess::Arguments& a = request.arguments;
  const assay_dtype* output = &request.output;
  switch (request.operation) {
    case ASSAY_PRODUCT:
      if (a.a_low && kernel.supports_low_bit)
        response.status = kernel.supports_low_bit(a.a_low, a.w, output, &reason);
      if (a.a && kernel.supports_product)
        response.status = kernel.supports_product(a.a, a.w, output, &reason);
      if (response.status == ASSAY_SUCCESS && kernel.supports_product_variant)
        ask_variants(kernel, request, response, [&](int variant) {
          return kernel.supports_product_variant(variant, a.a, a.a_low, a.w, output, &reason);
        });
      return true;
    case quantize_operation:
      if (kernel.supports_quantize)
        response.status = kernel.supports_quantize(a.a, a.to, &response.scale_rule, &reason);
      return true;
    case dequantize_operation:
      if (kernel.supports_dequantize)
        response.status = kernel.supports_dequantize(a.w, output, &reason);
      return true;
    case append_operation:
      if (kernel.supports_append)
        response.status = kernel.supports_append(a.k, a.v, a.pages, &reason);
      return true;
    default: return false;
  }
}

// Asks how a variant computes a problem, and what workspace it needs.
void ask_how(const assay_kernel& kernel, const KernelRequest& request, KernelResponse& response) {
  const assay_attention* problem = request.arguments.problem;
  if (kernel.workspace_variant)
    response.workspace = kernel.workspace_variant(request.variant, request.operation, problem);
  else if (kernel.workspace) response.workspace = kernel.workspace(request.operation, problem);
  if (!kernel.arithmetic && !kernel.arithmetic_variant) return;
  assay_arithmetic* declared = &response.arithmetic;
  assay_arithmetic_init(declared);
  response.has_arithmetic = 1;
  response.arithmetic_status = kernel.arithmetic_variant
                                   ? kernel.arithmetic_variant(request.variant, problem, declared)
                                   : kernel.arithmetic(problem, declared);
}

// The same for a product. Everything has been supported.
void ask_how_to_multiply(const assay_kernel& kernel, const KernelRequest& request,
                         KernelResponse& response) {
  if (!kernel.product_arithmetic) return;
  const KernelProcess::Arguments& a = request.arguments;
  assay_product_arithmetic_init(&response.product_arithmetic);
  response.has_arithmetic = 1;
  response.arithmetic_status = kernel.product_arithmetic(
      request.variant, a.a, a.a_low, a.w, &request.output, &response.product_arithmetic);
}

void ask(const assay_kernel& kernel, const KernelRequest& request, KernelResponse& response) {
  const KernelProcess::Arguments& a = request.arguments;
  const char* reason = nullptr;
  const bool is_about_one = request.variant != KernelProcess::any_variant;
  if (ask_without_problem(kernel, request, response, reason)) {
    copy_text(response.text, reason);
    if (response.status == ASSAY_SUCCESS && is_about_one && request.operation == ASSAY_PRODUCT)
      ask_how_to_multiply(kernel, request, response);
    return;
  }
  if (kernel.supports)
    response.status = kernel.supports(request.operation, a.problem, &request.output, &reason);
  if (response.status == ASSAY_SUCCESS && a.pages && kernel.supports_cache)
    response.status = kernel.supports_cache(a.problem, a.pages, &request.output, &reason);
  if (response.status == ASSAY_SUCCESS && kernel.supports_variant)
    ask_variants(kernel, request, response, [&](int variant) {
      return kernel.supports_variant(variant, request.operation, a.problem, a.pages,
                                     &request.output, &reason);
    });
  copy_text(response.text, reason);
  if (response.status == ASSAY_SUCCESS && is_about_one) ask_how(kernel, request, response);
}

assay_status call(const assay_kernel& kernel, int operation, const KernelProcess::Arguments& a,
                  const assay_run& run) {
  switch (operation) {
    case ASSAY_FORWARD: return kernel.forward(a.problem, a.o, a.lse, &run);
    case ASSAY_BACKWARD: return kernel.backward(a.problem, a.o, a.lse, a.d_o, a.gradients, &run);
    case ASSAY_DECODE: return kernel.decode(a.problem, a.pages, a.o, a.lse, &run);
    case quantize_operation: return kernel.quantize(a.a, a.to, &run);
    case dequantize_operation: return kernel.dequantize(a.w, a.c, &run);
    case append_operation: return kernel.append(a.k, a.v, a.slots, a.pages, &run);
    case batch_operation: return kernel.product_batch(a.batch, a.a, a.a_low, a.w, a.c, &run);
    default:
      return a.a_low ? kernel.product_low_bit(a.a_low, a.w, a.c, &run)
                     : kernel.product(a.a, a.w, a.c, &run);
  }
}

// The allocator checks its heap here. A heap that a stray write broke ends the process now, not
// during the next call.
void check_heap() {
  for (std::size_t bytes = 16; bytes <= 65536; bytes *= 2) std::free(std::malloc(bytes));
}

void compute(const assay_kernel& kernel, const KernelRequest& request, Teller& teller,
             KernelResponse& response) {
  assay_run told = *request.arguments.run;
  teller.set_open(true);
  if (request.probed) told.probe = Teller::tell, told.probe_context = &teller;
  response.status = call(kernel, request.operation, request.arguments, told);
  teller.set_open(false);
  check_heap();
}

// The bytes of the outputs, which the library may write at any time.
class OutputBytes {
 public:
  OutputBytes(const KernelRequest& request, std::size_t base) {
    for (const auto& m : std::span(request.mappings).first(request.mapping_count))
      if (m.output) places_.emplace_back(reinterpret_cast<std::byte*>(base + m.offset), m.bytes);
  }
  std::vector<std::byte> now() const {
    std::vector<std::byte> all;
    for (const auto place : places_) all.insert(all.end(), place.begin(), place.end());
    return all;
  }
  void set(const std::vector<std::byte>& all) const {
    auto from = all.begin();
    for (const auto place : places_) {
      std::copy_n(from, place.size(), place.begin());
      from += std::ssize(place);
    }
  }

 private:
  std::vector<std::span<std::byte>> places_;
};

// Both calls alone, and then at once, until an output has other bytes or a call another status.
void compute_at_once(const assay_kernel& kernel, const KernelRequest& request, std::size_t base,
                     KernelResponse& response) {
  const auto run = [&](const KernelProcess::Arguments& a) {
    return call(kernel, request.operation, a, *a.run);
  };
  const OutputBytes outputs(request, base);
  const std::vector<std::byte> poisoned = outputs.now();
  response.status = run(request.arguments);
  if (const assay_status other = run(request.other); response.status == ASSAY_SUCCESS)
    response.status = other;
  const std::vector<std::byte> alone = outputs.now();
  for (int k = 0; k < request.rounds && response.status == ASSAY_SUCCESS; ++k) {
    outputs.set(poisoned);
    std::atomic<int> waiting = 2;
    const auto start_together = [&] {
      for (--waiting; waiting > 0;) std::this_thread::yield();
    };
    assay_status second = ASSAY_SUCCESS;
    std::thread thread([&] {
      start_together();
      second = run(request.other);
    });
    start_together();
    response.status = run(request.arguments);
    thread.join();
    if (response.status == ASSAY_SUCCESS) response.status = second;
    if (outputs.now() != alone) break;
  }
  check_heap();
}

// Counts the bytes that the allocator has given away, and those in memory that are neither a file
// nor shared.
UsedMemory used_memory() {
  UsedMemory used;
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
  const struct mallinfo2 heap = mallinfo2();
  used.heap = static_cast<std::int64_t>(heap.uordblks + heap.hblkhd);
#endif
  std::int64_t size = 0, resident = 0, shared = 0;
  std::ifstream("/proc/self/statm") >> size >> resident >> shared;
  used.resident = (resident - shared) * sysconf(_SC_PAGESIZE);
  constexpr int looked_at = 1024;
  for (int k = 0; k < looked_at; ++k)
    if (fcntl(k, F_GETFD) >= 0) ++used.descriptors;
  return used;
}

// Where the owner looks when this process has ended.
void note_crashes_for_owner() {
  void* page = mmap(nullptr, sizeof(CrashNote), PROT_READ | PROT_WRITE, MAP_SHARED, server_memory,
                    static_cast<off_t>(KernelCall::argument_bytes));
  if (page == MAP_FAILED)
    throw std::system_error(errno, std::generic_category(), "mapping a page for a library");
  note_crashes(*static_cast<CrashNote*>(page));
}

// Serves until the owner closes the socket. An exception of the library that is no shortage ends
// the process, as it would in any C program.
void serve(const std::string& library, std::size_t base) {
  std::string why;
  const std::optional<assay_kernel> kernel = load_kernel(library, why);
  Mappings mappings(base);
  Teller teller;  // a library may keep its address
  for (KernelRequest request; transfer(server_socket, &request, sizeof request, false);) {
    KernelResponse response;
    if (!kernel) {
      response.status = ASSAY_INVALID_ARGUMENTS;
      copy_text(response.text, why.c_str());
      answer(response);
      continue;
    }
    mappings.show({request.mappings.data(), request.mapping_count});
    switch (request.question) {
      case Question::load: describe(*kernel, response); break;
      case Question::ask: ask(*kernel, request, response); break;
      case Question::run: compute(*kernel, request, teller, response); break;
      case Question::run_at_once: compute_at_once(*kernel, request, base, response); break;
      case Question::memory: response.memory = used_memory(); break;
    }
    // No other thread writes to the socket meanwhile.
    const std::lock_guard lock(teller.mutex);
    if (request.question == Question::run) copy_text(response.text, teller.wrong.c_str());
    if (!answer(response)) return;
  }
}

int serve_in_child(const std::string& library, std::size_t base) noexcept {
  close_from(server_memory + 1);
  give_up_other_processes();
  try {
    note_crashes_for_owner();
    serve(library, base);
  } catch (const std::bad_alloc&) {
    answer_shortage("the library's process has too little memory");
  } catch (const std::system_error& e) {
    answer_shortage(e.what());
  }
  _exit(0);  // the destructors of a library are not judged
}

}  // namespace

int serve_kernel(const std::string& library, std::size_t base) {
  close_to_others();
  try {
    run_and_end_all([&] { return serve_in_child(library, base); });
  } catch (const std::system_error& e) {
    answer_shortage(e.what());
    return 0;
  }
}

}  // namespace assay
