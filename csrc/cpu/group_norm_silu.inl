// group_norm_silu, for the namespace and target of the including file.
//
// The partial sums of a chunk are, for each of its channels, the mean and the squares around it. In
// one pass over memory both are summed of what is left when the channel's first pixel is taken
// away: that pixel may be far off, but among n pixels it then is part of the squares itself, so
// that the difference of two sums cancels at most n times its rounding.
#include "vector_math.inl"
#include "with_dtype.inl"

// The chunks of an image, and where things lie.
struct Chunk {
  int64_t image, first, pixels;

  Chunk(const GroupNormSiluParams& params, int64_t nth)
      : image(nth / group_norm_silu_chunks(params)),
        first(nth % group_norm_silu_chunks(params) * pixels_of_chunk(params)),
        pixels(std::min(pixels_of_chunk(params), params.pixels - first)) {}

  int64_t offset(const GroupNormSiluParams& params) const {
    return (image * params.pixels + first) * params.channels;
  }
};

// The first `count` of kLanes elements, zeros behind them.
template <class T>
inline Vector load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T some[kLanes] = {};
  std::copy_n(from, count, some);
  return load(some);
}

// Of kCount neighbouring vectors of channels; the last one holds `count` channels, the others all.
template <int kCount, class T>
inline void channel_statistics(const T* x,
                               int64_t stride,
                               int64_t pixels,
                               int64_t count,
                               float* means,
                               float* squares) {
  const auto at = [&](int64_t pixel, int i) {
    const T* const from = x + pixel * stride + i * kLanes;
    return i + 1 < kCount ? load(from) : load_some(from, count);
  };
  Vector shift[kCount], sum[kCount], square[kCount];
  for (int i = 0; i < kCount; ++i) {
    shift[i] = at(0, i);
    sum[i] = square[i] = zero();
  }
  for (int64_t pixel = 1; pixel < pixels; ++pixel) {
    for (int i = 0; i < kCount; ++i) {
      const Vector shifted = subtract(at(pixel, i), shift[i]);
      sum[i] = add(sum[i], shifted);
      square[i] = multiply_add(shifted, shifted, square[i]);
    }
  }
  const Vector share = broadcast(1.0f / static_cast<float>(pixels));
  for (int i = 0; i < kCount; ++i) {
    const Vector mean = multiply(sum[i], share);
    store(means + i * kLanes, add(shift[i], mean));
    // NaN stays NaN.
    store(squares + i * kLanes, maximum(zero(), subtract(square[i], multiply(sum[i], mean))));
  }
}

template <class T>
inline void chunk_statistics(const T* x,
                             int64_t channels,
                             int64_t pixels,
                             float* means,
                             float* squares) {
  constexpr int kCount = kLanes == 16 ? 8 : 4;  // with its sums, what registers hold
  int64_t i = 0;
  for (; i + kCount * kLanes <= channels; i += kCount * kLanes) {
    channel_statistics<kCount>(x + i, channels, pixels, kLanes, means + i, squares + i);
  }
  for (; i < channels; i += kLanes) {
    channel_statistics<1>(x + i, channels, pixels, channels - i, means + i, squares + i);
  }
}

void statistics(const GroupNormSiluParams& params, int64_t begin, int64_t end, float* partials) {
  const int64_t padded = padded_channels(params);
  with_dtype(params.dtype, [&](auto element) {
    const auto* const x = static_cast<const decltype(element)*>(params.x);
    for (int64_t nth = begin; nth < end; ++nth) {
      const Chunk chunk(params, nth);
      float* const means = partials + nth * 2 * padded;
      chunk_statistics(x + chunk.offset(params), params.channels, chunk.pixels, means,
                       means + padded);
    }
  });
}

// What is done to each channel of an image: out = (x - mean) * scale + shift. Partial sums are
// merged around the mean of the first chunk, in the order of the chunks.
struct Affine {
  float* means;         // [padded channels]
  float* scales;        // likewise; at first the squares around the means
  const float* shifts;  // likewise

