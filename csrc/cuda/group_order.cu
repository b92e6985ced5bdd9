// group_order: a CTA an image, all cells in registers, nothing sorted.
//   contract: lpd/group_order.h; rules: lpd_ext/ops/group_order.py
//
// Walking cells in sequence and passing over those that a pick repels is the same as taking, again
// and again, the smallest (place of the score, random key, cell) of those not repelled yet. So are
// the other rules: all that is left in sequence, the farthest first with equals in sequence, one at
// random. They differ in the first word, the `rank`, and in who may be taken: each pick is one
// lexicographic minimum of four 32-bit words, by REDUX in a warp, and what follows from it (who is
// repelled, whose neighbour it is, who is nearest to it) every thread works out for its own cells.
//
// A thread has 8 cells, so a grid of up to 256 cells is one warp's: no barrier, no latency but that
// of its own chain, and four of them run side by side on a multiprocessor. Up to 1024 cells take 4
// warps, up to 4096 take 16; these agree through shared memory, two slots in turn, with a barrier a
// pick. Everything is an integer, and no two threads write to one place: any schedule, same bits.
//
// What bounds it: the chain of picks. By count of instructions a pick is 4 REDUX one after the
// other and some 25 operations a cell, for a warp of 8 cells a lane about 200 issued, and keys are
// 10 rounds of Philox a cell and step, some 600. Predicted for 256 images of 16 x 16 in 20 steps,
// two warps a multiprocessor: 256 x 350 + 20 x 1000 cycles, 60 us. Memory: 8 bytes read and 2 KB
// written an image.
//
// The group sizes travel in the kernel's parameters, a bit a position: a call copies nothing, waits
// for nothing and can be captured in a graph.
//
// Not yet run on a GPU.
#include <algorithm>

#include "lpd/group_order.h"
#include "lpd/group_order_scores.h"
#include "lpd/philox.h"
#include "primitives.cuh"
#include "warp.cuh"

namespace lpd::cuda {
namespace {

constexpr int kCells = 8;           // a thread
constexpr uint32_t kNone = ~0u;     // rank of what may not be taken
constexpr uint32_t kFar = 1 << 24;  // above the squared distance of any two cells
constexpr int kPlaceBits = 5;

__device__ __forceinline__ int32_t row_of(uint32_t cell) { return cell >> 16; }
__device__ __forceinline__ int32_t col_of(uint32_t cell) { return cell & 0xffff; }

static_assert((kMostOrderCells - 1) * (kMostOrderCells - 1) < kFar);
static_assert(kNumScores <= 1 << kPlaceBits && kFar < kNone >> kPlaceBits);

// What a call says of all images.
template <int kWarps>
struct Rules {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWords = kCells * kWarps;  // a bit a cell

  GroupOrderParams params;
  ScoreTable scores;
  int32_t seq_len;
  int32_t repulsion;
  int32_t num_generated = 0;         // positions in all groups
  uint32_t group_ends[kWords] = {};  // bit n: the n-th generated position is the last of its group

  explicit Rules(const GroupOrderParams& params)
      : params(params),
        scores(params.proximity_threshold),
        seq_len(static_cast<int32_t>(params.height * params.width)),
        repulsion(static_cast<int32_t>(
            std::clamp(params.repulsion_threshold, int64_t{0}, kMostOrderCells))) {
    for (int64_t step = 0; step < params.num_groups; ++step) {
      num_generated += static_cast<int32_t>(params.group_sizes[step]);
      const int32_t last = num_generated - 1;
      group_ends[last / 32] |= 1u << last % 32;
    }
  }
};

__device__ __forceinline__ bool holds(const uint32_t* words, int32_t bit) {
  return words[bit / 32] >> bit % 32 & 1;
}

__device__ __forceinline__ int32_t bits_before(const uint32_t* words, int32_t end) {
  int32_t count = 0;
  for (int w = 0; w < end / 32; ++w) count += __popc(words[w]);
  return end % 32 == 0 ? count : count + __popc(words[end / 32] << (32 - end % 32));
}

// The smallest of the words that the bits `among` of all lanes name; bits of larger ones fall.
template <int kCount>
__device__ __forceinline__ uint32_t keep_smallest(const uint32_t (&words)[kCount],
                                                  uint32_t& among) {
  uint32_t smallest = kNone;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (among >> i & 1) smallest = min(smallest, words[i]);
  }
  smallest = __reduce_min_sync(kAllLanes, smallest);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (words[i] != smallest) among &= ~(1u << i);
  }
  return smallest;
}

