// Planted: accesses to memory that are wrong by themselves. "<- NAME" marks the line that the error
// of case NAME must give.
#include <memory>

#include "cases.h"

namespace {

constexpr int kThreads = 64;

__global__ void shared_read_kernel(int* out) {
  SIMT_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  tile[t] = t;
  __syncthreads();
  const int* next = &tile[t] + 1;
  out[t] = *next;  // <- shared_read_past_end
}
CASE(shared_read_past_end) {
  Buffer<int> out(kThreads, Access::kWrite, "out");
  SIMT_LAUNCH((shared_read_kernel), 1, kThreads, 0, nullptr, out);
}

__global__ void shared_write_kernel() {
  SIMT_DYN_SHARED(bytes);
  bytes[threadIdx.x] = 1;  // <- shared_write_past_end
}
CASE(shared_write_past_end) {
  SIMT_LAUNCH((shared_write_kernel), 1, kThreads, kThreads - 1, nullptr);
}

// One byte past a size that is no multiple of anything.
__global__ void global_read_kernel(const unsigned char* in, unsigned char* out) {
  out[threadIdx.x] = in[threadIdx.x];  // <- global_read_past_end
}
CASE(global_read_past_end) {
  Buffer<unsigned char> in(37, Access::kRead, "in"), out(64, Access::kWrite, "out");
  SIMT_LAUNCH((global_read_kernel), 1, 38, 0, nullptr, in, out);
}

__global__ void global_write_kernel(int* out) {
  out[static_cast<int>(threadIdx.x) - 1] = 1;  // <- global_write_before_begin
}
CASE(global_write_before_begin) {
  Buffer<int> out(kThreads, Access::kWrite, "out");
  SIMT_LAUNCH((global_write_kernel), 1, kThreads, 0, nullptr, out);
}

__global__ void unregistered_kernel(const int* in, int* out) {
  *out = *in;  // <- unregistered_memory
}
CASE(unregistered_memory) {
  Buffer<int> out(1, Access::kWrite, "out");
  int* heap = new int(1);
  const std::unique_ptr<int> owner(heap);
  SIMT_LAUNCH((unregistered_kernel), 1, 1, 0, nullptr, heap, out);
}

// Two threads see the same local variable through shared memory.
__global__ void local_memory_kernel(int* out) {
  SIMT_SHARED(int*, pointer);
  int local = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) pointer = &local;
  __syncthreads();
  out[threadIdx.x] = *pointer;  // <- local_memory_of_another_thread
  __syncthreads();
}
CASE(local_memory_of_another_thread) {
  Buffer<int> out(2, Access::kWrite, "out");
  SIMT_LAUNCH((local_memory_kernel), 1, 2, 0, nullptr, out);
}

__global__ void misaligned_kernel(const float* in, float* out) {
  const float4 v = *reinterpret_cast<const float4*>(in + 1);  // <- misaligned_vector
  *out = v.x + v.w;
}
CASE(misaligned_vector) {
  Buffer<float> in(8, Access::kRead, "in"), out(1, Access::kWrite, "out");
  SIMT_LAUNCH((misaligned_kernel), 1, 1, 0, nullptr, in, out);
}

__global__ void misaligned_ldg_kernel(const float* in, float* out) {
  *out = __ldg(reinterpret_cast<const float2*>(in + 1)).y;  // <- misaligned_ldg
}
CASE(misaligned_ldg) {
  Buffer<float> in(8, Access::kRead, "in"), out(1, Access::kWrite, "out");
  SIMT_LAUNCH((misaligned_ldg_kernel), 1, 1, 0, nullptr, in, out);
}

// The last element is never written.
__global__ void uninitialised_shared_kernel(int* out) {
  SIMT_SHARED(int, tile, [kThreads]);
  const int t = threadIdx.x;
  if (t < kThreads - 1) tile[t] = t;
  __syncthreads();
  out[t] = tile[t];  // <- uninitialised_shared
}
CASE(uninitialised_shared) {
  Buffer<int> out(kThreads, Access::kWrite, "out");
  SIMT_LAUNCH((uninitialised_shared_kernel), 1, kThreads, 0, nullptr, out);
}

