// token_selection on the CPU. A row passes three times over its vocabulary: guide (values and their
// maximum), weigh (temperature and integer masses), draw. Thresholds of top-k and top-p are found
// by radix selection on order-preserving keys, so exactly and without sorting.
#include "lpd/token_selection.h"

#include <algorithm>
#include <cstring>

#include "half.h"
#include "lpd/inline.h"
#include "lpd/specified_math.h"

// x86-64 proper has no fma instruction: the rows are compiled a second time for machines that do.
// The bits are those of the plain variant, whose fma is the C library's.
#if defined(__x86_64__) && defined(__GNUC__)
#define LPD_FMA_TARGET __attribute__((target("avx2,fma")))
#endif

namespace lpd::cpu {
namespace {

constexpr int kDigitBits = 11;
constexpr uint32_t kNumDigits = 1u << kDigitBits;

// Parts of the workspace of one row.
struct RowSpace {
  uint64_t* masses;     // [vocab_size], 0: not kept
  uint64_t* histogram;  // [kNumDigits]
  float* values;        // [vocab_size], guided, then also scaled
  uint32_t* members;    // [vocab_size], tokens still in question while selecting
};

RowSpace row_space(void* workspace, int64_t vocab_size) {
  RowSpace space;
  space.masses = static_cast<uint64_t*>(workspace);
  space.histogram = space.masses + vocab_size;
  space.values = reinterpret_cast<float*>(space.histogram + kNumDigits);
  space.members = reinterpret_cast<uint32_t*>(space.values + vocab_size);
  return space;
}

// Writes the guided logits and returns their maximum, NaN where the row holds NaN or +inf.
template <bool kGuided, class Logit>
LPD_INLINE float guide(const Logit* cond,
                       const Logit* uncond,
                       float cfg_scale,
                       int64_t vocab_size,
                       float* values) {
  uint32_t invalid = 0;
  uint32_t max_key = 0;  // a maximum over integers vectorises, one over floats does not
  for (int64_t token = 0; token < vocab_size; ++token) {
    float value = to_float(cond[token]);
    invalid |= !(value < kInfinity);
    if constexpr (kGuided) {
      const float other = to_float(uncond[token]);
      value = guided_logit(value, other, cfg_scale);
      invalid |= !(other < kInfinity) | !(value < kInfinity);
    }
    values[token] = value;
    max_key = std::max(max_key, ordered_key(value));
  }
  return invalid ? std::numeric_limits<float>::quiet_NaN() : value_of_key(max_key);
}

// Turns values into scaled values and their masses.
LPD_INLINE void weigh(float inverse_temperature,
                      float scaled_maximum,
                      int64_t vocab_size,
                      const RowSpace& space) {
  for (int64_t token = 0; token < vocab_size; ++token) {
    const float value = scaled_logit(space.values[token], inverse_temperature);
    space.values[token] = value;
    space.masses[token] = mass(value, scaled_maximum);
  }
}

// The lowest value of positive weight for which within(weight of all larger values) holds. within
// holds for 0 and, once false, stays false; at least one weight is positive.
template <class Weight, class Within>
LPD_INLINE float threshold(int64_t vocab_size,
                           const RowSpace& space,
                           const Weight& weight,
                           const Within& within) {
  constexpr int kShifts[] = {21, 10, 0};  // digits of 11, 11 and (overlapping by one bit) 11 bits
  uint32_t key = 0;
  uint64_t above = 0;  // weight of all values above those that share the digits of `key` so far
  int64_t num_members = vocab_size;
  for (int level = 0; level < 3; ++level) {
    const int shift = kShifts[level];
    const auto digit_of = [&](uint32_t token) {
      return ordered_key(space.values[token]) >> shift & (kNumDigits - 1);
    };
    std::memset(space.histogram, 0, kNumDigits * sizeof(uint64_t));
    for (int64_t i = 0; i < num_members; ++i) {
      const uint32_t token = level == 0 ? static_cast<uint32_t>(i) : space.members[i];
      space.histogram[digit_of(token)] += weight(token);
    }
    uint32_t chosen = 0;
    for (uint64_t digit = kNumDigits, sum = above; digit-- > 0 && within(sum);) {
      if (space.histogram[digit] == 0) continue;
      chosen = static_cast<uint32_t>(digit);
      above = sum;
      sum += space.histogram[digit];
    }
    key |= chosen << shift;
    int64_t num_left = 0;
    for (int64_t i = 0; i < num_members; ++i) {
      const uint32_t token = level == 0 ? static_cast<uint32_t>(i) : space.members[i];
      space.members[num_left] = token;
      num_left += digit_of(token) == chosen;
    }
    num_members = num_left;
  }
  return value_of_key(key);
}

// Drops what lies below the least value and returns the mass that is left.
LPD_INLINE uint64_t keep_from(float least, int64_t vocab_size, const RowSpace& space) {
  uint64_t total = 0;
  for (int64_t token = 0; token < vocab_size; ++token) {
    const uint64_t kept = space.values[token] >= least ? space.masses[token] : 0;
    space.masses[token] = kept;
    total += kept;
  }
  return total;
}

template <class Logit>
LPD_INLINE int64_t select_row(const TokenSelectionParams& params,
                              int64_t image,
                              int64_t query,
                              const RowSpace& space) {
  const int64_t vocab_size = params.vocab_size;
  const float temperature = params.temperature[image * params.temperature_stride];
  const int64_t top_k = params.top_k[image * params.top_k_stride];
  const float top_p = params.top_p[image * params.top_p_stride];
  const double uniform =
      params.uniform[image * params.uniform_batch_stride + query * params.uniform_group_stride];
  if (!(temperature >= 0.0f && temperature < kInfinity) || !(top_p >= 0.0f) ||
      !(uniform >= 0.0 && uniform < 1.0)) {
    return kNoToken;
  }

  const int64_t offset = image * params.logits_batch_stride + query * params.logits_group_stride;
  const Logit* cond = static_cast<const Logit*>(params.logits) + offset;
  float maximum;
  if (params.uncond_logits != nullptr) {
    const Logit* uncond = static_cast<const Logit*>(params.uncond_logits) + offset;
    const float cfg_scale = params.cfg_scale[image * params.cfg_scale_batch_stride +
                                             query * params.cfg_scale_group_stride];
    maximum = guide<true>(cond, uncond, cfg_scale, vocab_size, space.values);
  } else {
    maximum = guide<false>(cond, cond, 0.0f, vocab_size, space.values);
  }
  if (!(maximum > -kInfinity)) return kNoToken;

  const float inverse = inverse_temperature(temperature);
  const float scaled_maximum = scaled_logit(maximum, inverse);
  if (!(std::abs(scaled_maximum) < kInfinity)) {  // temperature 0, or so small as to overflow
    return std::find(space.values, space.values + vocab_size, maximum) - space.values;
  }
  weigh(inverse, scaled_maximum, vocab_size, space);
  float least = -kInfinity;
  if (top_k > 0 && top_k < vocab_size) {
    least = threshold(
        vocab_size, space, [](uint32_t) { return uint64_t{1}; },
        [&](uint64_t count_above) { return count_above < static_cast<uint64_t>(top_k); });
  }
  uint64_t total = keep_from(least, vocab_size, space);
  if (top_p < 1.0f) {
    const double limit = top_p_limit(top_p, total);
    least = threshold(
        vocab_size, space, [&](uint32_t token) { return space.masses[token]; },
        [&](uint64_t mass_above) { return within_top_p(mass_above, limit); });
    total = keep_from(least, vocab_size, space);
  }

  const uint64_t target = draw_target(uniform, total);
  int64_t token = 0;
  for (uint64_t sum = space.masses[0]; sum <= target;) sum += space.masses[++token];
  return token;
}

template <class Logit>
LPD_INLINE void select_rows(const TokenSelectionParams& params,
                            int64_t begin,
                            int64_t end,
                            const RowSpace& space) {
  for (int64_t row = begin; row < end; ++row) {
    params.ids[row] =
        select_row<Logit>(params, row / params.group_size, row % params.group_size, space);
  }
}

template <class Logit>
void select_rows_plain(const TokenSelectionParams& params,
                       int64_t begin,
                       int64_t end,
                       const RowSpace& space) {
  select_rows<Logit>(params, begin, end, space);
}

#if defined(LPD_FMA_TARGET)
template <class Logit>
LPD_FMA_TARGET void select_rows_fma(const TokenSelectionParams& params,
                                    int64_t begin,
                                    int64_t end,
                                    const RowSpace& space) {
  select_rows<Logit>(params, begin, end, space);
}
#endif

template <class Logit>
void dispatch_target(const TokenSelectionParams& params,
                     int64_t begin,
                     int64_t end,
                     const RowSpace& space) {
#if defined(LPD_FMA_TARGET)
  static const bool has_fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_fma) return select_rows_fma<Logit>(params, begin, end, space);
#endif
  select_rows_plain<Logit>(params, begin, end, space);
}

}  // namespace

size_t token_selection_workspace_size(int64_t vocab_size) {
  const size_t per_token = sizeof(uint64_t) + sizeof(float) + sizeof(uint32_t);
  return static_cast<size_t>(vocab_size) * per_token + kNumDigits * sizeof(uint64_t);
}

void token_selection(const TokenSelectionParams& params,
                     int64_t begin,
                     int64_t end,
                     void* workspace) {
  const RowSpace space = row_space(workspace, params.vocab_size);
  switch (params.dtype) {
    case Dtype::kFloat32:
      return dispatch_target<float>(params, begin, end, space);
    case Dtype::kBFloat16:
      return dispatch_target<BFloat16>(params, begin, end, space);
    case Dtype::kFloat16:
      return dispatch_target<Float16>(params, begin, end, space);
  }
}

}  // namespace lpd::cpu
