// Which kernel of group_attention runs.
#include "group_attention_kernels.h"

namespace lpd::cuda {

size_t group_attention_workspace_size(const GroupAttentionParams& params, Arithmetic arithmetic) {
  return use_tensor_cores(arithmetic, params.dtype) ? mma::group_attention_workspace_size(params)
                                                    : 0;
}

cudaError_t group_attention(const GroupAttentionParams& params,
                            Arithmetic arithmetic,
                            std::byte* workspace,
                            cudaStream_t stream) {
  if (use_tensor_cores(arithmetic, params.dtype)) {
    return mma::group_attention(params, workspace, stream);
  }
  return simple::group_attention(params, stream);
}

}  // namespace lpd::cuda
