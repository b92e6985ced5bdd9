// What every attention kernel here is made of: keys in runs, a workspace, the bounds of a softmax.
// Included in the namespace and for the target of the including file.

namespace {

// Keys and values of one stride.
template <class T>
struct KeyRun {
  const T* k;
  const T* v;
  int64_t k_stride;
  int64_t v_stride;
  int64_t count;

  // At most so many keys from `first` on.
  KeyRun part(int64_t first, int64_t most) const {
    return {.k = k + first * k_stride,
            .v = v + first * v_stride,
            .k_stride = k_stride,
            .v_stride = v_stride,
            .count = std::min(most, count - first)};
  }
};

// Cuts a workspace into parts, each at a cache line; without a workspace it only counts.
class Cutter {
 public:
  explicit Cutter(std::byte* workspace) : begin_(workspace) {}

  template <class Part>
  Part* cut(int64_t count) {
    Part* part = begin_ ? reinterpret_cast<Part*>(begin_ + size_) : nullptr;
    size_ += (static_cast<size_t>(count) * sizeof(Part) + 63) / 64 * 64;
    return part;
  }

  size_t size() const { return size_; }

 private:
  std::byte* begin_;
  size_t size_ = 0;
};

// The running maximum before any key: finite, so that a block of -inf scores has weights of 0.
constexpr float kNoMaximum = std::numeric_limits<float>::lowest();

// Rounded once: its error is that of a whole row. Halves are added to halves, in vectors.
template <int kCount>
inline float total_of(const float* parts) {
  double totals[kCount];
  for (int i = 0; i < kCount; ++i) totals[i] = parts[i];
#pragma GCC unroll 4
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) totals[i] += totals[half + i];
  }
  return static_cast<float>(totals[0]);
}

}  // namespace
