// token_selection over the vectors of the including file's namespace and for its target.
//
// A row is guided once, into values and the maxima of its tiles, lane by lane. Without filters, one
// more pass sums up masses a tile; the draw finds its tile and weighs that again. With filters, a
// cheap lower bound of the threshold leaves a list of few tokens, and exact radix selections on
// order-preserving keys finish on that. The bounds change the work, never the result.

namespace {

constexpr int64_t kTile = kTileVectors * kLanes;

// The `count` logits behind a row's last whole vector, filled up.
template <class Logit>
inline Vector load_rest(const Logit* from, int64_t count, float fill) {
  Logit padded[kLanes];
  for (int i = 0; i < kLanes; ++i) padded[i] = i < count ? from[i] : from_float<Logit>(fill);
  return load(padded);
}

// Writes the guided logits and the maxima of their tiles, and returns the maximum of all, NaN where
// the row holds NaN or +inf.
template <bool kGuided, class Logit>
inline float guide(const Logit* cond,
                   const Logit* uncond,
                   float cfg_scale,
                   int64_t vocab_size,
                   const RowSpace& space) {
  const Vector infinity = broadcast(kInfinity), scale = broadcast(cfg_scale);
  Mask valid = less(zero(), infinity);
  Vector of_row = broadcast(-kInfinity);
  for (int64_t begin = 0; begin < vocab_size; begin += kTile) {
    const int64_t end = std::min(begin + kTile, vocab_size);
    Vector of_tile = broadcast(-kInfinity);
    const auto guide_vector = [&](int64_t token, Vector value, Vector other) {
      if constexpr (kGuided) {
        // A NaN in `value` shows after guidance, one in `other` not where `value` masks it: of a
        // NaN and a number, maximum returns the second.
        valid = both(valid, less(maximum(value, other), infinity));
        value = guided(value, other, scale);
      }
      valid = both(valid, less(value, infinity));
      store(space.values + token, value);
      of_tile = maximum(of_tile, value);
    };
    int64_t token = begin;
    for (; token + kLanes <= end; token += kLanes) {
      guide_vector(token, load(cond + token), kGuided ? load(uncond + token) : zero());
    }
    if (token < end) {
      guide_vector(token, load_rest(cond + token, end - token, -kInfinity),
                   kGuided ? load_rest(uncond + token, end - token, 0.0f) : zero());
    }
    store(space.maxima + begin / kTileVectors, of_tile);
    of_row = maximum(of_row, of_tile);
  }
  return all(valid) ? largest(of_row) : std::numeric_limits<float>::quiet_NaN();
}

inline int64_t num_maxima(int64_t vocab_size) { return (vocab_size + kTile - 1) / kTile * kLanes; }

// The first token of the value that is the row's maximum.
inline int64_t first_of_maximum(float row_maximum, int64_t vocab_size, const RowSpace& space) {
  const float* in_maxima =
      std::find(space.maxima, space.maxima + num_maxima(vocab_size), row_maximum);
  const float* tile = space.values + (in_maxima - space.maxima) / kLanes * kTile;
  return std::find(tile, tile + kTile, row_maximum) - space.values;
}

// What turns guided values into scaled ones and into masses.
struct Scale {
  Vector inverse_temperature;
  Vector row_maximum;  // scaled
};

// The mass of every tile, and of the row.
inline uint64_t weigh_tiles(const Scale& scale, int64_t vocab_size, const RowSpace& space) {
  uint64_t of_row = 0;
  for (int64_t begin = 0; begin < vocab_size; begin += kTile) {
    const int64_t end = std::min(begin + kTile, vocab_size);
    Masses of_tile = no_masses();
    for (int64_t token = begin; token < end; token += kLanes) {
      const Vector value = scaled(load(space.values + token), scale.inverse_temperature);
      of_tile = add_masses(of_tile, masses_of(value, scale.row_maximum));
    }
    space.tile_masses[begin / kTile] = sum_masses(of_tile);
    of_row += space.tile_masses[begin / kTile];
  }
  return of_row;
}

// The first index at which the cumulative mass, `sum` to begin with, exceeds the target.
inline int64_t draw(const uint64_t* masses, uint64_t target, uint64_t& sum) {
  int64_t index = 0;
  for (; sum + masses[index] <= target; ++index) sum += masses[index];
  return index;
}

inline int64_t draw_by_tiles(const Scale& scale,
                             uint64_t target,
                             int64_t vocab_size,
                             const RowSpace& space) {
  uint64_t sum = 0;
  const int64_t begin = draw(space.tile_masses, target, sum) * kTile;
  const int64_t end = std::min(begin + kTile, vocab_size);
  for (int64_t token = begin; token < end; token += kLanes) {
    const Vector value = scaled(load(space.values + token), scale.inverse_temperature);
    store_masses(space.masses + token - begin, masses_of(value, scale.row_maximum));
  }
  return begin + draw(space.masses, target, sum);
}

// Lists the tokens whose scaled value is at least `least`, in the order of the vocabulary, with
// their masses. Returns how many.
inline int64_t list_tokens(const Scale& scale,
                           float least,
                           int64_t vocab_size,
                           const RowSpace& space) {
  float first_ids[kLanes];
  for (int i = 0; i < kLanes; ++i) first_ids[i] = static_cast<float>(i);
  Vector ids = load(first_ids);
  const Vector step = broadcast(static_cast<float>(kLanes)), bound = broadcast(least);
  int64_t count = 0;
  for (int64_t token = 0; token < vocab_size; token += kLanes) {
    const Vector value = scaled(load(space.values + token), scale.inverse_temperature);
    const Mask listed = at_least(value, bound);
    store_where(space.listed_ids + count, listed, ids);
    count += store_where(space.listed_values + count, listed, value);
    ids = add(ids, step);
  }
  // The rest of the last vector is weighed too, then ignored: let it be defined.
  store(space.listed_values + count, broadcast(-kInfinity));
  for (int64_t i = 0; i < count; i += kLanes) {
    store_masses(space.masses + i, masses_of(load(space.listed_values + i), scale.row_maximum));
  }
  return count;
}

// The lowest value of positive weight for which within(weight of all larger values) holds. within
// holds for 0, fails for the weight of all values and, once it fails, goes on failing.
template <class Weight, class Within>
inline float threshold(const float* values,
                       int64_t count,
                       const RowSpace& space,
                       const Weight& weight,
                       const Within& within) {
  uint32_t low = ~0u, high = 0;  // the keys still in question
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = ordered_key(values[i]);
    space.keys[i] = key;
    space.members[i] = static_cast<uint32_t>(i);
    low = std::min(low, key);
    high = std::max(high, key);
  }
  uint64_t above = 0;
  for (;;) {
    // A few members a bucket: more buckets would take longer to clear and to walk through.
    const int digit_bits =
        std::clamp<int>(std::bit_width(static_cast<uint64_t>(count)) - 2, 4, kDigitBits);
    const int shift = std::max<int>(std::bit_width(high - low) - digit_bits, 0);
    const auto digit_of = [&](uint32_t member) { return (space.keys[member] - low) >> shift; };
    uint32_t digit = (high - low) >> shift;
    std::memset(space.histogram, 0, (digit + 1) * sizeof(uint64_t));
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t member = space.members[i];
      space.histogram[digit_of(member)] += weight(member);
    }
    for (; within(above + space.histogram[digit]); --digit) above += space.histogram[digit];
    if (shift == 0) return value_of_key(low + digit);

