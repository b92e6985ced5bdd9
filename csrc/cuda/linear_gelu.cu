// linear_gelu: out = gelu(x weight^T + bias) on tensor cores   (contract: lpd/linear_gelu.h)
//
// A block takes a rectangle of the result, a warp of it 16 or 64 rows and 32 columns. Tiles of x
// and weight pass through shared memory in stages; rows there are 16 bytes longer than they need to
// be, so that ldmatrix finds its eight in all banks. Every element sums over k in one order, 16 by
// 16, in every shape of block: its bits depend neither on the number of rows nor on its place.
// A thread of m16n8k16 holds two neighbouring columns. Columns of weight lie in shared memory in an
// order that makes the pairs of its four products eight neighbours, which it stores as 16 bytes.
//
// Few rows: 64x32, which for 4096 columns is a block for nearly every multiprocessor of an H200.
// LPD-L at batch 1 (52 rows, 1024 x 4096) reads 8.4 MB of weights, 2.0 us at 4.3 TB/s, and 13 MB of
// x again from L2; by 2700 instructions a warp, one warp a scheduler, 4.5 to 5.5 us. Many rows:
// 128x128; batch 256 (13312 rows) is 112 GFLOP, 0.14 ms at 790 TFLOP/s, of which m16n8k16 reaches
// 53 to 59 % on Hopper, 0.24 to 0.27 ms. (All predicted.)
//
// What this is for is the erf: cuBLASLt fuses GELU by tanh alone, which gives other tokens.
//
// Not yet run on a GPU.
#include "bias.cuh"
#include "dispatch.h"
#include "elements.cuh"
#include "gelu.cuh"
#include "lpd/linear_gelu.h"
#include "mma.cuh"
#include "primitives.cuh"

namespace lpd::cuda {
namespace {

constexpr int kWarpColumns = 32;
constexpr int kValues = 8;  // neighbours that a thread holds of a row

// Shape of a block: its warps, 16 rows kGroups times in each, and kStages of k by kDepth.
template <int kGroups_, int kRowWarps, int kColumnWarps_, int kDepth_, int kStages_>
struct Block {
  static constexpr int kGroups = kGroups_, kColumnWarps = kColumnWarps_;
  static constexpr int kDepth = kDepth_, kStages = kStages_;
  static constexpr int kRows = kGroups * 16 * kRowWarps;
  static constexpr int kColumns = kWarpColumns * kColumnWarps;
  static constexpr int kThreads = 32 * kRowWarps * kColumnWarps;
  static constexpr int kStride = kDepth + 8;                   // of rows in shared memory
  static constexpr int kStage = (kRows + kColumns) * kStride;  // elements
  static constexpr size_t kBytes = kStages * kStage * sizeof(uint16_t);
  static_assert(kBytes <= 99 * 1024);  // of a block on sm_89 and sm_120
};
using FewRows = Block<1, 4, 1, 64, 6>;
using ManyRows = Block<4, 2, 4, 32, 4>;
constexpr int64_t kFewRows = 256;  // beyond, weights would be read from L2 too often

// What a thread brings of each tile: 16 bytes of some rows of x, then of weight.
template <class T, class Block>
class Source {
 public:
  __device__ __forceinline__ Source(const LinearGeluParams& params,
                                    int64_t first_row,
                                    int64_t first_column)
      : in_features_(params.in_features) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = i * kRowsAtOnce + static_cast<int>(threadIdx.x) / kChunks;
      const bool of_x = row < Block::kRows;
      const int64_t from = of_x ? first_row + row : first_column + column_of(row - Block::kRows);
      valid_[i] = from < (of_x ? params.rows : params.out_features);
      from_[i] = static_cast<const T*>(of_x ? params.x : params.weight) +
                 (valid_[i] ? from * in_features_ : 0) + kSize * (threadIdx.x % kChunks);
    }
  }

  __device__ __forceinline__ void copy(int tile, bool aligned, T* to) const {
    const int64_t k = tile * Block::kDepth;
    const bool inside = k + kSize * (threadIdx.x % kChunks) < in_features_;
    to += threadIdx.x / kChunks * Block::kStride + kSize * (threadIdx.x % kChunks);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      copy_chunk(from_[i] + (inside ? k : 0), aligned, to + i * kRowsAtOnce * Block::kStride,
                 inside && valid_[i]);
    }
  }

 private:
  static constexpr int kSize = Chunk<T>::kSize, kChunks = Block::kDepth / kSize;
  static constexpr int kRowsAtOnce = Block::kThreads / kChunks;
  static constexpr int kCopies = (Block::kRows + Block::kColumns) / kRowsAtOnce;
  static_assert(kCopies * kRowsAtOnce == Block::kRows + Block::kColumns);

  // The column of weight in a row of shared memory: columns 2t and 2t + 1 of the warp's product j
  // are 8t + 2j and 8t + 2j + 1.
  __device__ static __forceinline__ int column_of(int row) {
    const int warp = row / kWarpColumns, product = row % kWarpColumns / 8, column = row % 8;
    return warp * kWarpColumns + column / 2 * 8 + product * 2 + column % 2;
  }

  int64_t in_features_;
  const T* from_[kCopies];
  bool valid_[kCopies];
};

