// The OpenCL backend: every OpenCL function fails once with every code, over an invented driver
// that counts its objects. Then the kernels run on the machine's real driver, which the first test
// names.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <iostream>
#include <limits>
#include <set>

#include "harness/judging/outputs.h"
#include "kernels/attention/attention.h"
#include "kernels/device/device_backend.h"
#include "kernels/device/opencl_device.h"
#include "kernels/dispatch/dispatch.h"
#include "kernels/product/product.h"
#include "kernels/simd/bf16_dots.h"

namespace assay {
namespace {

using namespace kernels;
using testing::HasSubstr;

// ---- A driver of our own ----

// A driver with one platform and one device. Objects are numbers, and buffers hold what was written
// to them. Functions are plain pointers, so the driver is global.
struct FakeDriver {
  std::vector<const char*> calls;
  std::ptrdiff_t failing_call = -1;
  cl_int code = 0;
  std::set<std::uintptr_t> contexts, queues, buffers, programs, kernels;
  std::uintptr_t next = 1;
  std::string breach;

  bool fails(const char* function) {
    calls.push_back(function);
    return std::ssize(calls) - 1 == failing_call;
  }
  template <class Object>
  Object create(const char* function, std::set<std::uintptr_t>& held, cl_int* error) {
    if (fails(function)) {
      *error = code;
      return nullptr;
    }
    *error = CL_SUCCESS;
    held.insert(next);
    return reinterpret_cast<Object>(next++);
  }
  // The interface says that the object is gone whatever the answer is.
  template <class Object>
  cl_int release(const char* function, std::set<std::uintptr_t>& held, Object object) {
    if (held.erase(reinterpret_cast<std::uintptr_t>(object)) != 1)
      breach += std::string(function) + " of what is not held; ";
    return fails(function) ? code : CL_SUCCESS;
  }
  cl_int simply(const char* function) { return fails(function) ? code : CL_SUCCESS; }
  std::size_t held() const {
    return contexts.size() + queues.size() + buffers.size() + programs.size() + kernels.size();
  }
};
FakeDriver fake;

cl_int text(const char* function, const char* answer, std::size_t size, void* to,
            std::size_t* needed) {
  if (fake.fails(function)) return fake.code;
  if (needed) *needed = std::strlen(answer) + 1;
  if (to) std::memcpy(to, answer, std::min(size, std::strlen(answer) + 1));
  return CL_SUCCESS;
}

OpenclApi fake_api() {
  OpenclApi api;
  api.clGetPlatformIDs = [](cl_uint, cl_platform_id* to, cl_uint* count) {
    if (fake.fails("clGetPlatformIDs")) return fake.code;
    if (to) *to = reinterpret_cast<cl_platform_id>(7);
    if (count) *count = 1;
    return cl_int{CL_SUCCESS};
  };
  api.clGetPlatformInfo = [](cl_platform_id, cl_platform_info, std::size_t size, void* to,
                             std::size_t* needed) {
    return text("clGetPlatformInfo", "Fake", size, to, needed);
  };
  api.clGetDeviceIDs = [](cl_platform_id, cl_device_type, cl_uint, cl_device_id* to,
                          cl_uint* count) {
    if (fake.fails("clGetDeviceIDs")) return fake.code;
    if (to) *to = reinterpret_cast<cl_device_id>(8);
    if (count) *count = 1;
    return cl_int{CL_SUCCESS};
  };
  api.clGetDeviceInfo = [](cl_device_id, cl_device_info what, std::size_t size, void* to,
                           std::size_t* needed) {
    if (what == CL_DEVICE_NAME || what == CL_DRIVER_VERSION)
      return text("clGetDeviceInfo", "Card", size, to, needed);
    if (fake.fails("clGetDeviceInfo")) return fake.code;
    cl_ulong value = what == CL_DEVICE_MAX_WORK_GROUP_SIZE ? 1024
                     : what == CL_DEVICE_SINGLE_FP_CONFIG  ? CL_FP_DENORM
                                                           : cl_ulong{1} << 30;
    if (what == CL_DEVICE_TYPE) value = CL_DEVICE_TYPE_GPU;
    std::memcpy(to, &value, size);
    return cl_int{CL_SUCCESS};
  };
  api.clCreateContext = [](const cl_context_properties*, cl_uint, const cl_device_id*,
                           void (*)(const char*, const void*, std::size_t, void*), void*,
                           cl_int* error) {
    return fake.create<cl_context>("clCreateContext", fake.contexts, error);
  };
  api.clReleaseContext = [](cl_context c) {
    return fake.release("clReleaseContext", fake.contexts, c);
  };
  api.clCreateCommandQueue = [](cl_context, cl_device_id, cl_command_queue_properties,
                                cl_int* error) {
    return fake.create<cl_command_queue>("clCreateCommandQueue", fake.queues, error);
  };
  api.clReleaseCommandQueue = [](cl_command_queue q) {
    return fake.release("clReleaseCommandQueue", fake.queues, q);
  };
  api.clCreateBuffer = [](cl_context, cl_mem_flags, std::size_t, void*, cl_int* error) {
    return fake.create<cl_mem>("clCreateBuffer", fake.buffers, error);
  };
  api.clReleaseMemObject = [](cl_mem m) {
    return fake.release("clReleaseMemObject", fake.buffers, m);
  };
  api.clEnqueueWriteBuffer = [](cl_command_queue, cl_mem, cl_bool, std::size_t, std::size_t,
                                const void*, cl_uint, const cl_event*,
                                cl_event*) { return fake.simply("clEnqueueWriteBuffer"); };
  api.clEnqueueReadBuffer = [](cl_command_queue, cl_mem, cl_bool, std::size_t, std::size_t size,
                               void* to, cl_uint, const cl_event*, cl_event*) {
    std::memset(to, 0, size / 2);
    if (fake.fails("clEnqueueReadBuffer")) return fake.code;
    std::memset(to, 0, size);
    return cl_int{CL_SUCCESS};
  };
  api.clCreateProgramWithSource = [](cl_context, cl_uint, const char**, const std::size_t*,
                                     cl_int* error) {
    return fake.create<cl_program>("clCreateProgramWithSource", fake.programs, error);
  };
  api.clBuildProgram = [](cl_program, cl_uint, const cl_device_id*, const char*,
                          void (*)(cl_program, void*),
                          void*) { return fake.simply("clBuildProgram"); };
  api.clGetProgramBuildInfo = [](cl_program, cl_device_id, cl_program_build_info, std::size_t size,
                                 void* to, std::size_t* needed) {
    return text("clGetProgramBuildInfo", "line 1: error", size, to, needed);
  };
  api.clReleaseProgram = [](cl_program p) {
    return fake.release("clReleaseProgram", fake.programs, p);
  };
  api.clCreateKernel = [](cl_program, const char*, cl_int* error) {
    return fake.create<cl_kernel>("clCreateKernel", fake.kernels, error);
  };
  api.clReleaseKernel = [](cl_kernel k) {
    return fake.release("clReleaseKernel", fake.kernels, k);
  };
  api.clSetKernelArg = [](cl_kernel, cl_uint, std::size_t, const void*) {
    return fake.simply("clSetKernelArg");
  };
  api.clEnqueueNDRangeKernel = [](cl_command_queue, cl_kernel, cl_uint, const std::size_t*,
                                  const std::size_t*, const std::size_t*, cl_uint, const cl_event*,
                                  cl_event*) { return fake.simply("clEnqueueNDRangeKernel"); };
  api.clFinish = [](cl_command_queue) { return fake.simply("clFinish"); };
  return api;
}

struct Fixture {
  explicit Fixture(const char* line) : c(parse_case(line)), in(c), out(c) {}
  Case c;
  Inputs in;
  Outputs out;
};

DispatchSettings on_device() {
  DispatchSettings s;
  s.min_query_length = 0;
  s.fall_back_on_failure = false;
  return s;
}

TEST(OpenclFunctions, EachFailsOnceWithEveryCode) {
  Fixture f("attention b=1 h=2/1 l=3x5 d=4 bias=normal seed=3");
  const auto poison_outputs = [&] {
    for (const Tensor* t : {&f.out.o, &f.out.lse})
      std::memset(t->bytes(), 0xA5, t->size_in_bytes());
  };
  const auto untouched = [&] {
    for (const Tensor* t : {&f.out.o, &f.out.lse})
      for (std::size_t e = 0; e < t->size_in_bytes(); ++e)
        if (t->bytes()[e] != std::byte{0xA5}) return false;
    return true;
  };
  const auto session = [] {
    return std::make_shared<DeviceSession>(std::make_shared<OpenclDevice>("", fake_api()));
  };
  const auto run = [&](const std::shared_ptr<DeviceSession>& s) {
    Dispatcher dispatcher(std::make_shared<DeviceBackend>(s, DevicePolicy{false, false, {}}),
                          on_device());
    return dispatcher.sdpa(f.in.problem, f.out.view());
  };
  fake = {};
  {
    const auto s = session();
    ASSERT_TRUE(run(s).ok());
    ASSERT_TRUE(s->close().ok());
  }
  const std::vector<const char*> calls = fake.calls;
  const std::set<std::string> functions(calls.begin(), calls.end());
  // The run calls every function except the one that is called only after a failed build.
  std::size_t declared = 0;
#define ASSAY_COUNT(name) ++declared;
  ASSAY_OPENCL_FUNCTIONS(ASSAY_COUNT)
#undef ASSAY_COUNT
  EXPECT_EQ(functions.size(), declared - 1);
  EXPECT_EQ(functions.count("clGetProgramBuildInfo"), 0u);

  std::size_t pairs = 0;
  for (std::size_t i = 0; i < calls.size(); ++i)
    for (NativeEntry e : opencl_codes().entries) {
      const std::string function = calls[i];
      // A platform without a device is skipped. Then there is no device at all.
      const bool none = function == "clGetDeviceIDs" && e.code == CL_DEVICE_NOT_FOUND &&
                        std::string(calls[i - 1]) != function;
      ++pairs;
      fake = {};
      poison_outputs();
      {
        const auto s = session();
        fake.failing_call = static_cast<std::ptrdiff_t>(i);
        fake.code = e.code;
        Status status = run(s);
        const bool in_run = !status.ok();
        if (in_run) {
          ASSERT_TRUE(untouched()) << function;
          ASSERT_EQ(fake.buffers.size(), 0u) << function;
        } else {
          status = s->close();
          ASSERT_EQ(fake.held(), 0u) << function;
        }
        ASSERT_EQ(status.code, e.status) << function << ": " << status.detail;
        ASSERT_THAT(status.detail, HasSubstr(std::string(e.name))) << function;
        ASSERT_THAT(status.detail,
                    HasSubstr(none ? "no platform has a device: Fake (no device)" : function));
        if (function == "clBuildProgram")
          ASSERT_THAT(status.detail, HasSubstr("attention.cl with -cl-std=CL1.2 -DINPUT=1 "));
        if (function == "clBuildProgram") ASSERT_THAT(status.detail, HasSubstr("line 1: error"));
        fake.failing_call = -1;
        if (e.sticky) ASSERT_TRUE(s->reopen().ok());
        ASSERT_TRUE(run(s).ok()) << function;
      }
      ASSERT_EQ(fake.held(), 0u) << function << ", code " << e.code;
      ASSERT_EQ(fake.breach, "") << function;
    }
  std::cout << "  " << pairs << " pairs of OpenCL function call and code\n";
  EXPECT_GT(pairs, 3000u);
}

// The build log may be unavailable too. The code of the build is kept.
TEST(OpenclFunctions, AFailedBuildWithoutALog) {
  for (int asked : {0, 1}) {
    fake = {};
    OpenclApi api = fake_api();
    api.clBuildProgram = [](cl_program, cl_uint, const cl_device_id*, const char*,
                            void (*)(cl_program, void*), void*) {
      fake.calls.push_back("clBuildProgram");
      return cl_int{CL_BUILD_PROGRAM_FAILURE};
    };
    DeviceSession s(std::make_shared<OpenclDevice>("", api));
    DeviceLimits limits;
    ASSERT_TRUE(s.limits(limits).ok());
    fake.failing_call = std::ssize(fake.calls) + 2 + asked;
    fake.code = CL_OUT_OF_HOST_MEMORY;
    const Status status = s.compile({"some.cl", "", "entry", {}});
    EXPECT_EQ(status.code, StatusCode::kernel_compilation_failed);
    EXPECT_THAT(status.detail, HasSubstr("compile entry failed with CL_BUILD_PROGRAM_FAILURE "
                                         "(-11): clBuildProgram: some.cl with"));
    EXPECT_EQ(fake.programs.size(), 0u);
  }
}

TEST(OpenclFunctions, SaysWhatWasLookedFor) {
  fake = {};
  DeviceSession other(std::make_shared<OpenclDevice>("Radeon", fake_api()));
  const Status status = other.reopen();
  EXPECT_EQ(status.code, StatusCode::device_not_supported);
  EXPECT_THAT(status.detail, HasSubstr("none of these devices is 'Radeon': Fake, Card, Card"));
  DeviceSession any_case(std::make_shared<OpenclDevice>("cARD", fake_api()));
  EXPECT_TRUE(any_case.reopen().ok());
}

// ---- A real driver ----

std::shared_ptr<DeviceSession> real_session() {
  return std::make_shared<DeviceSession>(make_device("opencl"));
}

TEST(Opencl, NamesItsDevice) {
  DeviceLimits limits;
  const Status status = real_session()->limits(limits);
  ASSERT_TRUE(status.ok()) << status.detail
                           << "\nDebian's package pocl-opencl-icd is a driver for the processor";
  std::cout << "  platform and device: " << limits.name << "; local memory " << limits.local_memory
            << " bytes, work-groups of up to " << limits.largest_group << "\n";
  EXPECT_GE(limits.local_memory, 24u << 10);
  EXPECT_GE(limits.largest_group, 256u);
}

// The bits of a row do not depend on the size of a work-group, the batch and the other rows.
TEST(Opencl, ARowsBitsDependOnNothingElse) {
  Fixture f(
      "attention b=2 h=4/2 l=40x150 d=40/24 causal offset=end bias=normal sink=0.5 dtype=f16 "
      "out=f32 seed=3");
  const auto session = real_session();
  Dispatcher dispatcher(std::make_shared<DeviceBackend>(session), on_device());
  ASSERT_TRUE(dispatcher.sdpa(f.in.problem, f.out.view()).ok());
  EXPECT_EQ(dispatcher.counters().dispatched, 1);
  for (const char* rows : {"1", "4", "8"}) {
    // A device with smaller groups. It uses the same policy as a refused launch.
    class SmallGroups : public OpenclDevice {
     public:
      explicit SmallGroups(std::size_t items) : OpenclDevice(""), items_(items) {}
      NativeCode launch(KernelHandle kernel, const Grid& grid,
                        std::span<const BufferHandle> arguments) override {
        return grid.group[0] > items_ ? CL_OUT_OF_RESOURCES
                                      : OpenclDevice::launch(kernel, grid, arguments);
      }

     private:
      const std::size_t items_;
    };
    DevicePolicy quiet;
    quiet.warn = [](std::string_view) {};
    const auto backend = std::make_shared<DeviceBackend>(
        std::make_shared<DeviceSession>(std::make_shared<SmallGroups>(16 * std::stoul(rows))),
        quiet);
    Dispatcher other(backend, on_device());
    const Outputs out(f.c);
    const Status status = other.sdpa(f.in.problem, out.view());
    ASSERT_TRUE(status.ok()) << status.detail;
    EXPECT_EQ(backend->counters().halved_tiles, rows[0] == '1' ? 4 : rows[0] == '4' ? 2 : 1);
    EXPECT_EQ(first_difference(f.out, out), "") << rows << " rows a work-group";
  }
  // Batch element 1 alone.
  Attention second = f.in.problem;
  second.shape.batch = 1;
  for (TensorView* t : {&second.q, &second.k, &second.v, &second.bias})
    t->origin = t->at(1, 0, 0, 0), t->shape[0] = 1;
  second.offset.resize(1);
  const Outputs alone(f.c);
  ASSERT_TRUE(dispatcher.sdpa(second, alone.view()).ok());
  const std::size_t half = f.out.o.size_in_bytes() / 2;
  EXPECT_EQ(std::memcmp(alone.o.bytes(), f.out.o.bytes() + half, half), 0);
}

// -infinity in a bias masks the pair, whatever ALiBi adds to it. Here ALiBi adds +infinity, only to
// the masked pairs.
TEST(Opencl, MinusInfinityMasksAnInfiniteSlope) {
  const auto session = real_session();
  Dispatcher dispatcher(std::make_shared<DeviceBackend>(session), on_device());
  for (const bool finite_minima : {false, true}) {
    Fixture f("attention b=1 h=1 l=6x6 d=4 bias=normal alibi seed=3");
    Attention p = f.in.problem;
    p.finite_min_masks = finite_minima;
    p.alibi_slopes = {-3e38f};
    for (Index i = 0; i < 6; ++i)
      for (Index j = 0; j + 1 < i; ++j)
        store(p.bias, p.bias.at(0, 0, i, j), -std::numeric_limits<double>::infinity());
    const Outputs host(f.c), device(f.c);
    ASSERT_TRUE(attention_forward(p, host.view()).ok());
    ASSERT_TRUE(dispatcher.sdpa(p, device.view()).ok());
    for (Index i = 0; i < 6; ++i)
      for (Index c = 0; c < 4; ++c) {
        const double exact = load(
            f.in.v.view(), f.in.v.view().at(0, 0, std::max<Index>(i - 1, 0),
                                            c));  // the key before is alone: the others are e^-3e38
        EXPECT_EQ(load(host.o.view(), host.o.view().at(0, 0, i, c)), exact);
        EXPECT_EQ(load(device.o.view(), device.o.view().at(0, 0, i, c)), exact);
      }
  }
}

// The product adds in the order of the host's kernel without AMX, so it has the same bits.
TEST(Opencl, TheProductHasTheBitsOfTheHost) {
  const auto session = real_session();
  for (const char* line :
       {"product m=5 n=70 k=100 w=mxfp4 dtype=f32 seed=1",
        "product m=33 n=65 k=96 w=nvfp4 dtype=bf16 seed=2",
        "product m=1 n=17 k=200 w=fp4:64 dtype=f16 out=f32 seed=3",
        "product m=3 n=20 k=41 w=mxfp4 weights=codes scales=distinct layout=reversed seed=4",
        "product m=20 n=9 k=64 w=nvfp4 weights=codes scales=nan seed=5"}) {
    const Case c = parse_case(line);
    const ProductInputs in(c);
    const ProductOutput host(c), device(c);
    std::shared_ptr<const PackedWeights> packed;
    ASSERT_TRUE(PackedWeights::pack(in.problem.w, packed).ok());
    ASSERT_TRUE(
        product(in.problem.a, *packed, host.c.view(), {0, without_bf16_dots(Target())}).ok());
    const Status status = device_product(*session, in.problem.a, in.problem.w, device.c.view());
    ASSERT_TRUE(status.ok()) << status.detail;
    for (Index m = 0; m < c.product.m; ++m)
      for (Index n = 0; n < c.product.n; ++n) {
        const double x = load(host.c.view(), host.c.view().at(0, 0, m, n)),
                     y = load(device.c.view(), device.c.view().at(0, 0, m, n));
        ASSERT_TRUE(x == y || (x != x && y != y))
            << line << " row " << m << " column " << n << ": " << x << " and " << y;
      }
  }
}

// A kernel does not compile. The message has the status, the code and the compiler's own words.
TEST(Opencl, BuildLogsReachTheMessage) {
  DeviceSession session(make_device("opencl"));
  const Status status =
      session.compile({"broken.cl",
                       "kernel void broken(global float* x) { x[0] = no_such_name; }",
                       "broken",
                       {{"ROWS", "16"}}});
  EXPECT_EQ(status.code, StatusCode::kernel_compilation_failed);
  EXPECT_THAT(status.detail, HasSubstr("compile broken failed with CL_BUILD_PROGRAM_FAILURE (-11): "
                                       "clBuildProgram: broken.cl with -cl-std=CL1.2 -DROWS=16"));
  EXPECT_THAT(status.detail, HasSubstr("no_such_name"));
  const Status missing = session.compile(
      {"other.cl", "kernel void other(global float* x) { x[0] = 1; }", "broken", {}});
  EXPECT_EQ(missing.code, StatusCode::kernel_compilation_failed);
  EXPECT_THAT(missing.detail, HasSubstr("CL_INVALID_KERNEL_NAME (-46): clCreateKernel: other.cl"));
}

}  // namespace
}  // namespace assay