// What a block leaves in shared memory is gone in the next one.
__global__ void stale_shared_kernel(int* out) {
  SIMT_SHARED(int, value);
  if (blockIdx.x == 0) value = 1;
  *out = value;  // <- shared_of_the_block_before
}
CASE(shared_of_the_block_before) {
  Buffer<int> out(1, Access::kWrite, "out");
  SIMT_LAUNCH((stale_shared_kernel), 2, 1, 0, nullptr, out);
}

__global__ void uninitialised_output_kernel(int* out) {
  out[threadIdx.x] += 1;  // <- uninitialised_output
}
CASE(uninitialised_output) {
  Buffer<int> out(kThreads, Access::kWrite, "out");
  SIMT_LAUNCH((uninitialised_output_kernel), 1, kThreads, 0, nullptr, out);
}

// A read that is wider than what was written.
__global__ void half_initialised_kernel(int* out) {
  using Pair = int __attribute__((may_alias, aligned(2)));
  SIMT_SHARED(short, pair, [2]);
  pair[0] = 1;
  *out = *reinterpret_cast<const Pair*>(pair);  // <- half_initialised
}
CASE(half_initialised) {
  Buffer<int> out(1, Access::kWrite, "out");
  SIMT_LAUNCH((half_initialised_kernel), 1, 1, 0, nullptr, out);
}

__global__ void write_to_const_kernel(const int* in) {
  const_cast<int*>(in)[threadIdx.x] = 1;  // <- write_to_const, write_to_const_of_overlapping
}
CASE(write_to_const) {
  Buffer<int> in(kThreads, Access::kRead, "in");
  SIMT_LAUNCH((write_to_const_kernel), 1, kThreads, 0, nullptr, in);
}

// The part of a range that only one of two registrations makes writable.
CASE(write_to_const_of_overlapping) {
  Buffer<int> all(4, Access::kRead, "all");
  const simt::Memory writable(all, 2 * sizeof(int), Access::kReadWrite, "writable");
  SIMT_LAUNCH((write_to_const_kernel), 1, 2, 0, nullptr, all);
  SIMT_LAUNCH((write_to_const_kernel), 1, 3, 0, nullptr, all);
}

__global__ void array_bounds_kernel(int* out) {
  SIMT_SHARED(int, rows, [2][32]);
  const int t = threadIdx.x;
  rows[0][t] = rows[1][t] = t;
  __syncthreads();
  out[t] = rows[0][t + 1];  // <- array_bounds
}
CASE(array_bounds) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((array_bounds_kernel), 1, 32, 0, nullptr, out);
}

__global__ void shift_kernel(unsigned* out) {
  out[threadIdx.x] = 1u << threadIdx.x;  // <- shift_out_of_range
}
CASE(shift_out_of_range) {
  Buffer<unsigned> out(33, Access::kWrite, "out");
  SIMT_LAUNCH((shift_kernel), 1, 33, 0, nullptr, out);
}

// A GPU gives some number, the CPU ends the process.
__global__ void division_kernel(int divisor, int* out) {
  *out = 7 % divisor;  // <- division_by_zero
}
CASE(division_by_zero) {
  Buffer<int> out(1, Access::kWrite, "out");
  SIMT_LAUNCH((division_kernel), 1, 1, 0, nullptr, 0, out);
}

__global__ void async_touched_kernel(const int4* in, int* out) {
  SIMT_SHARED(int4, tile, [32]);
  const int t = threadIdx.x;
  simt::cp_async16(&tile[t], in + t);
  simt::cp_async_commit();
  out[t] = tile[t].x;  // <- async_copy_touched_before_wait
  simt::cp_async_wait<0>();
}
CASE(async_copy_touched_before_wait) {
  Buffer<int4> in(32, Access::kRead, "in");
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((async_touched_kernel), 1, 32, 0, nullptr, in, out);
}