// What is taken first: the smallest rank, then key (in two halves), then cell.
template <int kCount>
__device__ __forceinline__ uint4 first_of_warp(const uint32_t (&ranks)[kCount],
                                               const uint32_t (&high)[kCount],
                                               const uint32_t (&low)[kCount],
                                               const uint32_t (&cells)[kCount],
                                               uint32_t among) {
  uint4 first;
  first.x = keep_smallest(ranks, among);
  first.y = keep_smallest(high, among);
  first.z = keep_smallest(low, among);
  first.w = keep_smallest(cells, among);
  return first;
}

// What precedes what, once the walk has nothing left and before.
enum class Sequence { kByPlace, kByKey, kByDistance };

// The cells of a thread: positions t, t + kThreads, t + 2 kThreads, ...
template <int kWarps>
class Cells {
 public:
  __device__ __forceinline__ explicit Cells(const Rules<kWarps>& rules) : rules_(rules) {
    const auto width = static_cast<int32_t>(rules.params.width);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      cells_[i] = position(i) / width << 16 | position(i) % width;
      neighbours_[i] = 0;
      if (position(i) < rules.seq_len) free_ |= 1u << i;
    }
  }

  // Leaves the image's known cells out, and notes them in `words`, a bit a cell.
  __device__ __forceinline__ void remove_known(int64_t image, uint32_t* words) {
    const GroupOrderParams& params = rules_.params;
    const uint8_t* const known = params.known + image * params.known_batch_stride;
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (free_ >> i & 1 && known[position(i) * params.known_position_stride] != 0) {
        free_ &= ~(1u << i);
        is_known_ |= 1u << i;
      }
      const uint32_t word = __ballot_sync(kAllLanes, is_known_ >> i & 1);
      if (threadIdx.x % 32 == 0) words[position(i) / 32] = word;
    }
  }

  // Writes the known cells in raster order, and lets their neighbours know.
  __device__ __forceinline__ void emit_known(const uint32_t* words, int64_t* order) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (is_known_ >> i & 1) order[bits_before(words, position(i))] = position(i);
      for (int32_t dr = -1; dr <= 1; ++dr) {
        for (int32_t dc = -1; dc <= 1; ++dc) {
          const int32_t row = row_of(cells_[i]) + dr, col = col_of(cells_[i]) + dc;
          const auto height = static_cast<int32_t>(rules_.params.height);
          const auto width = static_cast<int32_t>(rules_.params.width);
          if (row < 0 || row >= height || col < 0 || col >= width) continue;
          if (holds(words, row * width + col)) neighbours_[i] += weight(dr * dr + dc * dc);
        }
      }
    }
  }

  // Draws the keys of the step and scores the cells.
  __device__ __forceinline__ void begin_group(int64_t seed, int32_t step) {
    walked_ = 0;
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const uint64_t key = philox_order_key(seed, step, position(i));
      high_[i] = static_cast<uint32_t>(key >> 32);
      low_[i] = static_cast<uint32_t>(key);
      nearest_[i] = kFar;
      places_[i] = rules_.scores.place(neighbours_[i]);
      if (places_[i] >= rules_.scores.first_walked()) walked_ |= free_ & 1u << i;
    }
  }

  // Of the image's cells that may be taken the first in a sequence; kNone: there is none.
  __device__ __forceinline__ uint32_t first(bool walks, Sequence sequence, uint4* slots) const {
    const uint32_t by_distance = sequence == Sequence::kByDistance ? ~0u : 0;
    const uint32_t by_place = sequence != Sequence::kByKey ? ~0u : 0;
    uint32_t ranks[kCells];
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      ranks[i] = ((kFar - nearest_[i]) << kPlaceBits & by_distance) | (places_[i] & by_place);
    }
    uint4 first = first_of_warp(ranks, high_, low_, cells_, walks ? walked_ : free_);
    if constexpr (kWarps > 1) {
      const int lane = threadIdx.x % 32;
      if (lane == 0) slots[threadIdx.x / 32] = first;
      __syncthreads();
      const uint4 other = slots[lane % kWarps];
      first = first_of_warp<1>({other.x}, {other.y}, {other.z}, {other.w}, 1u);
    }
    return first.w;
  }

  // A cell of the image is taken: what that means to those of this thread.
  __device__ __forceinline__ void take(uint32_t cell) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const int32_t dr = row_of(cells_[i]) - row_of(cell), dc = col_of(cells_[i]) - col_of(cell);
      const uint32_t distance = dr * dr + dc * dc;
      nearest_[i] = min(nearest_[i], distance);
      neighbours_[i] += weight(distance);
      if (distance == 0) free_ &= ~(1u << i);
      if (max(abs(dr), abs(dc)) <= rules_.repulsion) walked_ &= ~(1u << i);
    }
  }

 private:
  __device__ __forceinline__ static int32_t position(int i) {
    return i * Rules<kWarps>::kThreads + static_cast<int32_t>(threadIdx.x);
  }

  // In the score of a cell, of another one that far away.
  __device__ __forceinline__ static uint32_t weight(uint32_t squared_distance) {
    return squared_distance == 1 ? kOrthogonal : squared_distance == 2 ? kDiagonal : 0;
  }

  const Rules<kWarps>& rules_;
  uint32_t cells_[kCells];       // row and column: as words they compare like positions
  uint32_t neighbours_[kCells];  // decoded so far, counted as ScoreTable takes them
  uint32_t high_[kCells];        // halves of the random key of this step
  uint32_t low_[kCells];
  uint32_t places_[kCells];   // of the scores of this step
  uint32_t nearest_[kCells];  // squared distance to the nearest pick of this step, kFar: none yet
  uint32_t free_ = 0;         // a bit a cell: neither known nor taken
  uint32_t is_known_ = 0;
  uint32_t walked_ = 0;  // of a score that reaches the threshold, and repelled by no pick
};

