// One (image, head) of the tensors of group_attention, in the namespace and for the target of the
// including file, behind attention_block.inl. Keys come in two runs, and which rows see a run is
// the whole mask.

namespace {

// Keys that the rows [first_row, q_len) see, all of them.
template <class T>
struct SeenRun : KeyRun<T> {
  int64_t first_row;
};

template <class T>
struct Pair {
  const T* q;
  const T* k;
  const T* v;
  int64_t row_stride;  // of q, k and v
  int64_t num_rows;
  T* k_slots;  // of the caches, for the context rows
  T* v_slots;
  SeenRun<T> runs[2];  // the cache with the context rows, then the queries of this step
  T* out;
  int64_t out_stride;
};

// How often a row is shown a block of keys.
template <class T>
inline int64_t slots_of(const Pair<T>& pair, int64_t block) {
  int64_t count = 0;
  for (const SeenRun<T>& run : pair.runs) {
    count += (run.count + block - 1) / block * (pair.num_rows - run.first_row);
  }
  return count;
}

// Asks for the rows of a pair, some at a time, while another is computed. Those of the caches are
// taken from several places in turn: the prefetcher of the hardware runs ahead in each.
template <class T>
class Ahead {
 public:
  Ahead(const Pair<T>& pair, int64_t head_dim, int64_t slots)
      : pair_(pair),
        head_dim_(head_dim),
        new_rows_(3 * pair.num_rows),
        rows_(new_rows_ + 2 * pair.runs[0].count),
        per_slot_(rows_ / slots + 1),
        streams_(std::clamp<int64_t>(pair.runs[0].count / kStreamRows, 1, kStreams)) {}

  void slot() {
    const int64_t until = std::min(rows_, next_ + per_slot_);
    for (; next_ < until; ++next_) {
      const T* from = row(next_);
      for (int64_t d = 0; d < head_dim_; d += kLine) __builtin_prefetch(from + d, 0, 2);
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);
  static constexpr int64_t kStreams = 8;      // in each cache, at most
  static constexpr int64_t kStreamRows = 32;  // fewer are not worth another place

  const T* row(int64_t i) const {
    const KeyRun<T>& cache = pair_.runs[0];
    if (i >= new_rows_) {
      const int64_t j = i - new_rows_, stream = j / 2 % streams_, step = j / 2 / streams_;
      const int64_t length = (cache.count + streams_ - 1) / streams_;
      const int64_t at = std::min(stream * length + step, cache.count - 1);
      return j % 2 ? cache.v + at * cache.v_stride : cache.k + at * cache.k_stride;
    }
    const T* first = i % 3 == 0 ? pair_.q : i % 3 == 1 ? pair_.k : pair_.v;
    return first + i / 3 * pair_.row_stride;
  }

  const Pair<T>& pair_;
  int64_t head_dim_;
  int64_t new_rows_;
  int64_t rows_;
  int64_t per_slot_;
  int64_t streams_;
  int64_t next_ = 0;
};

template <class T>
inline Pair<T> find_pair(const GroupAttentionParams& params, int64_t number) {
  const int64_t image = number / params.num_heads, head = number % params.num_heads;
  const int64_t head_dim = params.head_dim, row_stride = params.qkv_row_stride;
  const T* q =
      static_cast<const T*>(params.qkv) + image * params.qkv_batch_stride + head * head_dim;
  const T* k = q + params.num_heads * head_dim;
  const T* v = k + params.num_heads * head_dim;
  T* k_cache = static_cast<T*>(params.k_cache) + image * params.k_strides.batch +
               head * params.k_strides.head;
  T* v_cache = static_cast<T*>(params.v_cache) + image * params.v_strides.batch +
               head * params.v_strides.head;
  return {
      .q = q,
      .k = k,
      .v = v,
      .row_stride = row_stride,
      .num_rows = params.q_len,
      .k_slots = k_cache + params.cache_len * params.k_strides.row,
      .v_slots = v_cache + params.cache_len * params.v_strides.row,
      .runs = {{{.k = k_cache,
                 .v = v_cache,
                 .k_stride = params.k_strides.row,
                 .v_stride = params.v_strides.row,
                 .count = params.cache_len + params.context_len},
                /*first_row=*/0},
               {{.k = k + params.context_len * row_stride,
                 .v = v + params.context_len * row_stride,
                 .k_stride = row_stride,
                 .v_stride = row_stride,
                 .count = params.q_len - params.context_len},
                /*first_row=*/params.context_len}},
      .out =
          static_cast<T*>(params.out) + (image * params.q_len * params.num_heads + head) * head_dim,
      .out_stride = params.num_heads * head_dim,
  };
}

// A row, in pieces of a size that the compiler knows: head_dim is a multiple of it.
template <class T>
inline void copy_row(const T* from, int64_t head_dim, T* to) {
  constexpr int64_t kPiece = 16;
  for (int64_t d = 0; d < head_dim; d += kPiece) std::memcpy(to + d, from + d, kPiece * sizeof(T));
}

// Appends the context rows to the caches.
template <class T>
inline void append(const GroupAttentionParams& params, const Pair<T>& pair) {
  for (int64_t i = 0; i < params.context_len; ++i) {
    copy_row(pair.k + i * pair.row_stride, params.head_dim,
             pair.k_slots + i * params.k_strides.row);
    copy_row(pair.v + i * pair.row_stride, params.head_dim,
             pair.v_slots + i * params.v_strides.row);
  }
}

}  // namespace
