// group_order: a CTA an image, its cells in registers, nothing sorted.
//
// Walking cells in sequence and passing over those that a pick repels is the same as taking, again
// and again, the first of those not repelled yet. So are the other rules: all that is left in
// sequence, the farthest with equals in sequence, one at random. They differ in what a cell ranks
// by and in who may be taken. A pick is one lexicographic minimum of four 32-bit words (rank,
// random key, cell), by REDUX; what follows from it (who is repelled, whose neighbour it is, how
// far it is) every thread works out for its own cells.
//
// A thread has 8 cells, so up to 256 of them are one warp's: no pick waits for a barrier or goes
// through shared memory, and the four warps that a multiprocessor issues from at a time are four
// images. Up to 1024 cells take 4 warps, up to 4096 take 16; a pick is then a minimum in each warp,
// a barrier, and the minimum of those in every warp. All is integers, and no two threads write to
// one place: any schedule, same bits.
//
// The chain of picks bounds it. For one warp a pick is some 300 instructions, of them 4 REDUX one
// after the other, and a step some 500 for the keys, by count of the SASS for sm_90a. Predicted for
// 256 images of 16 x 16 in 20 steps: 276 minima of 650 cycles and 20 steps of 1000, 110 us. Memory:
// 8 bytes read and 2 KB written an image.
//
// Group sizes travel in the kernel's parameters, a bit a position: a call copies nothing, waits for
// nothing, and a graph can capture it.
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

constexpr int kCells = 8;        // a thread
constexpr uint32_t kNone = ~0u;  // the rank of a cell that may not be taken; no other word is that

// Ranks: a place in sequence, above it how near the nearest pick is.
constexpr int kPlaceBits = 5;
constexpr uint32_t kAnyPlace = (1 << kPlaceBits) - 1;
constexpr int32_t kFar = 1 << 24;  // beyond the squared distance of any two cells
static_assert((kMostOrderCells - 1) * (kMostOrderCells - 1) < kFar);
static_assert(kNumScores <= kAnyPlace && kFar <= kNone >> kPlaceBits);

// Cells as words that compare like positions.
constexpr int kCellBits = 24, kColBits = 12;
static_assert(kMostOrderCells <= 1 << kColBits);
__device__ __forceinline__ uint32_t cell_at(int32_t row, int32_t col) {
  return row << kColBits | col;
}
__device__ __forceinline__ int32_t row_of(uint32_t cell) { return cell >> kColBits; }
__device__ __forceinline__ int32_t col_of(uint32_t cell) { return cell & ((1 << kColBits) - 1); }

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

template <int kCount>
__device__ __forceinline__ uint32_t smallest_of_warp(const uint32_t (&words)[kCount]) {
  uint32_t smallest = words[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) smallest = min(smallest, words[i]);
  return __reduce_min_sync(kAllLanes, smallest);
}

// The smallest rank of a warp's cells; of equals the smallest `high`, then `middle`, then `low`.
template <int kCount>
__device__ __forceinline__ uint4 first_of_warp(const uint32_t (&ranks)[kCount],
                                               const uint32_t (&high)[kCount],
                                               const uint32_t (&middle)[kCount],
                                               const uint32_t (&low)[kCount]) {
  uint32_t left[kCount];  // words of those that were equal so far, kNone of the others
  const auto smallest_of_equals = [&](uint32_t smallest, const uint32_t (&words)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) left[i] = left[i] == smallest ? words[i] : kNone;
    return smallest_of_warp(left);
  };
#pragma unroll
  for (int i = 0; i < kCount; ++i) left[i] = ranks[i];
  uint4 first;
  first.x = smallest_of_warp(left);
  first.y = smallest_of_equals(first.x, high);
  first.z = smallest_of_equals(first.y, middle);
  first.w = smallest_of_equals(first.z, low);
  return first;
}

// How the next pick is chosen. In sequence: by place, then by key.
enum class Choice {
  kWalk,      // in sequence, of cells whose score reaches the threshold and that no pick repels
  kAll,       // in sequence
  kRandom,    // by key
  kFarthest,  // the farthest from all picks, equals in sequence
};