// The wait lets one group stay in flight, and that is the one that is read.
__global__ void async_wait_kernel(const int4* in, int* out) {
  SIMT_SHARED(int4, tile, [2]);
  for (int stage = 0; stage < 2; ++stage) {
    simt::cp_async16(&tile[stage], in + stage);
    simt::cp_async_commit();
  }
  simt::cp_async_wait<1>();
  out[0] = tile[0].x;
  out[1] = tile[1].x;  // <- async_wait_too_weak
  simt::cp_async_wait<0>();
}
CASE(async_wait_too_weak) {
  Buffer<int4> in(2, Access::kRead, "in");
  Buffer<int> out(2, Access::kWrite, "out");
  SIMT_LAUNCH((async_wait_kernel), 1, 1, 0, nullptr, in, out);
}

// Waits for its own copies only, then reads its neighbour's without a barrier.
__global__ void async_no_barrier_kernel(const int4* in, int* out) {
  SIMT_SHARED(int4, tile, [32]);
  const int t = threadIdx.x;
  simt::cp_async16(&tile[t], in + t);
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
  out[t] = tile[t ^ 1].x;  // <- async_copy_without_barrier
}
CASE(async_copy_without_barrier) {
  Buffer<int4> in(32, Access::kRead, "in");
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((async_no_barrier_kernel), 1, 32, 0, nullptr, in, out);
}

__global__ void async_left_kernel(const int4* in) {
  SIMT_SHARED(int4, tile);
  simt::cp_async16(&tile, in);  // <- async_copy_left_in_flight
  simt::cp_async_commit();
}
CASE(async_copy_left_in_flight) {
  Buffer<int4> in(1, Access::kRead, "in");
  SIMT_LAUNCH((async_left_kernel), 1, 1, 0, nullptr, in);
}

__global__ void async_misaligned_kernel(const int* in) {
  SIMT_SHARED(int4, tile);
  simt::cp_async16(&tile, in + 1);  // <- async_copy_misaligned
  simt::cp_async_wait<0>();
}
CASE(async_copy_misaligned) {
  Buffer<int> in(8, Access::kRead, "in");
  SIMT_LAUNCH((async_misaligned_kernel), 1, 1, 0, nullptr, in);
}

__global__ void async_past_end_kernel(const int4* in) {
  SIMT_SHARED(int4, tile, [2]);
  simt::cp_async16(&tile[threadIdx.x], in + threadIdx.x);  // <- async_copy_past_end
  simt::cp_async_commit();
  simt::cp_async_wait<0>();
}
CASE(async_copy_past_end) {
  Buffer<int4> in(1, Access::kRead, "in");
  SIMT_LAUNCH((async_past_end_kernel), 1, 2, 0, nullptr, in);
}

__global__ void ldmatrix_kernel(uint32_t* out, int offset) {
  SIMT_SHARED(int4, tile, [32]);
  const int t = threadIdx.x;
  tile[t] = {};
  __syncthreads();
  uint32_t r[4];
  const char* row = reinterpret_cast<const char*>(tile) + t * 16 + offset;
  simt::ldmatrix_x4(r, row);  // <- ldmatrix_misaligned, ldmatrix_past_end
  out[t] = r[0];
}
CASE(ldmatrix_misaligned) {
  Buffer<uint32_t> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((ldmatrix_kernel), 1, 32, 0, nullptr, out, 8);
}
CASE(ldmatrix_past_end) {
  Buffer<uint32_t> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((ldmatrix_kernel), 1, 32, 0, nullptr, out, 16);
}

__global__ void ldmatrix_global_kernel(const int4* in, uint32_t* out) {
  uint32_t r[2];
  simt::ldmatrix_x2(r, in + threadIdx.x);  // <- ldmatrix_of_global_memory
  out[threadIdx.x] = r[0];
}
CASE(ldmatrix_of_global_memory) {
  Buffer<int4> in(32, Access::kRead, "in");
  Buffer<uint32_t> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((ldmatrix_global_kernel), 1, 32, 0, nullptr, in, out);
}

__global__ void much_shared_kernel() {
  SIMT_SHARED(float, tile, [8192]);
  tile[threadIdx.x] = 0;
}
CASE(shared_memory_without_opt_in) { SIMT_LAUNCH((much_shared_kernel), 1, 32, 40 << 10, nullptr); }
CASE(shared_memory_past_the_limit) { SIMT_LAUNCH((much_shared_kernel), 1, 32, 80 << 10, nullptr); }

}  // namespace
