// The functions of OpenCL that the backend calls. They are found at run time, so nothing has to be
// installed to build or to start.
#pragma once

#ifndef CL_TARGET_OPENCL_VERSION
#define CL_TARGET_OPENCL_VERSION 120
#endif
#include <CL/cl.h>

#include <string>

namespace assay::kernels {

#define ASSAY_OPENCL_FUNCTIONS(F) \
  F(clGetPlatformIDs)             \
  F(clGetPlatformInfo)            \
  F(clGetDeviceIDs)               \
  F(clGetDeviceInfo)              \
  F(clCreateContext)              \
  F(clReleaseContext)             \
  F(clCreateCommandQueue)         \
  F(clReleaseCommandQueue)        \
  F(clCreateBuffer)               \
  F(clReleaseMemObject)           \
  F(clEnqueueWriteBuffer)         \
  F(clEnqueueReadBuffer)          \
  F(clCreateProgramWithSource)    \
  F(clBuildProgram)               \
  F(clGetProgramBuildInfo)        \
  F(clReleaseProgram)             \
  F(clCreateKernel)               \
  F(clReleaseKernel)              \
  F(clSetKernelArg)               \
  F(clEnqueueNDRangeKernel)       \
  F(clFinish)

struct OpenclApi {
#define ASSAY_OPENCL_MEMBER(name) decltype(&::name) name = nullptr;
  ASSAY_OPENCL_FUNCTIONS(ASSAY_OPENCL_MEMBER)
#undef ASSAY_OPENCL_MEMBER
};

// Loads the functions from libOpenCL.so.1, which stays loaded. If it returns false, `why` says what
// was not found.
bool load_opencl(OpenclApi& api, std::string& why);

}  // namespace assay::kernels
