// Which kernel of masked_attention runs.
#include "masked_attention_kernels.h"

namespace lpd::cuda {

size_t masked_attention_workspace_size(const MaskedAttentionParams& params, Arithmetic arithmetic) {
  return use_tensor_cores(arithmetic, params.dtype) ? mma::masked_attention_workspace_size(params)
                                                    : 0;
}

cudaError_t masked_attention(const MaskedAttentionParams& params,
                             Arithmetic arithmetic,
                             std::byte* workspace,
                             cudaStream_t stream) {
  if (use_tensor_cores(arithmetic, params.dtype)) {
    return mma::masked_attention(params, workspace, stream);
  }
  return simple::masked_attention(params, stream);
}

}  // namespace lpd::cuda
