// Loops of group_order in C++ that vectorises by itself; included once for each instruction set,
// with draw_keys defined before.

// Wraps where the difference is negative, which its square does not show. The factor 1u keeps the
// product of two uint16_t from becoming one of int, which could overflow.
template <class Number>
LPD_INLINE Number squared_difference(Number a, Number b) {
  const Number difference = static_cast<Number>(a - b);
  return static_cast<Number>(1u * difference * difference);
}

template <class Number>
LPD_INLINE Number shorten_nearest_of(const Number* rows,
                                     const Number* cols,
                                     int32_t count,
                                     Number pick_row,
                                     Number pick_col,
                                     Number* __restrict nearest) {
  Number largest = 0;
  for (int32_t i = 0; i < count; ++i) {
    const Number distance = static_cast<Number>(squared_difference(rows[i], pick_row) +
                                                squared_difference(cols[i], pick_col));
    nearest[i] = distance < nearest[i] ? distance : nearest[i];
    largest = nearest[i] > largest ? nearest[i] : largest;
  }
  return largest;
}

const OrderKernelSet kOrderKernels = {.narrow = {draw_keys, shorten_nearest_of<uint16_t>},
                                      .wide = {draw_keys, shorten_nearest_of<uint64_t>}};
