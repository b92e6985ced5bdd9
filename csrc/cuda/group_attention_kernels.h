// The kernels of group_attention; group_attention.cu chooses.
#pragma once

#include <cstddef>

#include "lpd/group_attention.h"

namespace lpd::cuda {

// In float32 arithmetic, any dtype.
namespace simple {

cudaError_t group_attention(const GroupAttentionParams& params, cudaStream_t stream);

}  // namespace simple

// On tensor cores, bfloat16 and float16.
namespace mma {

size_t group_attention_workspace_size(const GroupAttentionParams& params);
cudaError_t group_attention(const GroupAttentionParams& params,
                            std::byte* workspace,
                            cudaStream_t stream);

}  // namespace mma
}  // namespace lpd::cuda
