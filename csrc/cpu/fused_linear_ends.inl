// Prologue and epilogue of fused_linear, for the namespace and target of the including file.

// Writes a row as the product takes it: normalised or copied, padded with zeros to whole blocks,
// which lie block_stride apart.
template <class Source, class Prepared>
inline void prepare_row(const FusedLinearParams& params,
                        const Source* x,
                        Prepared* prepared,
                        int64_t block_stride) {
  const int64_t n = params.in_features;
  const auto from = [&](int64_t i) { return x + i / kBlock * params.x_block_stride + i % kBlock; };
  const auto load_at = [&](int64_t i) { return load(from(i)); };
  const auto store_at = [&](int64_t i, Vector y) {
    store(prepared + i / kBlock * block_stride + i % kBlock, y);
  };
  if (params.norm_weight != nullptr) {
    layer_norm(n, params.norm_weight, params.norm_bias, params.norm_eps, load_at, store_at);
  } else if constexpr (std::is_same_v<Source, Prepared>) {
    for (int64_t i = 0; i < n; i += kBlock) {
      std::copy_n(from(i), std::min(kBlock, n - i), prepared + i / kBlock * block_stride);
    }
  } else {
    for (int64_t i = 0; i < n; i += kLanes) store_at(i, load_at(i));
  }
  for (int64_t i = n; i < num_blocks(params) * kBlock; i += kLanes) store_at(i, zero());
}

template <class Source, class Prepared>
inline void prepare_rows(const FusedLinearParams& params,
                         int64_t block,
                         int64_t begin,
                         int64_t end,
                         std::byte* prepared) {
  const Source* x = static_cast<const Source*>(params.x);
  Prepared* rows = reinterpret_cast<Prepared*>(prepared);
  const int64_t block_stride = fused_linear_num_rows(params, block) * kBlock;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = block * kRowBlock + i;
    prepare_row(params, x + row_offset(params, row, params.x_batch_stride, params.x_row_stride),
                rows + i * kBlock, block_stride);
  }
}

// Narrow rows stay so or are widened, according to what the variant multiplies.
template <class Prepared>
inline void prepare(const FusedLinearParams& params,
                    int64_t block,
                    int64_t begin,
                    int64_t end,
                    std::byte* prepared) {
  if (params.norm_weight != nullptr || params.dtype == Dtype::kFloat32) {
    prepare_rows<float, Prepared>(params, block, begin, end, prepared);
  } else {
    prepare_rows<BFloat16, Prepared>(params, block, begin, end, prepared);
  }
}

// Turns the sums of a row and a panel into its output; `out` is where the row's output begins.
template <Epilogue epilogue, class Out>
inline void finish_row_as(const FusedLinearParams& params,
                          std::byte* out,
                          int64_t panel,
                          const float* sums) {
  const int64_t first = panel * kPanel;
  const int64_t count = std::min(kPanel, params.out_features - first);
  Out* const begin = reinterpret_cast<Out*>(out) + panel * params.out_block_stride;
  Out* to = begin;
  Out padded[kPanel];
  if (count < kPanel) {  // the last panel: finish a full one beside the output
    std::fill_n(padded, kPanel, Out{});
    if (epilogue == Epilogue::kAdd) std::copy_n(to, count, padded);
    to = padded;
  }
  for (int64_t i = 0; i < kPanel; i += kLanes) {
    Vector y = add(load(sums + i), load(params.bias + first + i));
    if constexpr (epilogue == Epilogue::kGelu) y = gelu(y);
    if constexpr (epilogue == Epilogue::kAdd) y = add(load(to + i), y);
    store(to + i, y);
  }
  if (to == padded) std::copy_n(padded, count, begin);
}

using FinishRow = void (*)(const FusedLinearParams&, std::byte*, int64_t, const float*);

template <class Out>
inline FinishRow finish_row_in(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::kNone:
      return finish_row_as<Epilogue::kNone, Out>;
    case Epilogue::kGelu:
      return finish_row_as<Epilogue::kGelu, Out>;
    case Epilogue::kAdd:
      return finish_row_as<Epilogue::kAdd, Out>;
  }
  __builtin_unreachable();
}

inline FinishRow finish_row_for(const FusedLinearParams& params) {
  return params.out_dtype == Dtype::kFloat32 ? finish_row_in<float>(params.epilogue)
                                             : finish_row_in<BFloat16>(params.epilogue);
}
