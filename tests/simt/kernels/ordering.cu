// Planted: races, and barriers and collectives that do not fit together. "<- NAME" marks the line
// that the error of case NAME must give.
#include "cases.h"

namespace {

constexpr unsigned kFull = 0xffffffff;

// ---- Races
__global__ void reverse_kernel(int* out, bool sync) {
  SIMT_SHARED(int, tile, [64]);
  const int t = threadIdx.x;
  tile[t] = t;
  if (sync) __syncthreads();
  out[t] = tile[63 - t];  // <- missing_syncthreads
}
CASE(missing_syncthreads) {
  Buffer<int> out(64, Access::kWrite, "out");
  SIMT_LAUNCH((reverse_kernel), 1, 64, 0, nullptr, out, true);
  SIMT_LAUNCH((reverse_kernel), 1, 64, 0, nullptr, out, false);
}

// The barrier between the reads of a round and the writes of the next one.
__global__ void rounds_kernel(int* out) {
  SIMT_SHARED(int, tile, [64]);
  const int t = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    tile[t] = round;  // <- missing_syncthreads_between_rounds
    __syncthreads();
    out[t] = tile[63 - t];
  }
}
CASE(missing_syncthreads_between_rounds) {
  Buffer<int> out(64, Access::kWrite, "out");
  SIMT_LAUNCH((rounds_kernel), 1, 64, 0, nullptr, out);
}

// Lanes of a warp run in no order either, and a shuffle orders no memory.
__global__ void warp_exchange_kernel(int* out, bool sync) {
  SIMT_SHARED(int, tile, [32]);
  const int t = threadIdx.x;
  tile[t] = t;
  if (sync) __syncwarp();
  __shfl_xor_sync(kFull, t, 1);
  out[t] = tile[t ^ 1];  // <- missing_syncwarp
}
CASE(missing_syncwarp) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((warp_exchange_kernel), 1, 32, 0, nullptr, out, true);
  SIMT_LAUNCH((warp_exchange_kernel), 1, 32, 0, nullptr, out, false);
}

// __syncwarp of each half orders nothing between the halves.
__global__ void half_warp_kernel(int* out, int partner) {
  SIMT_SHARED(int, tile, [32]);
  const int t = threadIdx.x;
  tile[t] = t;
  __syncwarp(t < 16 ? 0xffffu : 0xffff0000u);
  out[t] = tile[t ^ partner];  // <- syncwarp_of_the_other_half
}
CASE(syncwarp_of_the_other_half) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((half_warp_kernel), 1, 32, 0, nullptr, out, 8);
  SIMT_LAUNCH((half_warp_kernel), 1, 32, 0, nullptr, out, 16);
}

__global__ void two_writers_kernel(int* out) {
  out[threadIdx.x / 2] = threadIdx.x;  // <- write_write_race
}
CASE(write_write_race) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((two_writers_kernel), 1, 64, 0, nullptr, out);
}

// Wide accesses that share only one byte.
__global__ void overlapping_bytes_kernel(unsigned char* out) {
  if (threadIdx.x == 0) {
    *reinterpret_cast<unsigned*>(out) = 0;
  } else {
    out[threadIdx.x] = 1;  // <- race_of_one_byte
  }
}
CASE(race_of_one_byte) {
  Buffer<unsigned char> out(8, Access::kReadWrite, "out");
  SIMT_LAUNCH((overlapping_bytes_kernel), 1, 4, 0, nullptr, out);
}

__global__ void block_overlap_kernel(int* out) {
  out[blockIdx.x * 24 + threadIdx.x] = 1;  // <- race_between_blocks
}
CASE(race_between_blocks) {
  Buffer<int> out(128, Access::kWrite, "out");
  SIMT_LAUNCH((block_overlap_kernel), 4, 32, 0, nullptr, out);
}

// In place: a block reads what its neighbour writes.
__global__ void block_read_write_kernel(int* data) {
  const int next = data[(blockIdx.x + 1) % gridDim.x];  // <- read_write_race_between_blocks
  data[blockIdx.x] = next;                              // <- read_write_race_between_blocks
}
CASE(read_write_race_between_blocks) {
  Buffer<int> data(4, Access::kReadWrite, "data");
  SIMT_LAUNCH((block_read_write_kernel), 4, 1, 0, nullptr, data);
}

// Half of the threads count without an atomic.
__global__ void histogram_kernel(int* out) {
  SIMT_SHARED(int, bin);
  if (threadIdx.x == 0) bin = 0;
  __syncthreads();
  if (threadIdx.x % 2) {
    atomicAdd(&bin, 1);  // <- atomic_and_plain
  } else {
    bin += 1;  // <- atomic_and_plain
  }
  __syncthreads();
  if (threadIdx.x == 0) *out = bin;
}
CASE(atomic_and_plain) {
  Buffer<int> out(1, Access::kWrite, "out");
  SIMT_LAUNCH((histogram_kernel), 1, 64, 0, nullptr, out);
}

// Reads a counter after its own atomic, but not after those of the other warp.
__global__ void counter_kernel(int* out) {
  SIMT_SHARED(int, counter);
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  atomicAdd(&counter, 1);                                      // <- atomic_then_read
  if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = counter;  // <- atomic_then_read
}
CASE(atomic_then_read) {
  Buffer<int> out(2, Access::kWrite, "out");
  SIMT_LAUNCH((counter_kernel), 1, 64, 0, nullptr, out);
}

