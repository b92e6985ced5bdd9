// A CUDA runtime for host code that nvcc compiled: it knows kernels by the names under which that
// code registers them, and hands each launch to a function of Python.
#include "simt/runtime.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "simt/cuda.h"

#define EXPORT __attribute__((visibility("default")))

namespace {

struct Allocation {
  int64_t number, start, bytes, access;
  const char* name;
};

struct Dim3 {
  unsigned x, y, z;
};

struct Configuration {
  Dim3 grid, block;
  size_t dynamic_bytes;
  void* stream;
};

// What Python is told, in the layout of host.py.
struct Launch {
  const char* kernel;
  Dim3 grid, block;
  int64_t dynamic_bytes, opted_in;
  void** arguments;
  const Allocation* allocations;
  int64_t num_allocations;
};
using Callback = int (*)(const Launch*);

struct State {
  std::map<const void*, const char*> kernels;  // by the address of their host function
  std::map<const void*, int64_t> opted_in;     // to dynamic bytes
  std::vector<Configuration> configurations;
  std::vector<Allocation> allocations;
  int64_t count = 0;
  Callback callback = nullptr;
  cudaError_t error = cudaSuccess;
};

// Kernels are registered before main, in whatever order.
State& state() {
  static State state;
  return state;
}

}  // namespace

namespace simt {

Memory::Memory(const void* pointer, size_t bytes, Access access, const char* name)
    : number_(++state().count) {
  state().allocations.push_back({number_, reinterpret_cast<int64_t>(pointer),
                                 static_cast<int64_t>(bytes), static_cast<int64_t>(access), name});
}

Memory::~Memory() {
  std::erase_if(state().allocations, [&](const Allocation& a) { return a.number == number_; });
}

}  // namespace simt

extern "C" {

EXPORT void lpd_ptx_set_callback(Callback callback) { state().callback = callback; }

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**,
                            const char* host_function,
                            char*,
                            const char* device_name,
                            int,
                            void*,
                            void*,
                            void*,
                            void*,
                            int*) {
  state().kernels[host_function] = device_name;
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t dynamic_bytes, void* stream) {
  state().configurations.push_back({grid, block, dynamic_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(Dim3* grid,
                                       Dim3* block,
                                       size_t* dynamic_bytes,
                                       void** stream) {
  const Configuration last = state().configurations.back();
  state().configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *dynamic_bytes = last.dynamic_bytes;
  *stream = last.stream;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, int attribute, int value) {
  constexpr int kMaxDynamicSharedMemorySize = 8;
  if (attribute == kMaxDynamicSharedMemorySize) state().opted_in[function] = value;
  return cudaSuccess;
}

// A kernel that failed leaves the error there: nothing runs until it has been asked for.
cudaError_t cudaLaunchKernel(const void* function,
                             Dim3 grid,
                             Dim3 block,
                             void** arguments,
                             size_t dynamic_bytes,
                             void*) {
  State& now = state();
  if (now.error != cudaSuccess) return now.error;
  const Launch launch{now.kernels.at(function),
                      grid,
                      block,
                      static_cast<int64_t>(dynamic_bytes),
                      now.opted_in[function],
                      arguments,
                      now.allocations.data(),
                      static_cast<int64_t>(now.allocations.size())};
  if (now.callback == nullptr || now.callback(&launch) != 0) now.error = cudaErrorLaunchFailure;
  return now.error;
}

// As of CUDA 13 the stubs of kernels ask for a handle first.
cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(const void* kernel,
                               Dim3 grid,
                               Dim3 block,
                               void** arguments,
                               size_t dynamic_bytes,
                               void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, dynamic_bytes, stream);
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = state().error;
  state().error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "a fault in the interpreter of PTX";
}

}  // extern "C"