  void set(const GroupNormSiluParams& params, int64_t image, const float* partials) {
    const int64_t padded = padded_channels(params), chunks = group_norm_silu_chunks(params);
    const float* const first = partials + image * chunks * 2 * padded;
    const int64_t of_full = pixels_of_chunk(params);
    const float full = static_cast<float>(of_full);
    const float last = static_cast<float>(params.pixels - (chunks - 1) * of_full);
    for (int64_t i = 0; i < params.channels; i += kLanes) {
      const Vector around = load(first + i);
      Vector sum = zero(), square = zero();
      for (int64_t nth = 0; nth < chunks; ++nth) {
        const float* const chunk = first + nth * 2 * padded + i;
        const Vector off = subtract(load(chunk), around);
        const Vector part = multiply(off, broadcast(nth + 1 < chunks ? full : last));
        sum = add(sum, part);
        square = add(square, multiply_add(part, off, load(chunk + padded)));
      }
      const Vector mean = multiply(sum, broadcast(1.0f / static_cast<float>(params.pixels)));
      store(means + i, add(around, mean));
      store(scales + i, maximum(zero(), subtract(square, multiply(sum, mean))));
    }
    with_dtype(params.norm_dtype, [&](auto element) {
      scale(params, static_cast<const decltype(element)*>(params.norm_weight));
    });
  }

 private:
  // From mean and squares of each channel to those of its group.
  template <class T>
  void scale(const GroupNormSiluParams& params, const T* weight) {
    const int64_t size = params.channels / params.num_groups;
    for (int64_t first = 0; first < params.channels; first += size) {
      double mean = 0.0, square = 0.0;
      for (int64_t i = first; i < first + size; ++i) mean += means[i];
      mean /= static_cast<double>(size);
      for (int64_t i = first; i < first + size; ++i) {
        const double off = means[i] - mean;
        square += scales[i] + static_cast<double>(params.pixels) * off * off;
      }
      const double count = static_cast<double>(size) * static_cast<double>(params.pixels);
      const double inverse = 1.0 / std::sqrt(square / count + params.norm_eps);
      for (int64_t i = first; i < first + size; ++i) {
        means[i] = static_cast<float>(mean);
        scales[i] = static_cast<float>(inverse * to_float(weight[i]));
      }
    }
  }
};

// y / (1 + exp(-y)), for a result that becomes a T. Below -87 it is 0 but for 1e-36.
template <class T>
inline Vector silu(Vector y) {
  y = maximum(broadcast(-87.0f), y);  // NaN stays NaN
  const Vector x = multiply(y, broadcast(-1.44269504f)), one = broadcast(1.0f);
  if constexpr (std::is_same_v<T, BFloat16>) {
    return multiply(y, rough_reciprocal(add(rough_exp2_below_127(x), one)));
  } else {
    return multiply(y, reciprocal(add(exp2_below_127(x), one)));
  }
}

template <bool kSilu, class T>
inline void apply_to_chunk(const T* x,
                           int64_t channels,
                           int64_t pixels,
                           const Affine& affine,
                           T* out) {
  const auto result = [&](Vector value, int64_t i) {
    const Vector off = subtract(value, load(affine.means + i));
    const Vector y = multiply_add(off, load(affine.scales + i), load(affine.shifts + i));
    return kSilu ? silu<T>(y) : y;
  };
  for (int64_t pixel = 0; pixel < pixels; ++pixel, x += channels, out += channels) {
    int64_t i = 0;
    for (; i + kLanes <= channels; i += kLanes) store(out + i, result(load(x + i), i));
    if (i == channels) continue;
    T rest[kLanes] = {};  // a vector, beside the row
    std::copy(x + i, x + channels, rest);
    store(rest, result(load(rest), i));
    std::copy_n(rest, channels - i, out + i);
  }
}

void apply(const GroupNormSiluParams& params,
           int64_t begin,
           int64_t end,
           const float* partials,
           float* workspace) {
  const int64_t padded = padded_channels(params);
  float* const shifts = workspace + 2 * padded;
  with_dtype(params.norm_dtype, [&](auto element) {
    const auto* const bias = static_cast<const decltype(element)*>(params.norm_bias);
    for (int64_t i = 0; i < params.channels; ++i) shifts[i] = to_float(bias[i]);
  });
  Affine affine{workspace, workspace + padded, shifts};
  int64_t image = -1;
  with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t nth = begin; nth < end; ++nth) {
      const Chunk chunk(params, nth);
      if (chunk.image != image) affine.set(params, image = chunk.image, partials);
      const T* const x = static_cast<const T*>(params.x) + chunk.offset(params);
      T* const out = static_cast<T*>(params.out) + chunk.offset(params);
      if (params.silu) {
        apply_to_chunk<true>(x, params.channels, chunk.pixels, affine, out);
      } else {
        apply_to_chunk<false>(x, params.channels, chunk.pixels, affine, out);
      }
    }
  });
}
