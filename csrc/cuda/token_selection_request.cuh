// What is asked of a row of token_selection, and where its id goes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lpd/specified_math.h"
#include "lpd/token_selection.h"
#include "primitives.cuh"

namespace lpd::cuda {

// In shared memory: the registers are for the row.
struct Request {
  float temperature;
  float top_p;
  int64_t top_k;
  double uniform;
  int64_t place;  // among the ids of the image
  int64_t* ids;

  __device__ bool valid() const {
    return temperature >= 0.0f && temperature < kInfinity && top_p >= 0.0f && uniform >= 0.0 &&
           uniform < 1.0;
  }
  __device__ void answer(const TokenSelectionParams& params, int64_t token) const {
    if (place >= 0 && place < params.seq_len) ids[place * params.ids_stride] = token;
  }
};

template <class T>
__device__ __forceinline__ void copy_async(T& shared, const T* global) {
#pragma unroll
  for (size_t i = 0; i < sizeof(T); i += 4) {
    simt::cp_async4(reinterpret_cast<std::byte*>(&shared) + i,
                    reinterpret_cast<const std::byte*>(global) + i);
  }
}

// Arrives while the row does.
__device__ __forceinline__ void fetch_request(const TokenSelectionParams& params,
                                              int64_t image,
                                              int64_t query,
                                              Request& request) {
  copy_async(request.temperature, params.temperature + image * params.temperature_stride);
  copy_async(request.top_p, params.top_p + image * params.top_p_stride);
  copy_async(request.top_k, params.top_k + image * params.top_k_stride);
  copy_async(request.uniform, params.uniform + image * params.uniform_batch_stride +
                                  query * params.uniform_group_stride);
  request.ids = params.ids + image * params.ids_batch_stride;
  if (params.positions != nullptr) {
    copy_async(request.place, params.positions + image * params.positions_batch_stride +
                                  query * params.positions_group_stride);
  } else {
    request.place = query;
  }
  simt::cp_async_commit();
}

}  // namespace lpd::cuda
