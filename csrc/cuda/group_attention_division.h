// How group_attention on tensor cores divides a pair: its rows and its keys, and both over blocks.
#pragma once

#include "attention_division.h"
#include "lpd/group_attention.h"

namespace lpd::cuda::mma {

constexpr int kPartTiles = 6;

// Of one pair: groups of rows and tiles of keys, those of the context first.
struct Division {
  int context_groups;
  int num_groups;
  int context_tiles;
  int num_tiles;
  int num_parts;
};

LPD_INLINE Division divide(const GroupLengths& lengths) {
  const int64_t queries = lengths.q_len - lengths.context_len;
  Division division;
  division.context_groups = ceil_div(lengths.context_len, kGroupRows);
  division.num_groups = division.context_groups + ceil_div(queries, kGroupRows);
  division.context_tiles = ceil_div(lengths.cache_len + lengths.context_len, kTileKeys);
  division.num_tiles = division.context_tiles + ceil_div(queries, kTileKeys);
  division.num_parts = ceil_div(division.num_tiles, kPartTiles);
  return division;
}

// What holds for all images of a call: none of them has more.
struct Bounds {
  int num_groups;
  int num_parts;
};

inline Bounds bounds_of(const GroupAttentionParams& params) {
  if (params.q_lens == nullptr) {
    const Division division = divide(lengths_of(params, 0));
    return {.num_groups = division.num_groups, .num_parts = division.num_parts};
  }
  const int tiles = ceil_div(params.max_kv_len, kTileKeys) + ceil_div(params.q_len, kTileKeys);
  return {.num_groups = ceil_div(params.q_len, kGroupRows) + 1,  // one more where both kinds begin
          .num_parts = ceil_div(tiles, kPartTiles)};
}

// A row's bits depend neither on which groups share a block nor on who walks the parts. So where
// pairs are few, groups and parts go to blocks of their own, though keys are then read several
// times and parts written; where they are many, a block reads the keys once for all of its pair.
constexpr int64_t kFewBlocks = 264;  // two on each multiprocessor of an H100

inline bool is_split(const GroupAttentionParams& params, const Bounds& bounds) {
  const int64_t pairs = params.batch * params.num_heads;
  return bounds.num_parts > 1 && pairs * bounds.num_groups < kFewBlocks;
}

inline int groups_of_block(const GroupAttentionParams& params, const Bounds& bounds) {
  const int64_t pairs = params.batch * params.num_heads;
  for (const int groups : {1, 2}) {
    if (pairs * ceil_div(bounds.num_groups, groups) <= groups * kFewBlocks) return groups;
  }
  return bounds.num_groups > 2 ? 4 : 2;
}

}  // namespace lpd::cuda::mma
