// A kernel library of another author in a process of its own. Tensors lie in memory that both
// processes map at the same addresses. The library's side maps inputs read-only, and outputs and
// workspace lie between pages that are not mapped. What the library does to its process (a crash,
// exit, a broken heap, a stray write) becomes a finding and costs one call. The library's process
// does not hold, and cannot open, what verdicts travel on (harness/confinement.h), and what it
// starts ends with it (harness/keeper.h).
#pragma once

#include <assay/kernel.h>

#include <cstdint>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "harness/candidates/candidate.h"
#include "harness/crash_note.h"
#include "harness/process.h"
#include "problem/conventions.h"
#include "problem/tensor.h"

namespace assay {

// The library cannot be used at all: it does not load, it has no entry symbol, or it has another
// version.
struct LibraryError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// "forward" for ASSAY_FORWARD, and so on.
const char* name_of_operation(int operation);

// The name of the library and what it supports.
struct LibraryFacts {
  std::string name;
  bool forward = false, backward = false, product = false, product_low_bit = false, decode = false,
       quantize = false, dequantize = false, cache = false, append = false, lse = true,
       workspace = false, probes = false, reentrant = true, d_lse = false, d_sink = true,
       product_batch = false,
       flushes = false;  // its process computes 0 in the place of subnormal numbers
  int variants = 1;
  bool variants_differ = false;  // a variant may decline what others do, and says why
  Promises promises = 0;
  Conventions conventions;
};

// Operations beside those of kernel.h, whose numbers no library sees.
enum { quantize_operation = 64, dequantize_operation, append_operation, batch_operation };

// One call with its arguments. Each add_* copies its argument into shared memory and returns an
// address that is valid in both processes. Names are for messages.
class KernelCall {
 public:
  // Copies the bytes that a view reaches, gaps included unless they are holes of gigabytes.
  const assay_tensor* add_input(const char* name, const TensorView& t,
                                std::optional<assay_dtype> as = {});
  const assay_tensor* add_output(const char* name, const TensorView& t);
  // Describes a tensor without memory, for questions about a problem.
  const assay_tensor* add_shape(const TensorView& t, std::optional<assay_dtype> as = {});
  // Views of one storage, in one region. Only these pages of the views are copied (all bytes, if
  // none is named). Null for views without data.
  std::vector<const assay_tensor*> add_pages(const char* name, std::span<const TensorView> views,
                                             bool writable, std::span<const Index> pages);
  // Bytes that the library writes; they are copied back.
  void* add_output_bytes(const char* name, void* to, std::size_t bytes);
  // Bytes with unmapped pages around them, as tensors have.
  const void* add_input_bytes(const char* name, const void* from, std::size_t bytes);
  template <class T>
  const T* add_table(const char* name, const std::vector<T>& table) {
    return table.empty() ? nullptr
                         : static_cast<const T*>(
                               add_input_bytes(name, table.data(), table.size() * sizeof(T)));
  }
  // A small argument, which lies beside others.
  const void* add_bytes(const void* from, std::size_t bytes);
  template <class T>
  const T* add(const T& value) {
    return static_cast<const T*>(add_bytes(&value, sizeof value));
  }
  template <class T>
  const T* add_list(const std::vector<T>& list) {
    return list.empty() ? nullptr
                        : static_cast<const T*>(add_bytes(list.data(), list.size() * sizeof(T)));
  }
  void* add_workspace(std::size_t bytes);
  // Whether a tensor has holes of gigabytes, which take memory only where they are touched.
  bool has_holes() const;

  // An argument that was added, as it may be changed until the call is made; null for null, and for
  // elements of tensors.
  template <class T>
  T* edit(const T* added) {
    const auto at = reinterpret_cast<std::size_t>(added) - base_;
    if (!added) return nullptr;
    if (at < arguments_.size()) return reinterpret_cast<T*>(arguments_.data() + at);
    return reinterpret_cast<T*>(kept_at(at));
  }

  // Small arguments take the first bytes. The page behind them is not mapped where the library sees
  // them.
  static constexpr std::size_t argument_bytes = 32768;

