// Correct kernels: nothing to complain of, and the results of a GPU.
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "cases.h"

namespace {

constexpr unsigned kFull = 0xffffffff;

// D = A B, fragments loaded by the formulas of the PTX manual; A [16][16], B [16][8], row major.
template <bool kBFloat16>
__global__ void mma_kernel(const uint16_t* a, const uint16_t* b, float* d) {
  const int g = threadIdx.x >> 2, t = threadIdx.x & 3;
  const auto pair = [](uint16_t low, uint16_t high) { return low | uint32_t{high} << 16; };
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i & 1), column = t * 2 + 8 * (i >> 1);
    fa[i] = pair(a[row * 16 + column], a[row * 16 + column + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    const int k = t * 2 + 8 * i;
    fb[i] = pair(b[k * 8 + g], b[(k + 1) * 8 + g]);
  }
  float fd[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  if constexpr (kBFloat16) {
    simt::mma_bf16(fd, fa, fb[0], fb[1]);
  } else {
    simt::mma_f16(fd, fa, fb[0], fb[1]);
  }
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + t * 2 + (i & 1)] = fd[i];
}

// The same from shared memory by ldmatrix, rows of 16 and 8 elements without padding.
__global__ void ldmatrix_mma_kernel(const uint16_t* a, const uint16_t* b, float* d) {
  SIMT_SHARED(uint16_t, sa, [16][16]);
  SIMT_SHARED(uint16_t, sb, [16][8]);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) sb[i / 8][i % 8] = b[i];
  __syncwarp();
  uint32_t fa[4], fb[4];
  simt::ldmatrix_x4(fa, &sa[lane & 15][(lane >> 4) * 8]);
  simt::ldmatrix_x4_trans(fb, &sb[lane & 15][0]);
  float fd[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  simt::mma_bf16(fd, fa, fb[0], fb[1]);
  const int g = lane >> 2, t = lane & 3;
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + t * 2 + (i & 1)] = fd[i];
}

using Encode = uint16_t (*)(float);
using MmaKernel = void (*)(const uint16_t*, const uint16_t*, float*);

// Small integers: every sum is exact, whatever its order.
void check_product(MmaKernel kernel, Encode encode) {
  Buffer<uint16_t> a(256, Access::kRead, "a"), b(128, Access::kRead, "b");
  Buffer<float> d(128, Access::kWrite, "d");
  const auto value_a = [](int i, int k) { return static_cast<float>((i * 7 + k * 5) % 13 - 6); };
  const auto value_b = [](int k, int j) { return static_cast<float>((k * 3 + j * 11) % 17 - 8); };
  for (int i = 0; i < 256; ++i) a[i] = encode(value_a(i / 16, i % 16));
  for (int i = 0; i < 128; ++i) b[i] = encode(value_b(i / 8, i % 8));
  SIMT_LAUNCH((kernel), 1, 32, 0, nullptr, a, b, d);
  for (int i = 0; i < 128; ++i) {
    float sum = 1.0f;
    for (int k = 0; k < 16; ++k) sum += value_a(i / 8, k) * value_b(k, i % 8);
    expect_equal(d[i], sum, "d");
  }
}
CASE(mma_bf16_product) { check_product(mma_kernel<true>, simt::bf16_bits); }
CASE(mma_f16_product) { check_product(mma_kernel<false>, simt::f16_bits); }
CASE(ldmatrix_product) { check_product(ldmatrix_mma_kernel, simt::bf16_bits); }

// Rows of 16 bytes meet in no bank, rows of 128 bytes all in one.
__global__ void banks_kernel(uint32_t* out, int stride) {
  SIMT_DYN_SHARED(bytes);
  for (int i = threadIdx.x; i < 1024; i += 32) bytes[i] = 0;
  __syncwarp();
  uint32_t r[2];
  simt::ldmatrix_x2(r, bytes + threadIdx.x % 8 * stride);
  out[threadIdx.x] = r[0] + r[1];
}
CASE(bank_conflicts) {
  Buffer<uint32_t> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((banks_kernel), 1, 32, 1024, nullptr, out, 16);
  expect_equal(simt::stats.bank_conflicts, 0u, "conflicts of rows side by side");
  SIMT_LAUNCH((banks_kernel), 1, 32, 1024, nullptr, out, 128);
  expect_equal(simt::stats.bank_conflicts, 2u, "conflicts of rows in one bank");
  expect_equal(simt::stats.ldmatrix_phases, 4u, "phases");
}