// sums += rows columns^T, of a warp and a tile.
template <class T, class Block>
__device__ __forceinline__ void multiply_tile(const T* rows,
                                              const T* columns,
                                              float (&sums)[Block::kGroups][4][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < Block::kDepth; k += 16) {
    uint32_t weights[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      simt::ldmatrix_x4(weights[j], columns + (j * 16 + lane / 16 * 8 + lane % 8) * Block::kStride +
                                        k + lane / 8 % 2 * 8);
    }
#pragma unroll
    for (int g = 0; g < Block::kGroups; ++g) {
      uint32_t x[4];
      simt::ldmatrix_x4(x, rows + (g * 16 + lane % 16) * Block::kStride + k + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        multiply_add<T>(x, weights[j / 2][j % 2 * 2], weights[j / 2][j % 2 * 2 + 1], sums[g][j]);
      }
    }
  }
}

template <class T, class Block>
__global__ void __launch_bounds__(Block::kThreads, 2)
    linear_gelu_kernel(const LinearGeluParams params, int num_row_blocks, bool aligned) {
  SIMT_DYN_SHARED(memory);
  T* const stages = reinterpret_cast<T*>(memory);
  const int block = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_row = int64_t{block % num_row_blocks} * Block::kRows;
  const int64_t first_column = int64_t{block / num_row_blocks} * Block::kColumns;
  const int warp_row = warp / Block::kColumnWarps * Block::kGroups * 16;
  const int warp_column = warp % Block::kColumnWarps * kWarpColumns;
  const bool is_idle = first_row + warp_row >= params.rows;

  const Source<T, Block> source(params, first_row, first_column);
  const int num_tiles = static_cast<int>((params.in_features + Block::kDepth - 1) / Block::kDepth);
  const auto copy = [&](int tile) {
    if (tile < num_tiles) {
      source.copy(tile, aligned, stages + tile % Block::kStages * Block::kStage);
    }
    simt::cp_async_commit();
  };
#pragma unroll
  for (int tile = 0; tile < Block::kStages - 1; ++tile) copy(tile);

  float sums[Block::kGroups][4][4] = {};
#pragma unroll 1
  for (int tile = 0; tile < num_tiles; ++tile) {
    simt::cp_async_wait<Block::kStages - 2>();
    __syncthreads();  // the tile is there, and the one before has been read
    copy(tile + Block::kStages - 1);
    if (is_idle) continue;
    const T* const rows = stages + tile % Block::kStages * Block::kStage;
    multiply_tile<T, Block>(rows + warp_row * Block::kStride,
                            rows + (Block::kRows + warp_column) * Block::kStride, sums);
  }

  const int lane = threadIdx.x % 32;
  const int64_t column = first_column + warp_column + lane % 4 * kValues;
  const int count = static_cast<int>(min(params.out_features - column, int64_t{kValues}));
#pragma unroll
  for (int i = 0; i < 2 * Block::kGroups; ++i) {
    const int64_t row = first_row + warp_row + i * 8 + lane / 4;
    if (row >= params.rows) continue;
    float values[kValues];
#pragma unroll
    for (int j = 0; j < kValues; ++j) values[j] = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
    add_bias<T>(params.bias, params.bias_dtype, column, aligned, values, count);
#pragma unroll
    for (float& value : values) value = gelu(value);
    store_values(values, aligned, static_cast<T*>(params.out) + row * params.out_features + column,
                 count);
  }
}

template <class T, class Block>
cudaError_t launch(const LinearGeluParams& params, cudaStream_t stream) {
  const int64_t num_row_blocks = (params.rows + Block::kRows - 1) / Block::kRows;
  const int64_t num_blocks =
      num_row_blocks * ((params.out_features + Block::kColumns - 1) / Block::kColumns);
  if (num_blocks > INT32_MAX) return cudaErrorInvalidValue;
  const bool aligned = is_aligned<T>({params.x, params.weight, params.bias, params.out},
                                     {params.in_features, params.out_features});
  SIMT_LAUNCH((linear_gelu_kernel<T, Block>), dim3(static_cast<unsigned>(num_blocks)),
              dim3(Block::kThreads), Block::kBytes, stream, params,
              static_cast<int>(num_row_blocks), aligned);
  return cudaGetLastError();
}

}  // namespace

cudaError_t linear_gelu(const LinearGeluParams& params, cudaStream_t stream) {
  if (params.rows * params.out_features == 0) return cudaSuccess;
  return with_half(params.dtype, [&](auto element) {
    using T = decltype(element);
    return params.rows <= kFewRows ? launch<T, FewRows>(params, stream)
                                   : launch<T, ManyRows>(params, stream);
  });
}

}  // namespace lpd::cuda
