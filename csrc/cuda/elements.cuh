// Elements of tensors: 16-bit floats as storage, and what a thread moves at once.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

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

// Two elements of 16 bits, rounded.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return simt::pack_bf16(low, high);
  } else {
    return simt::pack_f16(low, high);
  }
}

// The elements of 16 bytes, in registers.
template <class T>
struct alignas(16) Chunk {
  static constexpr int kSize = 16 / sizeof(T);
  T elements[kSize];
};

// Rounded.
template <class T>
__device__ __forceinline__ Chunk<T> to_chunk(const float (&values)[Chunk<T>::kSize]) {
  Chunk<T> chunk;
  if constexpr (sizeof(T) == sizeof(float)) {
    memcpy(&chunk, values, sizeof(chunk));
  } else {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack<T>(values[2 * i], values[2 * i + 1]);
    memcpy(&chunk, words, sizeof(chunk));
  }
  return chunk;
}

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

// To global memory. Of a plain assignment nvcc takes the words apart to share them with the others.
template <class T>
__device__ __forceinline__ void store_chunk(T* to, const Chunk<T>& chunk, bool aligned) {
  if (aligned) {
    uint4 bits;
    memcpy(&bits, &chunk, sizeof(bits));
    __stcg(reinterpret_cast<uint4*>(to), bits);
  } else {
#pragma unroll
    for (int i = 0; i < Chunk<T>::kSize; ++i) to[i] = chunk.elements[i];
  }
}

// On its way from global to shared memory, for cp_async_wait to wait for; zeros where not `valid`.
template <class T>
__device__ __forceinline__ void copy_chunk(const T* from, bool aligned, T* to, bool valid) {
  if (aligned) {
    simt::cp_async16(to, from, valid);
  } else {
    Chunk<T> chunk{};
    if (valid) chunk = load_chunk(from, /*aligned=*/false);
    *reinterpret_cast<Chunk<T>*>(to) = chunk;
  }
}

// The first `count` of kCount neighbours in a tensor, in float; the other values stay.
template <class T, int kCount>
__device__ __forceinline__ void load_values(const T* from,
                                            bool aligned,
                                            float (&values)[kCount],
                                            int count = kCount) {
  if (aligned && count == kCount) {
#pragma unroll
    for (int i = 0; i < kCount; i += Chunk<T>::kSize) {
      const Chunk<T> chunk = load_chunk(from + i, true);
#pragma unroll
      for (int j = 0; j < Chunk<T>::kSize; ++j) values[i + j] = to_float(chunk.elements[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) values[i] = to_float(from[i]);
    }
  }
}

// The same to global memory, rounded.
template <class T, int kCount>
__device__ __forceinline__ void store_values(const float (&values)[kCount],
                                             bool aligned,
                                             T* to,
                                             int count = kCount) {
  if (aligned && count == kCount) {
#pragma unroll
    for (int i = 0; i < kCount; i += Chunk<T>::kSize) {
      float part[Chunk<T>::kSize];
#pragma unroll
      for (int j = 0; j < Chunk<T>::kSize; ++j) part[j] = values[i + j];
      store_chunk(to + i, to_chunk<T>(part), true);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) to[i] = from_float<T>(values[i]);
    }
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

// Whether chunks can be moved at once, whichever tensor they are of.
template <class T>
bool is_aligned(std::initializer_list<const void*> pointers,
                std::initializer_list<int64_t> strides) {
  uint64_t bits = 0;
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  for (const int64_t stride : strides) bits |= static_cast<uint64_t>(stride) * sizeof(T);
  return bits % 16 == 0;
}

}  // namespace lpd::cuda
