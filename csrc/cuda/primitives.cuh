// The one header of the kernels: CUDA as nvcc knows it and, in namespace simt, the instructions it
// has no function for. Built with -DSIMT_EMULATE the same names come from tests/simt, which runs
// kernels on the CPU. Three spellings differ from plain CUDA; under nvcc they are that and no more:
//   SIMT_SHARED(float, tile, [32][33]);     __shared__ float tile[32][33];
//   SIMT_DYN_SHARED(bytes);                 extern __shared__ unsigned char bytes[];
//   SIMT_LAUNCH((kernel<T>), grid, block, dynamic_bytes, stream, arguments...);
#pragma once

#ifdef SIMT_EMULATE

#include "simt/cuda.h"

#else

#include <cuda_runtime.h>

#include <cstdint>

#define SIMT_SHARED(type, name, ...) __shared__ type name __VA_ARGS__

// Aligned for every swizzle of 128-byte rows.
#define SIMT_DYN_SHARED(name)                                             \
  extern __shared__ __align__(1024) unsigned char simt_dynamic_shared_[]; \
  unsigned char* const name = simt_dynamic_shared_

// Dynamic memory past 48 KB wants an opt-in, which the driver remembers for the kernel. Errors, of
// either call, are left for cudaGetLastError().
#define SIMT_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...)                  \
  do {                                                                                \
    const auto simt_kernel_ = SIMT_UNPAREN kernel;                                    \
    const size_t simt_bytes_ = (dynamic_bytes);                                       \
    if (simt_bytes_ > 48 * 1024) {                                                    \
      cudaFuncSetAttribute(simt_kernel_, cudaFuncAttributeMaxDynamicSharedMemorySize, \
                           static_cast<int>(simt_bytes_));                            \
    }                                                                                 \
    simt_kernel_<<<(grid), (block), simt_bytes_, (stream)>>>(__VA_ARGS__);            \
  } while (0)
#define SIMT_UNPAREN(...) __VA_ARGS__

namespace simt {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- Asynchronous copies from global to shared memory, 16 or 4 aligned bytes. Where not `valid`
// nothing is read and the destination becomes zero.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async4(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// Until at most kGroupsLeft committed groups of this thread are in flight.
template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
}

// ---- 8x8 matrices of 16-bit elements from shared memory. Lane l names row l % 8 of matrix l / 8,
// 16 aligned bytes; lane 4g + t receives elements 2t and 2t + 1 of row g (trans: of column g).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&registers)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(registers[0]), "=r"(registers[1])
               : "r"(shared_address(row))
               : "memory");
}

// ---- d[16][8] += a[16][16] b[16][8] on the tensor cores, sums in float
__device__ __forceinline__ void mma_bf16(float (&d)[4],
                                         const uint32_t (&a)[4],
                                         uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_f16(float (&d)[4],
                                        const uint32_t (&a)[4],
                                        uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- 16-bit floats as their bits, to nearest, ties to even
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint16_t bf16_bits(float value) {
  return static_cast<uint16_t>(pack_bf16(value, 0.0f));
}
__device__ __forceinline__ float bf16_float(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint16_t f16_bits(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ __forceinline__ float f16_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(value) : "h"(bits));
  return value;
}

// The larger one; NaN where one of them is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// For the compiler another value from here on: what follows from it is not computed ahead, to be
// kept in registers that are not there.
__device__ __forceinline__ void renew(float& value) { asm volatile("" : "+f"(value)); }

// 2^x to about two units in the last place; subnormals count as zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace simt

#endif