__global__ void warp_functions_kernel(int* out) {
  const int t = threadIdx.x;
  int* o = out + t * 12;
  o[0] = __shfl_sync(kFull, t * 3, 5);
  o[1] = __shfl_up_sync(kFull, t, 3, 16);
  o[2] = __shfl_down_sync(kFull, t, 3, 8);
  o[3] = __shfl_xor_sync(kFull, t, 17);
  o[4] = static_cast<int>(__ballot_sync(kFull, t % 3 == 0));
  o[5] = static_cast<int>(__reduce_add_sync(kFull, static_cast<unsigned>(t)));
  o[6] = static_cast<int>(__match_any_sync(kFull, static_cast<unsigned>(t) % 5));
  o[7] = __reduce_min_sync(kFull, -t);
  if (t < 16) {
    o[8] = __shfl_xor_sync(0xffffu, t, 8);
  } else {
    o[8] = static_cast<int>(__ballot_sync(0xffff0000u, t & 1));
  }
  o[9] = static_cast<int>(__shfl_down_sync(kFull, 0.5 + t, 1));  // 8 bytes
  o[10] = __all_sync(kFull, t < 32) + 2 * __any_sync(kFull, t == 40);
  o[11] = static_cast<int>(__reduce_xor_sync(kFull, 1u << t));
}
CASE(warp_functions) {
  Buffer<int> out(32 * 12, Access::kWrite, "out");
  SIMT_LAUNCH((warp_functions_kernel), 1, 32, 0, nullptr, out);
  int thirds = 0;
  for (int i = 0; i < 32; i += 3) thirds |= 1 << i;
  for (int t = 0; t < 32; ++t) {
    int alike = 0;
    for (int i = t % 5; i < 32; i += 5) alike |= 1 << i;
    const int wanted[12] = {15,
                            t % 16 >= 3 ? t - 3 : t,
                            t % 8 < 5 ? t + 3 : t,
                            t ^ 17,
                            thirds,
                            496,
                            alike,
                            -31,
                            t < 16 ? t ^ 8 : static_cast<int>(0xaaaa0000),
                            t < 31 ? t + 1 : t,
                            1,
                            -1};
    for (int i = 0; i < 12; ++i) {
      expect_equal(out[t * 12 + i], wanted[i], "function " + std::to_string(i));
    }
  }
}

// A block of three dimensions and a last warp of four lanes; barriers that count and vote.
__global__ void block_functions_kernel(int* out) {
  const int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int odd = __syncthreads_count(t % 2);
  const int all = __syncthreads_and(t < 36), some = __syncthreads_or(t == 40);
  out[t] = odd * 100 + all * 10 + some;
}
CASE(block_functions) {
  Buffer<int> out(36, Access::kWrite, "out");
  SIMT_LAUNCH((block_functions_kernel), 1, dim3(3, 4, 3), 0, nullptr, out);
  for (int t = 0; t < 36; ++t) expect_equal(out[t], 1810, "out");
}

