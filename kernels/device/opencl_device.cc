#include "kernels/device/opencl_device.h"

#include <CL/cl_ext.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <memory>

namespace assay::kernels {
namespace {

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

bool load_opencl(OpenclApi& api, std::string& why) {
  static void* const library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    why = "libOpenCL.so.1, the OpenCL loader, cannot be loaded";
    return false;
  }
#define ASSAY_OPENCL_LOAD(name)                                           \
  api.name = reinterpret_cast<decltype(api.name)>(dlsym(library, #name)); \
  if (!api.name) {                                                        \
    why = "libOpenCL.so.1 has no function " #name;                        \
    return false;                                                         \
  }
  ASSAY_OPENCL_FUNCTIONS(ASSAY_OPENCL_LOAD)
#undef ASSAY_OPENCL_LOAD
  return true;
}

struct OpenclDevice::Compiled {
  cl_program program;
  cl_kernel kernel;
};

OpenclDevice::~OpenclDevice() {
  if (context_) OpenclDevice::close();
}

// Remembers which function answered which code.
NativeCode OpenclDevice::done(const char* function, NativeCode code, std::string_view more) {
  if (code != CL_SUCCESS) detail_ = fmt::format("{}{}{}", function, more.empty() ? "" : ": ", more);
  return code;
}

NativeCode OpenclDevice::text_of(cl_platform_id platform, cl_device_id device, std::string& text) {
  const auto ask = [&](auto&& query, const char* function) {
    std::size_t size = 0;
    if (NativeCode code = done(function, query(0, nullptr, &size)); code != CL_SUCCESS) return code;
    std::string answer(size, '\0');
    if (NativeCode code = done(function, query(size, answer.data(), nullptr)); code != CL_SUCCESS)
      return code;
    while (!answer.empty() && (answer.back() == '\0' || answer.back() == ' ')) answer.pop_back();
    text += text.empty() ? answer : ", " + answer;
    return NativeCode{CL_SUCCESS};
  };
  NativeCode code =
      ask([&](auto... to) { return api_.clGetPlatformInfo(platform, CL_PLATFORM_NAME, to...); },
          "clGetPlatformInfo");
  for (cl_device_info what : {CL_DEVICE_NAME, CL_DRIVER_VERSION})
    if (code == CL_SUCCESS && device)
      code = ask(
          [&](auto... to) {
            return api_.clGetDeviceInfo(device, static_cast<cl_device_info>(what), to...);
          },
          "clGetDeviceInfo");
  return code;
}

// Looks at the devices of one platform, by name. The first one that is wanted becomes device_, and
// a GPU comes before any other device.
NativeCode OpenclDevice::look_through(cl_platform_id platform, std::vector<std::string>& seen,
                                      bool& found_gpu) {
  cl_uint devices = 0;
  NativeCode code = api_.clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, nullptr, &devices);
  if (code == CL_DEVICE_NOT_FOUND) {
    std::string text;
    if (code = text_of(platform, nullptr, text); code == CL_SUCCESS)
      seen.push_back(text + " (no device)");
    return code;
  }
  if (code != CL_SUCCESS) return done("clGetDeviceIDs", code);
  std::vector<cl_device_id> ids(devices);
  if (code = done("clGetDeviceIDs",
                  api_.clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, devices, ids.data(), nullptr));
      code != CL_SUCCESS)
    return code;
  for (cl_device_id id : ids) {
    std::string text;
    if (code = text_of(platform, id, text); code != CL_SUCCESS) return code;
    cl_device_type type = 0;
    if (code = done("clGetDeviceInfo",
                    api_.clGetDeviceInfo(id, CL_DEVICE_TYPE, sizeof type, &type, nullptr));
        code != CL_SUCCESS)
      return code;
    const bool gpu = (type & CL_DEVICE_TYPE_GPU) != 0;
    if (lower(text).find(lower(wanted_)) != std::string::npos &&
        (!device_ || (gpu && !found_gpu))) {
      device_ = id;
      device_text_ = text;
      found_gpu = gpu;
    }
    seen.push_back(std::move(text));
  }
  return CL_SUCCESS;
}

NativeCode OpenclDevice::choose() {
  cl_uint count = 0;
  NativeCode code = api_.clGetPlatformIDs(0, nullptr, &count);
  if (code == CL_SUCCESS && count == 0) code = CL_PLATFORM_NOT_FOUND_KHR;
  if (code != CL_SUCCESS)
    return done("clGetPlatformIDs", code,
                "no driver is installed (looked for: platforms of the OpenCL loader)");
  std::vector<cl_platform_id> platforms(count);
  if (code = done("clGetPlatformIDs", api_.clGetPlatformIDs(count, platforms.data(), nullptr));
      code != CL_SUCCESS)
    return code;
  std::vector<std::string> seen;
  bool found_gpu = false;
  device_ = nullptr;
  // A broken driver does not hide the others. It is named in the message if none of the others will
  // do.
  NativeCode broken = CL_SUCCESS;
  std::string how;
  for (cl_platform_id platform : platforms)
    if (code = look_through(platform, seen, found_gpu);
        code != CL_SUCCESS && broken == CL_SUCCESS) {
      broken = code;
      how = detail_;
    }
  if (device_) return CL_SUCCESS;
  if (broken != CL_SUCCESS) {
    detail_ = how;
    return broken;
  }
  return done("clGetDeviceIDs", CL_DEVICE_NOT_FOUND,
              fmt::format("{}: {}",
                          wanted_.empty() ? "no platform has a device"
                                          : fmt::format("none of these devices is '{}'", wanted_),
                          fmt::join(seen, "; ")));
}

NativeCode OpenclDevice::open() {
  detail_.clear();
  if (given_) {
    api_ = *given_;
  } else if (std::string why; !load_opencl(api_, why)) {
    return done("dlopen", CL_PLATFORM_NOT_FOUND_KHR, why);
  }
  if (NativeCode code = choose(); code != CL_SUCCESS) return code;
  NativeCode code = CL_SUCCESS;
  const cl_context context = api_.clCreateContext(nullptr, 1, &device_, nullptr, nullptr, &code);
  if (code != CL_SUCCESS) return done("clCreateContext", code);
  queue_ = api_.clCreateCommandQueue(context, device_, 0, &code);
  if (code != CL_SUCCESS) {
    api_.clReleaseContext(context);
    return done("clCreateCommandQueue", code);
  }
  context_ = context;
  return CL_SUCCESS;
}

NativeCode OpenclDevice::close() {
  const NativeCode queue = api_.clReleaseCommandQueue(queue_),
                   context = api_.clReleaseContext(context_);
  queue_ = nullptr;
  context_ = nullptr;
  return queue != CL_SUCCESS ? done("clReleaseCommandQueue", queue)
                             : done("clReleaseContext", context);
}

NativeCode OpenclDevice::query(DeviceLimits& limits) {
  limits.name = device_text_;
  const auto ask = [&](cl_device_info what, auto& to) {
    return done("clGetDeviceInfo", api_.clGetDeviceInfo(device_, what, sizeof to, &to, nullptr));
  };
  cl_ulong memory = 0, largest = 0, local = 0;
  cl_device_fp_config config = 0;
  std::size_t group = 0;
  for (NativeCode code :
       {ask(CL_DEVICE_GLOBAL_MEM_SIZE, memory), ask(CL_DEVICE_MAX_MEM_ALLOC_SIZE, largest),
        ask(CL_DEVICE_LOCAL_MEM_SIZE, local), ask(CL_DEVICE_MAX_WORK_GROUP_SIZE, group),
        ask(CL_DEVICE_SINGLE_FP_CONFIG, config)})
    if (code != CL_SUCCESS) return code;
  limits.memory = memory;
  limits.largest_buffer = largest;
  limits.local_memory = local;
  limits.largest_group = group;
  limits.has_subnormals = (config & CL_FP_DENORM) != 0;
  return CL_SUCCESS;
}

NativeCode OpenclDevice::allocate(std::size_t bytes, BufferHandle& buffer) {
  NativeCode code = CL_SUCCESS;
  const cl_mem memory = api_.clCreateBuffer(context_, CL_MEM_READ_WRITE, bytes, nullptr, &code);
  if (code == CL_SUCCESS) buffer = BufferHandle{reinterpret_cast<std::uintptr_t>(memory)};
  return done("clCreateBuffer", code);
}

NativeCode OpenclDevice::free(BufferHandle buffer) {
  return done("clReleaseMemObject", api_.clReleaseMemObject(reinterpret_cast<cl_mem>(buffer)));
}

NativeCode OpenclDevice::upload(BufferHandle to, std::span<const std::byte> from) {
  return done("clEnqueueWriteBuffer",
              api_.clEnqueueWriteBuffer(queue_, reinterpret_cast<cl_mem>(to), CL_TRUE, 0,
                                        from.size(), from.data(), 0, nullptr, nullptr));
}

NativeCode OpenclDevice::download(std::span<std::byte> to, BufferHandle from) {
  return done("clEnqueueReadBuffer",
              api_.clEnqueueReadBuffer(queue_, reinterpret_cast<cl_mem>(from), CL_TRUE, 0,
                                       to.size(), to.data(), 0, nullptr, nullptr));
}

NativeCode OpenclDevice::compile(const KernelSource& source, KernelHandle& kernel) {
  auto compiled = std::make_unique<Compiled>();
  std::string options = "-cl-std=CL1.2";
  for (const auto& [name, value] : source.constants)
    options += fmt::format(" -D{}={}", name, value);
  NativeCode code = CL_SUCCESS;
  const char* text = source.text.data();
  const std::size_t length = source.text.size();
  compiled->program = api_.clCreateProgramWithSource(context_, 1, &text, &length, &code);
  if (code != CL_SUCCESS) return done("clCreateProgramWithSource", code);
  // Released in every case until the kernel has been made.
  const auto release = [&](cl_program program) { api_.clReleaseProgram(program); };
  std::unique_ptr<std::remove_pointer_t<cl_program>, decltype(release)> program(compiled->program,
                                                                                release);
  if (code = api_.clBuildProgram(program.get(), 1, &device_, options.c_str(), nullptr, nullptr);
      code != CL_SUCCESS) {
    std::string log;
    std::size_t size = 0;
    if (api_.clGetProgramBuildInfo(program.get(), device_, CL_PROGRAM_BUILD_LOG, 0, nullptr,
                                   &size) == CL_SUCCESS) {
      log.resize(size);
      if (api_.clGetProgramBuildInfo(program.get(), device_, CL_PROGRAM_BUILD_LOG, size, log.data(),
                                     nullptr) != CL_SUCCESS)
        log.clear();
      log.resize(std::min(log.size(), log.find('\0')));
      // A compiler repeats itself, so the first errors are enough.
      if (constexpr std::size_t most = 4000; log.size() > most) {
        const std::size_t left = log.size() - most;
        log.resize(most);
        log += fmt::format("\n... {} more bytes", left);
      }
    }
    return done("clBuildProgram", code, fmt::format("{} with {}\n{}", source.name, options, log));
  }
  compiled->kernel = api_.clCreateKernel(program.get(), std::string(source.entry).c_str(), &code);
  if (code != CL_SUCCESS) return done("clCreateKernel", code, source.name);
  program.release();
  kernel = KernelHandle{reinterpret_cast<std::uintptr_t>(compiled.release())};
  return CL_SUCCESS;
}

NativeCode OpenclDevice::release(KernelHandle handle) {
  const std::unique_ptr<Compiled> compiled(reinterpret_cast<Compiled*>(handle));
  const NativeCode kernel = api_.clReleaseKernel(compiled->kernel),
                   program = api_.clReleaseProgram(compiled->program);
  return kernel != CL_SUCCESS ? done("clReleaseKernel", kernel) : done("clReleaseProgram", program);
}

NativeCode OpenclDevice::launch(KernelHandle handle, const Grid& grid,
                                std::span<const BufferHandle> arguments) {
  const cl_kernel kernel = reinterpret_cast<Compiled*>(handle)->kernel;
  for (std::size_t k = 0; k < arguments.size(); ++k) {
    const auto memory = reinterpret_cast<cl_mem>(arguments[k]);
    const NativeCode code = api_.clSetKernelArg(kernel, static_cast<cl_uint>(k), sizeof memory,
                                                memory ? &memory : nullptr);
    if (code != CL_SUCCESS) return done("clSetKernelArg", code, fmt::format("argument {}", k));
  }
  return done("clEnqueueNDRangeKernel",
              api_.clEnqueueNDRangeKernel(queue_, kernel, 3, nullptr, grid.global, grid.group, 0,
                                          nullptr, nullptr));
}

NativeCode OpenclDevice::synchronize() { return done("clFinish", api_.clFinish(queue_)); }

}  // namespace assay::kernels
