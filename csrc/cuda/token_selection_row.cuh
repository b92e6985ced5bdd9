// A row as token_selection reads it, once into registers or anew in every pass: its guided logits,
// from `scale` on divided by the temperature.
//
// Each warp of a row has consecutive tokens, walked in chunks of 32 times 16 bytes: a warp's sum is
// that of a range of the vocabulary, and of its chunks the first ones come first.
#pragma once

#include <cstdint>
#include <type_traits>

#include "elements.cuh"
#include "lpd/specified_math.h"
#include "lpd/token_selection.h"
#include "primitives.cuh"

namespace lpd::cuda {

// Where a row's logits are.
template <class T>
struct RowLogits {
  const T* cond;
  const T* uncond;  // or null: no guidance
  float cfg_scale;
  int vocab_size;
  bool aligned;  // both, for loads of 16 bytes

  __device__ RowLogits(const TokenSelectionParams& params, int64_t image, int64_t query)
      : uncond(nullptr), cfg_scale(0.0f), vocab_size(static_cast<int>(params.vocab_size)) {
    const int64_t offset = image * params.logits_batch_stride + query * params.logits_group_stride;
    cond = static_cast<const T*>(params.logits) + offset;
    aligned = reinterpret_cast<uintptr_t>(cond) % 16 == 0;
    if (params.uncond_logits == nullptr) return;
    uncond = static_cast<const T*>(params.uncond_logits) + offset;
    cfg_scale = params.cfg_scale[image * params.cfg_scale_batch_stride +
                                 query * params.cfg_scale_group_stride];
    aligned = aligned && reinterpret_cast<uintptr_t>(uncond) % 16 == 0;
  }
};

// The largest of what a lane has read; NaN once a NaN was among it.
struct Largest {
  float given = -kInfinity;  // of both halves; with guidance only, else `guided` says it all
  float guided = -kInfinity;

  // Whether no logit was NaN or +inf, neither as given nor after guidance.
  __device__ bool valid() const { return given < kInfinity && guided < kInfinity; }
};

// The guided logits of the chunk that begins with `token`.
template <bool kGuided, class T, int kSize>
__device__ __forceinline__ void guide_chunk(const Chunk<T>& cond,
                                            const Chunk<T>& uncond,
                                            float cfg_scale,
                                            float (&values)[kSize],
                                            Largest& largest) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    float value = to_float(cond.elements[i]);
    if constexpr (kGuided) {
      const float other = to_float(uncond.elements[i]);
      largest.given = simt::max_or_nan(largest.given, value);
      largest.given = simt::max_or_nan(largest.given, other);
      value = guided_logit(value, other, cfg_scale);
    }
    largest.guided = simt::max_or_nan(largest.guided, value);
    values[i] = value;
  }
}

// Tokens from the vocabulary's end on are masked.
template <class T>
__device__ __forceinline__ Chunk<T> load_rest(const T* row, int token, int vocab_size) {
  Chunk<T> chunk;
#pragma unroll
  for (int i = 0; i < Chunk<T>::kSize; ++i) {
    chunk.elements[i] = token + i < vocab_size ? row[token + i] : from_float<T>(-kInfinity);
  }
  return chunk;
}

template <bool kGuided, bool kWhole, class T, int kSize>
__device__ __forceinline__ void read_chunk(const RowLogits<T>& logits,
                                           int token,
                                           float (&values)[kSize],
                                           Largest& largest) {
  const auto load = [&](const T* row) {
    if constexpr (kWhole) return load_chunk(row + token, true);
    if (token + kSize <= logits.vocab_size) return load_chunk(row + token, logits.aligned);
    return load_rest(row, token, logits.vocab_size);
  };
  const Chunk<T> cond = load(logits.cond);
  guide_chunk<kGuided>(cond, kGuided ? load(logits.uncond) : cond, logits.cfg_scale, values,
                       largest);
}

// Calls function(guided, whole), whose arguments are constants: branches outside of loops, so that
// the loads inside them are all in flight at once.
template <class T, class Function>
__device__ __forceinline__ void with_form(const RowLogits<T>& logits,
                                          bool whole,
                                          const Function& function) {
  const auto guided = [&](auto whole) {
    if (logits.uncond != nullptr) {
      function(std::true_type{}, whole);
    } else {
      function(std::false_type{}, whole);
    }
  };
  if (whole) {
    guided(std::true_type{});
  } else {
    guided(std::false_type{});
  }
}