// Sums over a block, twice through one buffer, then over the grid in the last block to finish.
__global__ void sum_kernel(const float* in, int n, float* parts, unsigned* count, float* out) {
  SIMT_SHARED(float, warps, [4]);
  SIMT_SHARED(bool, last);
  const int t = threadIdx.x;
  const auto block_sum = [&](float value) {
    for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(kFull, value, d);
    __syncthreads();
    if (t % 32 == 0) warps[t / 32] = value;
    __syncthreads();
    return warps[0] + warps[1] + warps[2] + warps[3];
  };
  float value = 0.0f;
#pragma unroll
  for (int i = blockIdx.x * 128 + t; i < n; i += gridDim.x * 128) value += __ldg(in + i);
  value = block_sum(value);
  if (t == 0) {
    parts[blockIdx.x] = value;
    __threadfence();
    last = atomicAdd(count, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  value = block_sum(t < static_cast<int>(gridDim.x) ? __ldcg(parts + t) : 0.0f);
  if (t == 0) *out = value;
}
CASE(last_block_sum) {  // prints its bits: they depend on no schedule
  constexpr int kCount = 5000;
  Buffer<float> in(kCount, Access::kRead, "in"), parts(20, Access::kWrite, "parts");
  Buffer<float> out(1, Access::kWrite, "out");
  Buffer<unsigned> count(1, Access::kReadWrite, "count");
  double sum = 0.0;
  for (int i = 0; i < kCount; ++i) sum += in[i] = std::sin(static_cast<float>(i));
  *count = 0;
  SIMT_LAUNCH((sum_kernel), 20, 128, 0, nullptr, in, kCount, parts, count, out);
  expect_equal(std::abs(*out - sum) < 1e-3, true, "close to the sum in double");
  std::printf("%08x\n", __float_as_uint(*out));
}

// Different threads write neighbouring bytes of a word, then read all of it after the barrier.
__global__ void neighbours_kernel(unsigned char* bytes, unsigned* out) {
  const int t = threadIdx.x;
  bytes[t] = static_cast<unsigned char>(t);
  __syncthreads();
  if (t < 16) out[t] = reinterpret_cast<const unsigned*>(bytes)[t];
}
CASE(neighbouring_bytes) {
  Buffer<unsigned char> bytes(64, Access::kWrite, "bytes");
  Buffer<unsigned> out(16, Access::kWrite, "out");
  SIMT_LAUNCH((neighbours_kernel), 1, 64, 0, nullptr, bytes, out);
  expect_equal(out[1], 0x07060504u, "out[1]");
}

// Two stages of copies, the next one in flight while one is used; a zero where nothing is valid.
__global__ void pipeline_kernel(const float* in, int tiles, float* out) {
  SIMT_DYN_SHARED(bytes);
  float* stages = reinterpret_cast<float*>(bytes);
  const int t = threadIdx.x;
  const auto fetch = [&](int tile) {
    const bool valid = tile < tiles - 1 || t < 16;
    float* to = stages + tile % 2 * 128 + t * 4;
    simt::cp_async16(to, in + (valid ? tile * 128 + t * 4 : 0), valid);
    simt::cp_async_commit();
  };
  fetch(0);
  float sum = 0.0f;
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) fetch(tile + 1);
    if (tile + 1 < tiles) {
      simt::cp_async_wait<1>();
    } else {
      simt::cp_async_wait<0>();
    }
    __syncthreads();
    for (int i = 0; i < 4; ++i) sum += stages[tile % 2 * 128 + (31 - t) * 4 + i];
    __syncthreads();
  }
  out[t] = sum;
}
CASE(copy_pipeline) {
  constexpr int kTiles = 5, kCount = (kTiles - 1) * 128 + 64;
  Buffer<float> in(kCount, Access::kRead, "in"), out(32, Access::kWrite, "out");
  for (int i = 0; i < kCount; ++i) in[i] = static_cast<float>(i);
  SIMT_LAUNCH((pipeline_kernel), 1, 32, 1024, nullptr, in, kTiles, out);
  for (int t = 0; t < 32; ++t) {
    float sum = 0.0f;
    for (int tile = 0; tile < kTiles; ++tile) {
      for (int i = 0; i < 4; ++i) {
        const int at = tile * 128 + (31 - t) * 4 + i;
        if (at < kCount) sum += static_cast<float>(at);
      }
    }
    expect_equal(out[t], sum, "out");
  }
}

__global__ void atomics_kernel(int* values) {
  atomicAdd(values, 2);
  atomicMax(values + 1, static_cast<int>(threadIdx.x));
  atomicMin(values + 2, -static_cast<int>(threadIdx.x));
  atomicOr(values + 3, 1 << threadIdx.x % 32);
  int seen = values[5];
  for (int assumed = seen + 1; seen != assumed;) {
    assumed = seen;
    seen = atomicCAS(values + 4, assumed, assumed + 3);
  }
}
CASE(atomics) {
  Buffer<int> values(6, Access::kReadWrite, "values");
  for (int i = 0; i < 6; ++i) values[i] = 0;
  SIMT_LAUNCH((atomics_kernel), 4, 64, 0, nullptr, values);
  const int wanted[] = {512, 63, -63, -1, 768};
  for (int i = 0; i < 5; ++i) expect_equal(values[i], wanted[i], "values");
}

