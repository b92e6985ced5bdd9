// The kernels of masked_attention; masked_attention.cu chooses.
#pragma once

#include <cstddef>

#include "lpd/masked_attention.h"

namespace lpd::cuda {

// In float32 arithmetic, any dtype.
namespace simple {

cudaError_t masked_attention(const MaskedAttentionParams& params, cudaStream_t stream);

}  // namespace simple

// On tensor cores, bfloat16 and float16.
namespace mma {

size_t masked_attention_workspace_size(const MaskedAttentionParams& params);
cudaError_t masked_attention(const MaskedAttentionParams& params,
                             std::byte* workspace,
                             cudaStream_t stream);

}  // namespace mma
}  // namespace lpd::cuda
