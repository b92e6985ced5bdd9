// Which kernel of group_attention runs.
#include "group_attention_kernels.h"

namespace lpd::cuda {
namespace {

bool use_tensor_cores(const GroupAttentionParams& params, Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kTensorCores && params.dtype != Dtype::kFloat32;
}

}  // namespace

size_t group_attention_workspace_size(const GroupAttentionParams& params, Arithmetic arithmetic) {
  return use_tensor_cores(params, arithmetic) ? mma::group_attention_workspace_size(params) : 0;
}

cudaError_t group_attention(const GroupAttentionParams& params,
                            Arithmetic arithmetic,
                            std::byte* workspace,
                            cudaStream_t stream) {
  if (use_tensor_cores(params, arithmetic)) {
    return mma::group_attention(params, workspace, stream);
  }
  return simple::group_attention(params, stream);
}

}  // namespace lpd::cuda