 private:
  friend class KernelProcess;
  struct Region {
    std::size_t offset, pages_begin, pages_end;  // bytes in the arena
    std::size_t bytes;
    const void* from = nullptr;  // the source of the copy; null: the region is filled
    void* to = nullptr;          // the target of the copy back
    bool writable = false;
    std::string name;
    // The parts that are copied, as offsets from the begin; empty: all bytes.
    std::vector<std::pair<std::size_t, std::size_t>> parts = {};
  };
  explicit KernelCall(std::size_t base) : base_(base) {}
  std::size_t place(std::size_t bytes, bool writable, const void* from, void* to, const char* name);
  std::size_t place(const char* name, const TensorView& t, bool writable);
  std::byte* kept_at(std::size_t at);
  std::vector<NamedBytes> named_bytes() const;
  const assay_tensor* describe(const TensorView& t, void* data, Index origin,
                               std::optional<assay_dtype> as = {});

  const std::size_t base_;
  std::size_t end_ = argument_bytes;  // small arguments take the first pages
  std::vector<Region> regions_;
  std::vector<std::byte> arguments_;
  // Arguments with pages of their own, until they are copied into the arena.
  std::vector<std::vector<std::byte>> kept_;
};

struct KernelRequest;
struct KernelResponse;

// Every function that exchanges something with the library throws ShortageError if memory,
// descriptors or processes run short on either side.
class KernelProcess {
 public:
  // Starts `server serve-kernel` and loads the library. Throws LibraryError, or std::system_error
  // if the process cannot be started. From then on no process of this user can look into this one.
  explicit KernelProcess(std::string library, std::string server = "/proc/self/exe");
  ~KernelProcess();
  KernelProcess(const KernelProcess&) = delete;
  KernelProcess& operator=(const KernelProcess&) = delete;

  const LibraryFacts& facts() const { return facts_; }
  KernelCall call() const { return KernelCall(base_); }

  struct Answer {
    // What the library did that no library may do. If it is not empty, the other fields mean
    // nothing.
    std::string finding;
    assay_status status = ASSAY_SUCCESS;
    std::string reason;
    std::optional<assay_arithmetic> arithmetic;  // of attention
    std::optional<assay_product_arithmetic> product_arithmetic;
    std::size_t workspace = 0;
    std::int32_t scale_rule = ASSAY_SCALE_FLOOR;
  };
  // The arguments of a call or of a question about it. A pointer that an operation does not have
  // is null.
  struct Arguments {
    const assay_attention* problem = nullptr;
    const assay_tensor *o = nullptr, *lse = nullptr, *d_o = nullptr;
    const assay_gradients* gradients = nullptr;
    const assay_tensor *a = nullptr, *c = nullptr;
    const assay_low_bit *a_low = nullptr, *w = nullptr;  // a or a_low
    std::int64_t batch = 1;                              // so many of each, for batch_operation
    const assay_low_bit_output* to = nullptr;
    const assay_pages* pages = nullptr;
    const assay_tensor *k = nullptr, *v = nullptr;  // the tokens of append
    const std::int64_t* slots = nullptr;
    const assay_run* run = nullptr;
  };
  // Asks whether this variant of the library does this, how it computes it, and what workspace it
  // needs. For any_variant, asks whether some variant does it.
  static constexpr int any_variant = -1;
  Answer ask(KernelCall& call, int operation, const Arguments& arguments, const assay_dtype& output,
             int variant);
  // Receives each stage that the library tells. The data of a stage are valid only for that call.
  using Probe = std::function<void(const assay_stage&)>;
  // Runs the call and copies the outputs back, unless there is a finding.
  Answer run(KernelCall& call, int operation, const Arguments& arguments, const Probe& probe = {});
  // Runs two calls, whose arguments lie in the same KernelCall, one after the other. Then runs them
  // at once, from two threads, so many times, or until an output has other bytes than before. The
  // outputs are copied back as they are then.
  Answer run_at_once(KernelCall& call, int operation, const Arguments& one, const Arguments& other,
                     int rounds);
  // What the library's process holds at present. If there is a finding in `ended`, nothing.
  UsedMemory memory(std::string& ended);

 private:
  void start();
  void stop();
  std::string exchange(KernelCall& call, KernelRequest& request, KernelResponse& response,
                       const Probe& probe = {});
  Answer run(KernelCall& call, KernelRequest& request, const Probe& probe);
  std::string hear(const KernelCall& call, const KernelResponse& told, const Probe& probe);
  std::string how_it_ended(const KernelCall& call, const char* when);
  CrashNote& crash_note() const;
  void reserve(std::size_t bytes);
  void give_back(std::size_t end);

  const std::string library_, server_;
  LibraryFacts facts_;
  std::optional<Process> process_;
  Descriptor socket_, memory_;
  std::size_t base_ = 0, mapped_ = 0;
  std::size_t filled_ = 0;  // bytes of the arena that may be in memory
};

}  // namespace assay