    int64_t num_left = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t member = space.members[i];
      space.members[num_left] = member;
      num_left += digit_of(member) == digit;
    }
    count = num_left;
    low += digit << shift;
    high = low + std::min(high - low, (1u << shift) - 1);
  }
}

// The top_k-th largest of more values than that, equal ones counted each.
inline float kth_largest(const float* values, int64_t count, int64_t top_k, const RowSpace& space) {
  return threshold(
      values, count, space, [](uint32_t) { return uint64_t{1}; },
      [&](uint64_t count_above) { return count_above < static_cast<uint64_t>(top_k); });
}

// Takes the mass from listed tokens below `least` and returns the mass of all others.
inline uint64_t keep_from(float least, int64_t count, const RowSpace& space) {
  uint64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t kept = space.listed_values[i] >= least ? space.masses[i] : 0;
    space.masses[i] = kept;
    total += kept;
  }
  return total;
}

// A difference from the maximum such that the tokens below it hold, all together, less mass than
// top-p may drop: the threshold lies above.
inline float top_p_bound(double limit, uint64_t total, int64_t vocab_size) {
  const double droppable = (static_cast<double>(total) - limit) / static_cast<double>(vocab_size);
  if (droppable < 1024.0) return kNegligible;
  // The hundredth is for all roundings, those of masses to integers included.
  return static_cast<float>(std::log(0.99 * droppable) - kMassBits * 0.6931471805599453);
}

