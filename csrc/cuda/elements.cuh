// Elements of tensors: 16-bit floats as storage, and what a thread moves at once.
#pragma once

#include <cstdint>
#include <cstring>

#include "primitives.cuh"

namespace lpd::cuda {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) { return simt::bf16_float(x.bits); }
__device__ __forceinline__ float to_float(Float16 x) { return simt::f16_float(x.bits); }

// Rounded to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float x) {
  return {simt::bf16_bits(x)};
}
template <>
__device__ __forceinline__ Float16 from_float<Float16>(float x) {
  return {simt::f16_bits(x)};
}

// The elements of 16 bytes, in registers.
template <class T>
struct Chunk {
  static constexpr int kSize = 16 / sizeof(T);
  T elements[kSize];
};

// One access where the tensor allows it, else one an element.
template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const T* from, bool aligned) {
  Chunk<T> chunk;
  if (aligned) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    memcpy(&chunk, &bits, sizeof(bits));
  } else {
#pragma unroll
    for (int i = 0; i < Chunk<T>::kSize; ++i) chunk.elements[i] = from[i];
  }
  return chunk;
}

template <class T>
__device__ __forceinline__ void store_chunk(T* to, const Chunk<T>& chunk, bool aligned) {
  if (aligned) {
    uint4 bits;
    memcpy(&bits, &chunk, sizeof(bits));
    *reinterpret_cast<uint4*>(to) = bits;
  } else {
#pragma unroll
    for (int i = 0; i < Chunk<T>::kSize; ++i) to[i] = chunk.elements[i];
  }
}

// The elements times a factor, in float.
template <class T>
__device__ __forceinline__ void widen(const Chunk<T>& chunk, float factor, float4* to) {
#pragma unroll
  for (int i = 0; i < Chunk<T>::kSize; i += 4) {
    to[i / 4] = make_float4(
        factor * to_float(chunk.elements[i]), factor * to_float(chunk.elements[i + 1]),
        factor * to_float(chunk.elements[i + 2]), factor * to_float(chunk.elements[i + 3]));
  }
}

}  // namespace lpd::cuda