template <int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    group_order_kernel(const __grid_constant__ Rules<kWarps> rules) {
  SIMT_SHARED(uint32_t, known, [Rules<kWarps>::kWords]);
  SIMT_SHARED(uint4, slots, [2][kWarps]);  // in turn, so that one barrier a pick is enough
  const GroupOrderParams& params = rules.params;
  const int64_t image = blockIdx.x;
  int64_t* const order = params.order + image * rules.seq_len;
  Cells<kWarps> cells(rules);

  int32_t num_known = 0;
  if (params.known != nullptr) {
    cells.remove_known(image, known);
    __syncthreads();
    num_known = bits_before(known, rules.seq_len);
  }
  if (num_known + rules.num_generated != rules.seq_len) {
    for (int32_t i = threadIdx.x; i < rules.seq_len; i += Rules<kWarps>::kThreads) order[i] = -1;
    return;
  }
  if (params.known != nullptr) cells.emit_known(known, order);

  const int64_t seed = params.seeds[image * params.seeds_stride];
  int32_t nth = 0, turn = 0;
  for (int32_t step = 0; nth < rules.num_generated; ++step) {
    cells.begin_group(seed, step);
    const int32_t begin = nth;
    const bool takes_all = step == params.num_groups - 1;
    bool walks = true;
    for (bool full = false; !full;) {
      const Sequence sequence = walks || takes_all ? Sequence::kByPlace
                                : nth == begin     ? Sequence::kByKey
                                                   : Sequence::kByDistance;
      const uint32_t cell = cells.first(walks, sequence, slots[turn]);
      turn ^= 1;
      if (cell == kNone) {
        walks = false;
        continue;
      }
      cells.take(cell);
      if (threadIdx.x == 0) {
        order[num_known + nth] = row_of(cell) * params.width + col_of(cell);
      }
      full = holds(rules.group_ends, nth++);
    }
  }
}

template <int kWarps>
cudaError_t launch(const GroupOrderParams& params, cudaStream_t stream) {
  const Rules<kWarps> rules(params);
  const dim3 grid(static_cast<unsigned>(params.batch));
  SIMT_LAUNCH((group_order_kernel<kWarps>), grid, dim3(32 * kWarps), 0, stream, rules);
  return cudaGetLastError();
}

}  // namespace

cudaError_t group_order(const GroupOrderParams& params, cudaStream_t stream) {
  const int64_t seq_len = params.height * params.width;
  if (seq_len > kMostOrderCells || params.batch > INT32_MAX) return cudaErrorInvalidValue;
  if (params.batch == 0) return cudaSuccess;
  if (seq_len <= 32 * kCells) return launch<1>(params, stream);
  if (seq_len <= 4 * 32 * kCells) return launch<4>(params, stream);
  return launch<16>(params, stream);
}

}  // namespace lpd::cuda