template <class Logit>
inline int64_t select_row(const TokenSelectionParams& params,
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
  float row_maximum;
  if (params.uncond_logits != nullptr) {
    const Logit* uncond = static_cast<const Logit*>(params.uncond_logits) + offset;
    const float cfg_scale = params.cfg_scale[image * params.cfg_scale_batch_stride +
                                             query * params.cfg_scale_group_stride];
    row_maximum = guide<true>(cond, uncond, cfg_scale, vocab_size, space);
  } else {
    row_maximum = guide<false>(cond, cond, 0.0f, vocab_size, space);
  }
  if (!(row_maximum > -kInfinity)) return kNoToken;

  const float inverse = inverse_temperature(temperature);
  const float scaled_maximum = scaled_logit(row_maximum, inverse);
  if (!(std::abs(scaled_maximum) < kInfinity)) {  // temperature 0, or so small as to overflow
    return first_of_maximum(row_maximum, vocab_size, space);
  }
  const Scale scale{broadcast(inverse), broadcast(scaled_maximum)};
  const bool has_top_k = top_k > 0 && top_k < vocab_size;
  const bool has_top_p = top_p < 1.0f;
  if (!has_top_k && !has_top_p) {
    const uint64_t total = weigh_tiles(scale, vocab_size, space);
    return draw_by_tiles(scale, draw_target(uniform, total), vocab_size, space);
  }

  // A difference below a bound, exactly, is also below it rounded; the masses there are 0.
  float bound = scaled_maximum + kNegligible;
  int64_t count;
  uint64_t total;
  if (has_top_k) {
    // The k-th largest of some of the values is no larger than that of all.
    if (top_k < num_maxima(vocab_size)) {
      const float kth = kth_largest(space.maxima, num_maxima(vocab_size), top_k, space);
      bound = std::max(bound, scaled_logit(kth, inverse));
    }
    count = list_tokens(scale, bound, vocab_size, space);
    const bool drops = count > top_k;
    total = keep_from(drops ? kth_largest(space.listed_values, count, top_k, space) : bound, count,
                      space);
  } else {
    total = weigh_tiles(scale, vocab_size, space);
    const double limit = top_p_limit(top_p, total);
    bound = scaled_maximum + top_p_bound(limit, total, vocab_size);
    count = list_tokens(scale, bound, vocab_size, space);
  }
  if (has_top_p) {
    const double limit = top_p_limit(top_p, total);
    const float least = threshold(
        space.listed_values, count, space, [&](uint32_t i) { return space.masses[i]; },
        [&](uint64_t mass_above) { return within_top_p(mass_above, limit); });
    total = keep_from(least, count, space);
  }
  uint64_t sum = 0;
  return static_cast<int64_t>(
      space.listed_ids[draw(space.masses, draw_target(uniform, total), sum)]);
}

template <class Logit>
inline void select_rows(const TokenSelectionParams& params,
                        int64_t begin,
                        int64_t end,
                        const RowSpace& space) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / params.group_size, query = row % params.group_size;
    int64_t place = query;
    if (params.positions != nullptr) {
      place = params.positions[image * params.positions_batch_stride +
                               query * params.positions_group_stride];
    }
    params.ids[image * params.ids_batch_stride + place * params.ids_stride] =
        select_row<Logit>(params, image, query, space);
  }
}

}  // namespace

void token_selection(const TokenSelectionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace) {
  const RowSpace space = row_space(workspace, params.vocab_size);
  switch (params.dtype) {
    case Dtype::kFloat32:
      return select_rows<float>(params, begin, end, space);
    case Dtype::kBFloat16:
      return select_rows<BFloat16>(params, begin, end, space);
    case Dtype::kFloat16:
      return select_rows<Float16>(params, begin, end, space);
  }
}