// The tokens of a lane in chunks.
template <class T, int kWarps>
class LaneTokens {
 public:
  static constexpr int kSize = Chunk<T>::kSize;

  __device__ LaneTokens(int vocab_size, int chunks, int warp, int lane)
      : vocab_size_(vocab_size), warp_(warp * chunks * 32 * kSize), lane_(lane * kSize) {}

  __device__ int operator[](int chunk) const { return warp_ + chunk * 32 * kSize + lane_; }

  // The same answer in all lanes: whether the chunk's tokens are all of the vocabulary, or none is.
  __device__ bool whole(int chunk) const { return warp_ + (chunk + 1) * 32 * kSize <= vocab_size_; }
  __device__ bool none(int chunk) const { return warp_ + chunk * 32 * kSize >= vocab_size_; }

 private:
  int vocab_size_, warp_, lane_;
};

template <class T, int kWarps, int kChunks>
class RowInRegisters {
 public:
  static constexpr int kSize = Chunk<T>::kSize;

  __device__ RowInRegisters(const RowLogits<T>& logits, int warp, int lane)
      : tokens_(logits.vocab_size, kChunks, warp, lane) {
#pragma unroll
    for (int first = 0; first < kChunks; first += kInFlight) {
      const bool whole = logits.aligned && tokens_.whole(first + kInFlight - 1);
      with_form(logits, whole, [&](auto guided, auto whole) {
#pragma unroll
        for (int c = first; c < first + kInFlight; ++c) {
          read_chunk<guided, whole>(logits, tokens_[c], values_[c], largest_);
        }
      });
    }
  }

  __device__ const Largest& largest() const { return largest_; }

  __device__ void scale(float inverse_temperature) {
#pragma unroll
    for (auto& chunk : values_) {
#pragma unroll
      for (float& value : chunk) value = scaled_logit(value, inverse_temperature);
    }
  }

  // Calls function(first token, values) for each chunk of the lane.
  template <class Function>
  __device__ __forceinline__ void each_chunk(const Function& function) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (tokens_.none(c)) break;
#pragma unroll
      for (float& value : values_[c]) simt::renew(value);
      function(tokens_[c], values_[c]);
    }
  }

 private:
  // Chunks that are loaded at once: of a row of 32 warps no more have registers to arrive in.
  static constexpr int kInFlight = kWarps == 32 ? 4 : kChunks;

  LaneTokens<T, kWarps> tokens_;
  Largest largest_;
  float values_[kChunks][kSize];
};

template <class T, int kWarps>
class RowInMemory {
 public:
  static constexpr int kSize = Chunk<T>::kSize;

  __device__ RowInMemory(const RowLogits<T>& logits, int warp, int lane)
      : logits_(logits),
        chunks_((logits.vocab_size + kWarps * 32 * kSize - 1) / (kWarps * 32 * kSize)),
        tokens_(logits.vocab_size, chunks_, warp, lane) {
    read(largest_, [](int, const float (&)[kSize]) {});
  }

  __device__ const Largest& largest() const { return largest_; }

  __device__ void scale(float inverse_temperature) { inverse_temperature_ = inverse_temperature; }

  template <class Function>
  __device__ __forceinline__ void each_chunk(const Function& function) const {
    Largest ignored;
    read(ignored, [&](int token, float (&values)[kSize]) {
#pragma unroll
      for (float& value : values) value = scaled_logit(value, inverse_temperature_);
      function(token, values);
    });
  }

 private:
  template <class Function>
  __device__ __forceinline__ void read(Largest& largest, const Function& function) const {
    for (int c = 0; c < chunks_ && !tokens_.none(c); ++c) {
      float values[kSize];
      with_form(logits_, logits_.aligned && tokens_.whole(c), [&](auto guided, auto whole) {
        read_chunk<guided, whole>(logits_, tokens_[c], values, largest);
      });
      function(tokens_[c], values);
    }
  }

  RowLogits<T> logits_;
  int chunks_;
  LaneTokens<T, kWarps> tokens_;
  Largest largest_;
  float inverse_temperature_ = 1.0f;
};

}  // namespace lpd::cuda
