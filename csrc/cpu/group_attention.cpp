// Which code of group_attention runs.
#include "lpd/group_attention.h"

#include <algorithm>

#include "lpd/cpu_variant.h"
#include "target.h"

namespace lpd::cpu {

#define LPD_DECLARE(variant)                                                 \
  namespace variant {                                                        \
  size_t group_attention_workspace_size(const GroupAttentionParams& params); \
  void group_attention(const GroupAttentionParams& params,                   \
                       int64_t begin,                                        \
                       int64_t end,                                          \
                       std::byte*);                                          \
  }
LPD_DECLARE(plain)
LPD_DECLARE(avx2)
LPD_DECLARE(avx512)
LPD_DECLARE(amx)
#undef LPD_DECLARE

// Enough for each of them: the variant may change before the kernel runs.
size_t group_attention_workspace_size(const GroupAttentionParams& params) {
  size_t size = plain::group_attention_workspace_size(params);
#if defined(LPD_X86)
  size = std::max({size, avx2::group_attention_workspace_size(params),
                   avx512::group_attention_workspace_size(params),
                   amx::group_attention_workspace_size(params)});
#endif
  return size;
}

namespace {

// Every image has the same lengths, some rows at least.
void run(const GroupAttentionParams& params, int64_t begin, int64_t end, std::byte* workspace) {
#if defined(LPD_X86)
  const Variant chosen = variant();
  // Tiles hold 16 rows; below that, filling them costs more than they save.
  constexpr int64_t kLeastRowsOfTiles = 8;
  if (chosen >= Variant::kAmx && params.dtype == Dtype::kBFloat16 &&
      params.q_len >= kLeastRowsOfTiles) {
    return amx::group_attention(params, begin, end, workspace);
  }
  if (chosen >= Variant::kAvx512) return avx512::group_attention(params, begin, end, workspace);
  if (chosen >= Variant::kAvx2) return avx2::group_attention(params, begin, end, workspace);
#endif
  plain::group_attention(params, begin, end, workspace);
}

size_t size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// What is not a number, in the bits of each type.
constexpr uint32_t kNan32 = 0x7fc00000;
constexpr uint16_t kNanBFloat16 = 0x7fc0, kNanFloat16 = 0x7e00;

// Gives the rows [first, q_len) of the heads [begin, end) of an image 0, or NaN.
void fill_rows(const GroupAttentionParams& params,
               std::byte* out,
               int64_t first,
               int64_t begin,
               int64_t end,
               bool with_nan) {
  const int64_t width = params.num_heads * params.head_dim;
  for (int64_t row = first; row < params.q_len; ++row) {
    const int64_t from = row * width + begin * params.head_dim;
    const int64_t count = (end - begin) * params.head_dim;
    if (params.dtype == Dtype::kFloat32) {
      std::fill_n(reinterpret_cast<uint32_t*>(out) + from, count, with_nan ? kNan32 : 0);
    } else {
      const uint16_t nan = params.dtype == Dtype::kBFloat16 ? kNanBFloat16 : kNanFloat16;
      std::fill_n(reinterpret_cast<uint16_t*>(out) + from, count, with_nan ? nan : 0);
    }
  }
}

// The heads [begin, end) of one image of the ragged form.
void run_image(const GroupAttentionParams& params,
               int64_t image,
               int64_t begin,
               int64_t end,
               std::byte* workspace) {
  const int64_t size = static_cast<int64_t>(size_of(params.dtype));
  const auto shifted = [&](const void* pointer, int64_t stride) {
    return static_cast<std::byte*>(const_cast<void*>(pointer)) + image * stride * size;
  };
  std::byte* out = shifted(params.out, params.q_len * params.num_heads * params.head_dim);
  const GroupLengths lengths = lengths_of(params, image);
  if (!fit(lengths, params)) return fill_rows(params, out, 0, begin, end, /*with_nan=*/true);
  fill_rows(params, out, lengths.q_len, begin, end, /*with_nan=*/false);
  if (lengths.q_len == 0) return;
  GroupAttentionParams alone = params;
  alone.batch = 1;
  alone.q_len = lengths.q_len;
  alone.cache_len = lengths.cache_len;
  alone.context_len = lengths.context_len;
  alone.qkv = shifted(params.qkv, params.qkv_batch_stride);
  alone.k_cache = shifted(params.k_cache, params.k_strides.batch);
  alone.v_cache = shifted(params.v_cache, params.v_strides.batch);
  alone.out = out;
  run(alone, begin, end, workspace);
}

}  // namespace

void group_attention(const GroupAttentionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace) {
  if (begin >= end || params.q_len == 0) return;
  if (params.q_lens == nullptr) return run(params, begin, end, workspace);
  while (begin < end) {
    const int64_t image = begin / params.num_heads, first = image * params.num_heads;
    const int64_t next = std::min(end, first + params.num_heads);
    run_image(params, image, begin - first, next - first, workspace);
    begin = next;
  }
}

}  // namespace lpd::cpu
