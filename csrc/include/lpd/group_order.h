// group_order: locality-aware decoding order (arXiv 2507.01957). Each group is taken close to what
// earlier groups decoded (proximity) and spread out inside itself (repulsion).
#pragma once

#include <cstddef>
#include <cstdint>

#include "lpd/cuda_runtime.h"

namespace lpd {

struct GroupOrderParams {
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t num_groups;
  double proximity_threshold;   // least proximity score of a position that is walked
  int64_t repulsion_threshold;  // Chebyshev distance up to which two picks of a group repel

  const int64_t* seeds;        // [batch]
  const int64_t* group_sizes;  // [num_groups] on the host, each >= 1; sums to what is not known
  const uint8_t* known;        // [batch, height * width], not 0: known; or null: none is
  int64_t* order;              // [batch, height * width], contiguous: raster positions

  int64_t seeds_stride;
  int64_t known_batch_stride;
  int64_t known_position_stride;
};

namespace cpu {

// Bytes of workspace for any range of images.
size_t group_order_workspace(const GroupOrderParams& params);

// Orders of the images [begin, end). The workspace is aligned to 64 bytes, its contents are of no
// interest; no two calls at a time may share one.
void group_order(const GroupOrderParams& params, int64_t begin, int64_t end, std::byte* workspace);

}  // namespace cpu

#if defined(LPD_CUDA)
namespace cuda {

constexpr int64_t kMostOrderCells = 4096;  // of a grid

// Orders of all images on `stream`; the sizes are read before it returns, and sum to height * width
// at most. An image whose known positions are more or fewer than they leave gets -1 everywhere.
cudaError_t group_order(const GroupOrderParams& params, cudaStream_t stream);

}  // namespace cuda
#endif
}  // namespace lpd
