// Binding of group_order.
#include "lpd/group_order.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "checks.h"
#include "cuda_launch.h"
#include "library.h"
#include "workspace.h"

namespace lpd::binding {
namespace {

constexpr const char* kOp = "group_order";

// The number of positions in all groups, at most `seq_len`.
int64_t checked_sum(const std::vector<int64_t>& group_sizes, int64_t seq_len) {
  int64_t sum = 0;
  for (const int64_t size : group_sizes) {
    STD_TORCH_CHECK(
        size >= 1 && size <= seq_len - sum, kOp,
        ": argument `group_sizes`: sizes must be >= 1 and sum to the unknown positions");
    sum += size;
  }
  return sum;
}

// The groups fill what is not known of an image.
void check_fills(int64_t num_generated, int64_t num_known, int64_t seq_len) {
  STD_TORCH_CHECK(num_generated == seq_len - num_known, kOp,
                  ": argument `group_sizes`: must sum to the unknown positions of every image, ",
                  seq_len - num_known, ", got ", num_generated);
}

#if !defined(SIMT_EMULATE)

struct OnCpu {
  static constexpr int64_t kMostCells = std::numeric_limits<int32_t>::max();

  static void check(const Tensor& tensor, const Tensor&, const char* argument) {
    check_cpu(tensor, kOp, argument);
  }

  static void check_known(const GroupOrderParams& params, int64_t num_generated) {
    const int64_t seq_len = params.height * params.width;
    for (int64_t image = 0; image < params.batch; ++image) {
      int64_t num_known = 0;
      for (int64_t position = 0; position < seq_len; ++position) {
        num_known += params.known[image * params.known_batch_stride +
                                  position * params.known_position_stride] != 0;
      }
      check_fills(num_generated, num_known, seq_len);
    }
  }

  static void run(const GroupOrderParams& params, const Tensor&, const Tensor*, const Tensor&) {
    const size_t bytes = cpu::group_order_workspace(params);
    torch::stable::parallel_for(0, params.batch, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
      cpu::group_order(params, begin, end, workspace(bytes));
    });
  }
};

#endif
#if defined(LPD_CUDA)

struct OnCuda {
  static constexpr int64_t kMostCells = cuda::kMostOrderCells;

  static void check(const Tensor& tensor, const Tensor& first, const char* argument) {
    check_cuda(tensor, first, kOp, argument);
  }

  // The kernel looks for itself: nobody waits for the device here.
  static void check_known(const GroupOrderParams&, int64_t) {}

  static void run(const GroupOrderParams& params,
                  const Tensor& seeds,
                  const Tensor* known,
                  const Tensor& order) {
    CudaLaunch launch(seeds);
    launch.reads(seeds, "seeds");
    if (known != nullptr) launch.reads(*known, "known");
    launch.writes(order, "order");
    check_launch(cuda::group_order(params, launch.stream()), kOp);
  }
};

#endif

template <class Device>
Tensor group_order(Tensor seeds,
                   std::vector<int64_t> grid,
                   std::vector<int64_t> group_sizes,
                   double proximity_threshold,
                   int64_t repulsion_threshold,
                   std::optional<Tensor> known) {
  STD_TORCH_CHECK(
      grid.size() == 2 && grid[0] >= 1 && grid[1] >= 1 && grid[0] <= Device::kMostCells / grid[1],
      kOp, ": argument `grid`: expected height, width >= 1 and at most ", Device::kMostCells,
      " cells");
  const int64_t batch = seeds.numel();
  const int64_t seq_len = grid[0] * grid[1];
  Device::check(seeds, seeds, "seeds");
  check_shape(seeds, {-1}, kOp, "seeds");
  check_dtype(seeds, ScalarType::Long, kOp, "seeds");
  const int64_t num_generated = checked_sum(group_sizes, seq_len);
  if (known) {
    Device::check(*known, seeds, "known");
    check_shape(*known, {batch, seq_len}, kOp, "known");
    check_dtype(*known, ScalarType::Bool, kOp, "known");
  } else {
    check_fills(num_generated, 0, seq_len);
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
  if (known) Device::check_known(params, num_generated);
  Device::run(params, seeds, known ? &*known : nullptr, order);
  return order;
}

}  // namespace

#if !defined(SIMT_EMULATE)
STABLE_TORCH_LIBRARY_IMPL(lpd_ext, CPU, m) {
  m.impl("group_order", TORCH_BOX(&group_order<OnCpu>));
}
#endif
#if defined(LPD_CUDA)
LPD_TORCH_LIBRARY_IMPL(LPD_LIBRARY, LPD_CUDA_KEY, m) {
  m.impl("group_order", TORCH_BOX(&group_order<OnCuda>));
}
#endif

}  // namespace lpd::binding