// The last block reads what others wrote through its own cache.
__global__ void last_block_plain_kernel(int* parts, unsigned* count, int* out) {
  parts[blockIdx.x] = blockIdx.x;
  __threadfence();
  if (atomicAdd(count, 1u) != gridDim.x - 1) return;
  int sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += parts[i];  // <- last_block_without_ldcg
  *out = sum;
}
CASE(last_block_without_ldcg) {
  Buffer<int> parts(8, Access::kWrite, "parts"), out(1, Access::kWrite, "out");
  Buffer<unsigned> count(1, Access::kReadWrite, "count");
  *count = 0;
  SIMT_LAUNCH((last_block_plain_kernel), 8, 1, 0, nullptr, parts, count, out);
}

// ---- Barriers
__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();  // <- divergent_barrier
  } else {
    __syncthreads();  // <- divergent_barrier
  }
}
CASE(divergent_barrier) { SIMT_LAUNCH((divergent_barrier_kernel), 1, 64, 0, nullptr); }

__global__ void early_exit_kernel() {
  if (threadIdx.x == 3) return;
  __syncthreads();  // <- exit_before_barrier
}
CASE(exit_before_barrier) { SIMT_LAUNCH((early_exit_kernel), 1, 64, 0, nullptr); }

// A warp that waits in a barrier inside a branch that the other one does not take.
__global__ void barrier_in_branch_kernel() {
  if (threadIdx.x < 32) __syncthreads();  // <- barrier_in_branch
}
CASE(barrier_in_branch) { SIMT_LAUNCH((barrier_in_branch_kernel), 1, 64, 0, nullptr); }

// Half of a warp waits for the other one, which waits for the block.
__global__ void deadlock_kernel() {
  if (threadIdx.x < 16) {
    __syncwarp(kFull);  // <- deadlock
  }
  __syncthreads();  // <- deadlock
}
CASE(deadlock) { SIMT_LAUNCH((deadlock_kernel), 1, 32, 0, nullptr); }

// ---- Collectives
__global__ void divergent_shuffle_kernel(int* out) {
  const int t = threadIdx.x;
  if (t % 2) {
    out[t] = __shfl_xor_sync(kFull, t, 1);  // <- divergent_collective
  } else {
    out[t] = __shfl_xor_sync(kFull, t, 1) + 1;  // <- divergent_collective
  }
}
CASE(divergent_collective) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((divergent_shuffle_kernel), 1, 32, 0, nullptr, out);
}

__global__ void exit_before_shuffle_kernel(int* out) {
  const int t = threadIdx.x;
  if (t >= 20) return;
  out[t] = __shfl_down_sync(kFull, t, 1);  // <- exit_before_collective
}
CASE(exit_before_collective) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((exit_before_shuffle_kernel), 1, 32, 0, nullptr, out);
}

__global__ void outside_mask_kernel(int* out) {
  const int t = threadIdx.x;
  if (t % 2) out[t] = __shfl_xor_sync(0xaaaaaaaau, t, 1);  // <- shuffle_outside_mask
}
CASE(shuffle_outside_mask) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((outside_mask_kernel), 1, 32, 0, nullptr, out);
}

__global__ void not_in_mask_kernel(unsigned* out) {
  out[threadIdx.x] = __ballot_sync(0xffff, 1);  // <- lane_not_in_its_mask
}
CASE(lane_not_in_its_mask) {
  Buffer<unsigned> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((not_in_mask_kernel), 1, 32, 0, nullptr, out);
}

__global__ void overlapping_masks_kernel(int* out) {
  const int t = threadIdx.x;
  const unsigned mask = t < 16 ? 0x1ffffu : 0xffff0000u;
  out[t] = __any_sync(mask, t == 0);  // <- overlapping_masks
}
CASE(overlapping_masks) {
  Buffer<int> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((overlapping_masks_kernel), 1, 32, 0, nullptr, out);
}

__global__ void half_warp_mma_kernel(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {};
  simt::mma_bf16(d, a, 0, 0);  // <- mma_in_half_a_warp
  out[threadIdx.x] = d[0];
}
CASE(mma_in_half_a_warp) {
  Buffer<float> out(32, Access::kWrite, "out");
  SIMT_LAUNCH((half_warp_mma_kernel), 1, 16, 0, nullptr, out);
}

__global__ void trap_kernel() {
  if (threadIdx.x == 5) __trap();  // <- trap
}
CASE(trap) { SIMT_LAUNCH((trap_kernel), 1, 32, 0, nullptr); }

// ---- After an error
// Leaves 63 threads of a block in a barrier, a copy in flight and a collective half full, then runs
// a kernel that must not notice.
__global__ void wreck_kernel(const int4* in) {
  SIMT_SHARED(int4, tile);
  if (threadIdx.x == 40) {
    simt::cp_async16(&tile, in);
    simt::cp_async_commit();
    __trap();
  }
  if (threadIdx.x < 32) __syncthreads();
  __syncwarp();
}
CASE(launch_after_an_error) {
  Buffer<int4> in(1, Access::kRead, "in");
  Buffer<int> out(64, Access::kWrite, "out");
  for (int i = 0; i < 3; ++i) {
    bool thrown = false;
    try {
      SIMT_LAUNCH((wreck_kernel), 1, 64, 0, nullptr, in);
    } catch (const simt::Error&) {
      thrown = true;
    }
    expect_equal(thrown, true, "the wrecked launch throws");
    SIMT_LAUNCH((reverse_kernel), 1, 64, 0, nullptr, out, true);
    for (int t = 0; t < 64; ++t) expect_equal(out[t], 63 - t, "out");
  }
}

}  // namespace