// Every pattern of 16 bits survives float; halfway cases go to even, overflow to infinity.
CASE(half_conversions) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float f16 = simt::f16_float(half), bf16 = simt::bf16_float(half);
    expect_equal(simt::f16_bits(f16), std::isnan(f16) ? 0x7fffu : bits, "float16");
    expect_equal(simt::bf16_bits(bf16), std::isnan(bf16) ? 0x7fffu : bits, "bfloat16");
    expect_equal(f16 == static_cast<float>(__builtin_bit_cast(_Float16, half)) || std::isnan(f16),
                 true, "value of float16");
  }
  uint32_t random = 1;
  for (int i = 0; i < 200000; ++i) {
    random = random * 1664525u + 1013904223u;
    // Every third one in the range of float16, with its subnormals and its overflow.
    const uint32_t bits =
        i % 3 ? random : (random & 0x807fffff) | (100 + (random >> 23) % 46) << 23;
    const float value = __uint_as_float(bits);
    if (std::isnan(value)) continue;
    const auto wanted = __builtin_bit_cast(uint16_t, static_cast<_Float16>(value));
    expect_equal(simt::f16_bits(value), wanted, "float16 of " + std::to_string(value));
  }
  expect_equal(simt::pack_bf16(1.0f, 1.00390625f), 0x3f803f80u, "tie to even, down");
  expect_equal(simt::pack_bf16(1.01171875f, -2.0f), 0xc0003f82u, "tie to even, up");
  expect_equal(simt::pack_f16(65519.0f, -65520.0f), 0xfc007bffu, "largest and infinity");
  expect_equal(simt::exp2_fast(-130.0f), 0.0f, "subnormal results are zero");
  expect_equal(simt::exp2_fast(3.0f), 8.0f, "exp2");
  expect_equal(simt::max_or_nan(-1.0f, 2.0f), 2.0f, "the larger one");
  expect_equal(std::isnan(simt::max_or_nan(NAN, 1.0f)), true, "a NaN wins on the left");
  expect_equal(std::isnan(simt::max_or_nan(1.0f, NAN)), true, "a NaN wins on the right");
}

// Registered ranges that overlap, one of them twice, and their way back.
__global__ void copy_kernel(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x]; }
CASE(overlapping_memory) {
  std::vector<int> data(96, 7);
  const size_t size = sizeof(int);
  const simt::Memory first(&data[0], 64 * size, Access::kRead, "first");
  {
    const simt::Memory second(&data[32], 64 * size, Access::kReadWrite, "second");
    const simt::Memory again(&data[0], 64 * size, Access::kRead, "again");
    SIMT_LAUNCH((copy_kernel), 1, 32, 0, nullptr, &data[0], &data[64]);
  }
  const simt::Memory out(&data[64], 32 * size, Access::kWrite, "out");
  SIMT_LAUNCH((copy_kernel), 1, 32, 0, nullptr, &data[32], &data[64]);
  const simt::Memory nothing(&data[0], 0, Access::kWrite, "nothing");
}

// Launches from several threads of the host wait for each other.
CASE(host_threads) {
  std::vector<std::thread> hosts;
  for (int h = 0; h < 4; ++h) {
    hosts.emplace_back([] {
      Buffer<int> in(32, Access::kRead, "in"), out(32, Access::kWrite, "out");
      for (int i = 0; i < 50; ++i) SIMT_LAUNCH((copy_kernel), 1, 32, 0, nullptr, in, out);
    });
  }
  for (std::thread& host : hosts) host.join();
  expect_equal(simt::stats.launches, 200u, "launches");
}

// Small launches are cheap: their cost goes with what they use.
CASE(many_launches) {
  Buffer<int> in(32, Access::kRead, "in"), out(32, Access::kWrite, "out");
  Buffer<int> unused(1 << 22, Access::kReadWrite, "unused");
  for (int i = 0; i < 20000; ++i) SIMT_LAUNCH((copy_kernel), 1, 32, 0, nullptr, in, out);
}

}  // namespace
