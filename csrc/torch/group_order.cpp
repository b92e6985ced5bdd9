// Binding of group_order.
#include "lpd/group_order.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "checks.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_order";

// The kernel writes one position per pick: the groups of every image must fill it exactly.
void check_group_sizes(const std::vector<int64_t>& group_sizes,
                       int64_t seq_len,
                       int64_t num_known) {
  int64_t left = seq_len - num_known;
  for (const int64_t size : group_sizes) {
    STD_TORCH_CHECK(
        size >= 1 && size <= left, kOp,
        ": argument `group_sizes`: sizes must be >= 1 and sum to the unknown positions");
    left -= size;
  }
  STD_TORCH_CHECK(left == 0, kOp,
                  ": argument `group_sizes`: must sum to the unknown positions of every image, ",
                  left, " left over");
}

Tensor group_order_cpu(Tensor seeds,
                       std::vector<int64_t> grid,
                       std::vector<int64_t> group_sizes,
                       double proximity_threshold,
                       int64_t repulsion_threshold,
                       std::optional<Tensor> known) {
  constexpr int64_t kMaxSeqLen = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(
      grid.size() == 2 && grid[0] >= 1 && grid[1] >= 1 && grid[0] <= kMaxSeqLen / grid[1], kOp,
      ": argument `grid`: expected height, width >= 1 and fewer than 2^31 cells");
  const int64_t batch = seeds.numel();
  const int64_t seq_len = grid[0] * grid[1];
  check_cpu(seeds, kOp, "seeds");
  check_shape(seeds, {-1}, kOp, "seeds");
  check_dtype(seeds, ScalarType::Long, kOp, "seeds");
  if (known) {
    check_cpu(*known, kOp, "known");
    check_shape(*known, {batch, seq_len}, kOp, "known");
    check_dtype(*known, ScalarType::Bool, kOp, "known");
  } else {
    check_group_sizes(group_sizes, seq_len, 0);
  }

  Tensor order = torch::stable::new_empty(seeds, {batch, seq_len});
  const GroupOrderParams params{
      .batch = batch,
      .height = grid[0],
      .width = grid[1],
      .num_groups = static_cast<int64_t>(group_sizes.size()),
      .proximity_threshold = proximity_threshold,
      .repulsion_threshold = repulsion_threshold,
      .seeds = seeds.const_data_ptr<int64_t>(),
      .group_sizes = group_sizes.data(),
      .known = known ? static_cast<const uint8_t*>(known->const_data_ptr()) : nullptr,
      .order = order.mutable_data_ptr<int64_t>(),
      .seeds_stride = seeds.stride(0),
      .known_batch_stride = known ? known->stride(0) : 0,
      .known_position_stride = known ? known->stride(1) : 0,
  };
  for (int64_t image = 0; known && image < batch; ++image) {
    int64_t num_known = 0;
    for (int64_t position = 0; position < seq_len; ++position) {
      num_known += params.known[image * params.known_batch_stride +
                                position * params.known_position_stride] != 0;
    }
    check_group_sizes(group_sizes, seq_len, num_known);
  }
  const size_t bytes = cpu::group_order_workspace(params);
  torch::stable::parallel_for(0, batch, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    cpu::group_order(params, begin, end, workspace(bytes));
  });
  return order;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) { m.impl("group_order", TORCH_BOX(&group_order_cpu)); }

}  // namespace lpd::binding
