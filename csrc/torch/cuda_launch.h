// Where CUDA kernels are launched: on the tensors' device, on its current stream. In the tests the
// same bindings serve the emulator, on tensors of the CPU and in a namespace of its own; there
// every tensor is made known, so that each access of a kernel can be checked.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "checks.h"
#include "lpd/cuda_runtime.h"

#if defined(SIMT_EMULATE)

#include <cstring>
#include <deque>

#include "simt/runtime.h"

#elif defined(LPD_CUDA)

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#endif

namespace lpd::binding {

#if defined(LPD_CUDA)

// Of torch's allocator: in the order of the stream, and captured with a graph.
inline Tensor new_workspace(size_t bytes, const Tensor& like) {
  return torch::stable::new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

#endif
#if defined(SIMT_EMULATE)

inline void check_cuda(const Tensor& tensor, const Tensor&, const char* op, const char* argument) {
  check_cpu(tensor, op, argument);
}

class CudaLaunch {
 public:
  explicit CudaLaunch(const Tensor&) {}

  cudaStream_t stream() const { return nullptr; }

  void reads(const Tensor& tensor, const char* name) { know(tensor, simt::Access::kRead, name); }
  void updates(const Tensor& tensor, const char* name) {
    know(tensor, simt::Access::kReadWrite, name);
  }
  void writes(const Tensor& tensor, const char* name) { know(tensor, simt::Access::kWrite, name); }

  // What one launch writes there the next one reads.
  Tensor workspace(size_t bytes, const Tensor& like) {
    const Tensor tensor = new_workspace(bytes, like);
    std::memset(tensor.mutable_data_ptr(), 0xff, bytes);  // NaN for who reads it too early
    updates(tensor, "workspace");
    return tensor;
  }

 private:
  void know(const Tensor& tensor, simt::Access access, const char* name) {
    if (tensor.numel() == 0) return;
    int64_t last = 0;
    for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
      last += (tensor.size(dim) - 1) * tensor.stride(dim);
    }
    const auto bytes = static_cast<size_t>(last + 1) * tensor.element_size();
    known_.emplace_back(tensor.const_data_ptr(), bytes, access, name);
  }

  std::deque<simt::Memory> known_;
};

#elif defined(LPD_CUDA)

inline void check_cuda(const Tensor& tensor,
                       const Tensor& first,
                       const char* op,
                       const char* argument) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == first.get_device_index(), op,
                  ": argument `", argument, "`: expected a CUDA tensor, all on one device");
}

class CudaLaunch {
 public:
  explicit CudaLaunch(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

  void reads(const Tensor&, const char*) {}
  void updates(const Tensor&, const char*) {}
  void writes(const Tensor&, const char*) {}

  Tensor workspace(size_t bytes, const Tensor& like) { return new_workspace(bytes, like); }

 private:
  torch::stable::accelerator::DeviceIndex device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

#endif

#if defined(LPD_CUDA)

inline void check_launch(cudaError_t error, const char* op) {
  // The driver reports a failure of earlier work at whatever comes next.
  STD_TORCH_CHECK(
      error == cudaSuccess, op,
      ": the kernel was not launched, or work before it failed: ", cudaGetErrorString(error));
}

#endif

}  // namespace lpd::binding
