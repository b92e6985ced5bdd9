// group_norm_silu: out = silu(group_norm(x)), channels last   (contract: lpd/group_norm_silu.h)
//
// Two launches, a CTA a chunk of an image's pixels in both. Threads stand side by side along the
// channels, 8 of them each (16 bytes of a narrow dtype), in as many rows as then fit. Row r takes
// pixels r, r + rows, r + 2 rows and so on; a thread keeps to its channels.
//   statistics: of each group of channels the chunk's mean and squares around it. Summed is what is
//     left of a channel when its first pixel in the chunk is taken away, which is part of the
//     squares itself: among n pixels the difference of the sums cancels at most n times its
//     rounding. Rows are added in turn, then channels.
//   apply: every CTA merges the chunks of its image, around the mean of the first and in one order,
//     and normalises its pixels. At most kMostChunks of 8 bytes a group: 32 KiB of L2 at 32 groups.
//
// Bound by memory: x is read twice, written once. Floor for the tokenizer's last level (65536
// pixels of 128 channels, bfloat16) at 4.3 TB/s, predicted: 0.75 ms at batch 64; at batch 1, where
// 16 MiB stay in L2, two launches and the way there and back are what it takes.
//
// Not yet run on a GPU.
#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "elements.cuh"
#include "lpd/group_norm_silu.h"
#include "primitives.cuh"

namespace lpd::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kValues = 8;                                // neighbouring channels of a thread
constexpr int64_t kMostChunks = 128;                      // of an image
constexpr int64_t kFewElements = 2 * kThreads * kValues;  // of a chunk

// Pixels that a thread has under way: so many bytes leave each of two CTAs its registers.
template <class T>
constexpr int kStatisticsAhead = 64 / (kValues * sizeof(T));
template <class T>
constexpr int kApplyAhead = 32 / (kValues * sizeof(T));

// How the work is divided, by the shape of one image.
struct Division {
  int chunk_pixels;
  int num_chunks;
  int num_columns;  // of kValues channels, the last one filled in part
  int width;        // threads side by side
  int num_rows;     // of such threads
  int num_parts;    // in which the chunks of a group are merged

  explicit Division(const GroupNormSiluParams& params) {
    const int64_t even = (params.pixels + kMostChunks - 1) / kMostChunks;
    const int64_t least = (kFewElements + params.channels - 1) / params.channels;
    chunk_pixels = static_cast<int>(std::max(even, least));
    num_chunks = static_cast<int>((params.pixels + chunk_pixels - 1) / chunk_pixels);
    num_columns = static_cast<int>((params.channels + kValues - 1) / kValues);
    width = std::min(num_columns, kThreads);
    num_rows = kThreads / width;
    num_parts = static_cast<int>(std::max<int64_t>(kThreads / params.num_groups, 1));
  }

  size_t statistics_bytes() const {
    return static_cast<size_t>(num_rows) * num_columns * kValues * sizeof(float2);
  }
  size_t apply_bytes(int64_t num_groups) const {
    return static_cast<size_t>(num_parts) * num_groups * sizeof(float2);
  }
};

// Where a CTA works.
struct Place {
  int64_t image;
  int chunk;
  int pixels;       // of the chunk
  int64_t offset;   // of its first element
  int column, row;  // of this thread

  __device__ __forceinline__ Place(const GroupNormSiluParams& params, const Division& division)
      : image(static_cast<int>(blockIdx.x) / division.num_chunks),
        chunk(static_cast<int>(blockIdx.x) % division.num_chunks),
        pixels(pixels_of(params, division, chunk)),
        offset((image * params.pixels + int64_t{chunk} * division.chunk_pixels) * params.channels),
        column(static_cast<int>(threadIdx.x) % division.width),
        row(static_cast<int>(threadIdx.x) / division.width) {}

  __device__ __forceinline__ static int pixels_of(const GroupNormSiluParams& params,
                                                  const Division& division,
                                                  int chunk) {
    const int64_t left = params.pixels - int64_t{chunk} * division.chunk_pixels;
    return static_cast<int>(min(left, int64_t{division.chunk_pixels}));
  }
};

