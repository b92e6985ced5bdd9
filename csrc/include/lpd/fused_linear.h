// fused_linear: a linear layer of few rows with what stands before and after it in a transformer
// block (the four of a block and the head of LPD, arXiv 2507.01957).
//   a    = x, or layer_norm(x) * norm_weight + norm_bias (AMX rounds it to bfloat16)
//   y    = a weight^T + bias, summed in float32
//   out  = y | gelu(y), exact with erf | out + y
// The weight is packed once into panels of 32 output features, zeros beyond the last:
//   float32   [panels, in_features, 32]
//   bfloat16  [panels, ceil(in_features / 32), 2, 16, 16, 2]
// A bfloat16 panel is a sequence of blocks of 32 input features, a block two tiles of 16 output
// features, and a tile [pair of inputs, output, input of the pair].
// Rows of x and out may lie in blocks of 32 features, [features / 32, batch, num_rows, 32]: what
// one call writes so, panel by panel, another reads in the order in which it multiplies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lpd/cpu_variant.h"
#include "lpd/dtype.h"

namespace lpd {

enum class Epilogue { kNone, kGelu, kAdd };

struct FusedLinearParams {
  int64_t batch;
  int64_t num_rows;     // of each sequence of the batch
  int64_t in_features;  // a multiple of 16
  int64_t out_features;
  float norm_eps;
  Epilogue epilogue;
  Dtype dtype;      // of the weight: kFloat32 or kBFloat16
  Dtype out_dtype;  // kFloat32 or kBFloat16

  const void* x;             // [batch, num_rows, in_features]: float32 with a norm, else dtype
  const void* weight;        // packed
  const float* bias;         // [panels * 32], zeros beyond out_features
  const float* norm_weight;  // [in_features] or null: no norm
  const float* norm_bias;    // [in_features]; read only with norm_weight
  void* out;                 // [batch, num_rows, out_features]

  int64_t x_batch_stride;
  int64_t x_row_stride;
  int64_t x_block_stride;  // from 32 features to the next 32: 32 in whole rows
  int64_t out_batch_stride;
  int64_t out_row_stride;
  int64_t out_block_stride;
};

constexpr int64_t kPanel = 32;  // output features of a panel of the weight, or of a block of out
constexpr int64_t kBlock = 32;  // input features that are multiplied at a time, or of a block of x

namespace cpu {

// Rows are worked on in blocks, one after the other: first prepared where they have to be, then
// multiplied. Both may be cut anywhere: a row's bits depend neither on the cut nor on other rows.
int64_t fused_linear_num_blocks(const FusedLinearParams& params);
int64_t fused_linear_num_rows(const FusedLinearParams& params, int64_t block);
int64_t fused_linear_num_panels(const FusedLinearParams& params);

// All of a call use one variant, which decides what lies in between.

// Bytes, aligned to 64, for the prepared rows of a block; 0: they are multiplied where they are.
size_t fused_linear_prepared_size(const FusedLinearParams& params, Variant variant);

// Bytes of workspace, aligned to 64, that one call of fused_linear needs.
size_t fused_linear_workspace_size(const FusedLinearParams& params, Variant variant);

// Prepares the rows [begin, end) of a block.
void fused_linear_prepare(const FusedLinearParams& params,
                          Variant variant,
                          int64_t block,
                          int64_t begin,
                          int64_t end,
                          std::byte* prepared);

// Multiplies a block, prepared whole (nullptr: not at all), by the panels [begin, end).
void fused_linear(const FusedLinearParams& params,
                  Variant variant,
                  int64_t block,
                  int64_t begin,
                  int64_t end,
                  const std::byte* prepared,
                  std::byte* workspace);

}  // namespace cpu
}  // namespace lpd