// The cells of a thread: positions t, t + kThreads, t + 2 kThreads, ...
template <int kWarps>
class Cells {
 public:
  __device__ __forceinline__ explicit Cells(const Rules<kWarps>& rules) : rules_(rules) {
    const auto width = static_cast<int32_t>(rules.params.width);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      rows_[i] = position(i) / width;
      cols_[i] = position(i) % width;
      neighbours_[i] = 0;
      places_[i] = position(i) < rules.seq_len ? 0 : kNone;
    }
  }

  // Leaves the image's known cells out, and notes them in `words`, a bit a cell.
  __device__ __forceinline__ void remove_known(int64_t image, uint32_t* words) {
    const GroupOrderParams& params = rules_.params;
    const uint8_t* const known = params.known + image * params.known_batch_stride;
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const bool is_known =
          places_[i] != kNone && known[position(i) * params.known_position_stride] != 0;
      if (is_known) places_[i] = kNone;
      const uint32_t word = __ballot_sync(kAllLanes, is_known);
      if (threadIdx.x % 32 == 0) words[position(i) / 32] = word;
    }
  }

  // Writes the known cells in raster order, and lets their neighbours know.
  __device__ __forceinline__ void emit_known(const uint32_t* words, int64_t* order) {
    const auto height = static_cast<int32_t>(rules_.params.height);
    const auto width = static_cast<int32_t>(rules_.params.width);
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      if (holds(words, position(i))) order[bits_before(words, position(i))] = position(i);
      for (int32_t dr = -1; dr <= 1; ++dr) {
        for (int32_t dc = -1; dc <= 1; ++dc) {
          const int32_t row = rows_[i] + dr, col = cols_[i] + dc;
          if (row < 0 || row >= height || col < 0 || col >= width) continue;
          if (holds(words, row * width + col)) neighbours_[i] += weight(dr * dr + dc * dc);
        }
      }
    }
  }

  // Draws the keys of the step and scores the cells.
  __device__ __forceinline__ void begin_group(int64_t seed, int32_t step) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const uint64_t key = philox_order_key(seed, step, position(i));
      high_[i] = static_cast<uint32_t>(key >> 33);
      middle_[i] = static_cast<uint32_t>(key >> 2) & 0x7fffffff;
      low_[i] = static_cast<uint32_t>(key & 3) << kCellBits | cell_at(rows_[i], cols_[i]);
      nearness_[i] = 0;
      const uint32_t place = rules_.scores.place(neighbours_[i]);
      if (places_[i] != kNone) places_[i] = place;
      walked_[i] = place >= rules_.scores.first_walked() ? places_[i] : kNone;
    }
  }

  // The image's cell to take next; kNone: there is none. `slots` are those of no call before it.
  __device__ __forceinline__ uint32_t choose(Choice choice, uint4* slots) const {
    const uint32_t distance_mask = choice == Choice::kFarthest ? ~0u : 0;
    const uint32_t place_mask = choice == Choice::kRandom ? kAnyPlace : 0;
    uint32_t ranks[kCells];
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      ranks[i] = (choice == Choice::kWalk ? walked_[i] : places_[i]) | place_mask |
                 (nearness_[i] & distance_mask);
    }
    uint4 first = first_of_warp(ranks, high_, middle_, low_);
    if constexpr (kWarps > 1) {
      const int lane = threadIdx.x % 32;
      if (lane == 0) slots[threadIdx.x / 32] = first;
      __syncthreads();
      const uint4 other = slots[lane % kWarps];
      first = first_of_warp<1>({other.x}, {other.y}, {other.z}, {other.w});
    }
    return first.x == kNone ? kNone : first.w & ((1 << kCellBits) - 1);
  }

  // A cell of the image is taken: what that means to those of this thread.
  __device__ __forceinline__ void take(uint32_t cell) {
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const int32_t dr = rows_[i] - row_of(cell), dc = cols_[i] - col_of(cell);
      const int32_t distance = dr * dr + dc * dc;
      nearness_[i] = max(nearness_[i], static_cast<uint32_t>(kFar - distance) << kPlaceBits);
      neighbours_[i] += weight(distance);
      if (distance == 0) places_[i] = kNone;
      if (max(abs(dr), abs(dc)) <= rules_.repulsion) walked_[i] = kNone;
    }
  }

 private:
  __device__ __forceinline__ static int32_t position(int i) {
    return i * Rules<kWarps>::kThreads + static_cast<int32_t>(threadIdx.x);
  }

  // In the score of a cell, of another one that far away.
  __device__ __forceinline__ static uint32_t weight(int32_t squared_distance) {
    return squared_distance == 1 ? kOrthogonal : squared_distance == 2 ? kDiagonal : 0;
  }

  const Rules<kWarps>& rules_;
  int32_t rows_[kCells];
  int32_t cols_[kCells];
  uint32_t neighbours_[kCells];  // decoded so far, counted as ScoreTable takes them
  uint32_t places_[kCells];      // of the scores of this step; kNone: known, taken or no cell
  uint32_t walked_[kCells];      // the same, kNone also where a cell is not walked (any more)
  uint32_t nearness_[kCells];    // the nearer a pick of this step the larger, 0 without one
  uint32_t high_[kCells];        // the random key of this step: 31 bits,
  uint32_t middle_[kCells];      // 31 bits,
  uint32_t low_[kCells];         // 2 bits, and behind them the cell
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
      const Choice choice = walks          ? Choice::kWalk
                            : takes_all    ? Choice::kAll
                            : nth == begin ? Choice::kRandom
                                           : Choice::kFarthest;
      const uint32_t cell = cells.choose(choice, slots[turn]);
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
