// Which kernel of masked_attention runs.
#include "masked_attention_kernels.h"

namespace lpd::cuda {
namespace {

bool use_tensor_cores(const MaskedAttentionParams& params, Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kTensorCores && params.dtype != Dtype::kFloat32;
}

}  // namespace

size_t masked_attention_workspace_size(const MaskedAttentionParams& params, Arithmetic arithmetic) {
  return use_tensor_cores(params, arithmetic) ? mma::masked_attention_workspace_size(params) : 0;
}

cudaError_t masked_attention(const MaskedAttentionParams& params,
                             Arithmetic arithmetic,
                             std::byte* workspace,
                             cudaStream_t stream) {
  if (use_tensor_cores(params, arithmetic)) {
    return mma::masked_attention(params, workspace, stream);
  }
  return simple::masked_attention(params, stream);
}

}  // namespace lpd::cuda