// Calls function(values, pixel) for this thread's pixels, those of a column of `count` channels.
// Where the tensors allow it, kAhead of them are on their way before the first is looked at.
template <int kAhead, class T, class Function>
__device__ __forceinline__ void for_each_pixel(const T* x,
                                               int64_t channels,
                                               int row,
                                               int num_rows,
                                               int pixels,
                                               bool aligned,
                                               int count,
                                               const Function& function) {
  float values[kValues] = {};
  int pixel = row;
  if (aligned && count == kValues) {
    constexpr int kChunks = kValues / Chunk<T>::kSize;
#pragma unroll 1
    for (; pixel + (kAhead - 1) * num_rows < pixels; pixel += kAhead * num_rows) {
      Chunk<T> chunks[kAhead][kChunks];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
#pragma unroll
        for (int j = 0; j < kChunks; ++j) {
          const T* const from = x + (pixel + i * num_rows) * channels + j * Chunk<T>::kSize;
          chunks[i][j] = load_chunk(from, true);
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
#pragma unroll
        for (int j = 0; j < kValues; ++j) {
          values[j] = to_float(chunks[i][j / Chunk<T>::kSize].elements[j % Chunk<T>::kSize]);
        }
        function(values, pixel + i * num_rows);
      }
    }
  }
#pragma unroll 1
  for (; pixel < pixels; pixel += num_rows) {
    load_values(x + pixel * channels, aligned, values, count);
    function(values, pixel);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    group_norm_silu_statistics_kernel(const GroupNormSiluParams params,
                                      const Division division,
                                      bool aligned,
                                      float2* partials) {
  SIMT_DYN_SHARED(bytes);
  float2* const sums = reinterpret_cast<float2*>(bytes);  // [num_rows, num_columns * kValues]
  const int channels = static_cast<int>(params.channels);
  const int padded = division.num_columns * kValues;
  const Place place(params, division);
  const T* const x = static_cast<const T*>(params.x) + place.offset;

  if (place.row < division.num_rows) {
    for (int column = place.column; column < division.num_columns; column += division.width) {
      const int first = column * kValues, count = min(channels - first, kValues);
      float shift[kValues] = {}, sum[kValues] = {}, square[kValues] = {};
      load_values(x + first, aligned, shift, count);
      for_each_pixel<kStatisticsAhead<T>>(x + first, channels, place.row, division.num_rows,
                                          place.pixels, aligned, count,
                                          [&](const float (&values)[kValues], int) {
#pragma unroll
                                            for (int i = 0; i < kValues; ++i) {
                                              const float off = values[i] - shift[i];
                                              sum[i] += off;
                                              square[i] = fmaf(off, off, square[i]);
                                            }
                                          });
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        sums[place.row * padded + first + i] = make_float2(sum[i], square[i]);
      }
    }
  }
  __syncthreads();

  // Of each channel: mean, and squares around it.
  const float pixels = static_cast<float>(place.pixels);
  for (int channel = static_cast<int>(threadIdx.x); channel < channels; channel += kThreads) {
    float sum = 0.0f, square = 0.0f;
    for (int row = 0; row < division.num_rows; ++row) {
      const float2 of_row = sums[row * padded + channel];
      sum += of_row.x;
      square += of_row.y;
    }
    const float mean = sum / pixels;
    sums[channel] =
        make_float2(to_float(x[channel]) + mean, simt::max_or_nan(square - sum * mean, 0.0f));
  }
  __syncthreads();

  // Of each group: mean, and squares around it, those of a channel on average.
  const int num_groups = static_cast<int>(params.num_groups), size = channels / num_groups;
  for (int group = static_cast<int>(threadIdx.x); group < num_groups; group += kThreads) {
    const float2* const of_group = sums + group * size;
    float mean = 0.0f, square = 0.0f;
    for (int i = 0; i < size; ++i) mean += of_group[i].x;
    mean /= static_cast<float>(size);
    for (int i = 0; i < size; ++i) {
      const float off = of_group[i].x - mean;
      square += fmaf(pixels * off, off, of_group[i].y);
    }
    partials[int64_t{blockIdx.x} * num_groups + group] =
        make_float2(mean, square / static_cast<float>(size));
  }
}

// y / (1 + exp(-y)): 0 where the exponential overflows.
__device__ __forceinline__ float silu(float y) {
  return __fdividef(y, 1.0f + simt::exp2_fast(-1.44269504f * y));
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    group_norm_silu_apply_kernel(const GroupNormSiluParams params,
                                 const Division division,
                                 bool aligned,
                                 const float2* partials) {
  SIMT_DYN_SHARED(bytes);
  float2* const parts = reinterpret_cast<float2*>(bytes);  // [num_parts, num_groups]
  const int channels = static_cast<int>(params.channels);
  const int num_groups = static_cast<int>(params.num_groups), size = channels / num_groups;
  const Place place(params, division);
  const float2* const of_image = partials + place.image * division.num_chunks * num_groups;

  for (int i = static_cast<int>(threadIdx.x); i < division.num_parts * num_groups; i += kThreads) {
    const int group = i % num_groups;
    const float around = of_image[group].x;
    float sum = 0.0f, square = 0.0f;
    for (int chunk = i / num_groups; chunk < division.num_chunks; chunk += division.num_parts) {
      const float2 partial = of_image[int64_t{chunk} * num_groups + group];
      const float off = partial.x - around;
      const float part = static_cast<float>(Place::pixels_of(params, division, chunk)) * off;
      sum += part;
      square += fmaf(part, off, partial.y);
    }
    parts[i] = make_float2(sum, square);
  }
  __syncthreads();

  // Of each group: mean, and one over the standard deviation.
  const float pixels = static_cast<float>(params.pixels);
  for (int group = static_cast<int>(threadIdx.x); group < num_groups; group += kThreads) {
    float sum = 0.0f, square = 0.0f;
    for (int part = 0; part < division.num_parts; ++part) {
      const float2 of_part = parts[part * num_groups + group];
      sum += of_part.x;
      square += of_part.y;
    }
    const float mean = sum / pixels;
    const float variance = simt::max_or_nan(square - sum * mean, 0.0f) / pixels;
    parts[group] = make_float2(of_image[group].x + mean, rsqrtf(variance + params.norm_eps));
  }
  __syncthreads();
  if (place.row >= division.num_rows) return;

  const T* const x = static_cast<const T*>(params.x) + place.offset;
  T* const out = static_cast<T*>(params.out) + place.offset;
  for (int column = place.column; column < division.num_columns; column += division.width) {
    const int first = column * kValues, count = min(channels - first, kValues);
    float mean[kValues], scale[kValues] = {}, shift[kValues] = {};
    if (params.norm_dtype == Dtype::kFloat32) {
      load_values(static_cast<const float*>(params.norm_weight) + first, aligned, scale, count);
      load_values(static_cast<const float*>(params.norm_bias) + first, aligned, shift, count);
    } else {
      load_values(static_cast<const T*>(params.norm_weight) + first, aligned, scale, count);
      load_values(static_cast<const T*>(params.norm_bias) + first, aligned, shift, count);
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const float2 of_group = parts[min(first + i, channels - 1) / size];
      mean[i] = of_group.x;
      scale[i] *= of_group.y;
    }
    for_each_pixel<kApplyAhead<T>>(
        x + first, channels, place.row, division.num_rows, place.pixels, aligned, count,
        [&](const float (&values)[kValues], int pixel) {
          float normal[kValues];
#pragma unroll
          for (int i = 0; i < kValues; ++i) {
            const float y = fmaf(values[i] - mean[i], scale[i], shift[i]);
            normal[i] = params.silu ? silu(y) : y;
          }
          store_values(normal, aligned, out + pixel * int64_t{channels} + first, count);
        });
  }
}

}  // namespace

size_t group_norm_silu_workspace_size(const GroupNormSiluParams& params) {
  const int64_t num_chunks = Division(params).num_chunks;
  return static_cast<size_t>(params.batch * num_chunks * params.num_groups) * sizeof(float2);
}

cudaError_t group_norm_silu(const GroupNormSiluParams& params,
                            std::byte* workspace,
                            cudaStream_t stream) {
  if (params.batch * params.pixels == 0) return cudaSuccess;
  if (params.pixels > INT32_MAX) return cudaErrorInvalidValue;
  const Division division(params);
  const int64_t num_blocks = params.batch * division.num_chunks;
  if (num_blocks > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(num_blocks)), block(kThreads);
  float2* const partials = reinterpret_cast<float2*>(workspace);
  return with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    const bool aligned = is_aligned<T>({params.x, params.norm_weight, params.norm_bias, params.out},
                                       {params.channels});
    SIMT_LAUNCH((group_norm_silu_statistics_kernel<T>), grid, block, division.statistics_bytes(),
                stream, params, division, aligned, partials);
    SIMT_LAUNCH((group_norm_silu_apply_kernel<T>), grid, block,
                division.apply_bytes(params.num_groups), stream, params, division, aligned,
                static_cast<const float2*>(partials));
    return cudaGetLastError();
  });
}

}  // namespace lpd::cuda
