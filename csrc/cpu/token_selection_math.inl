// The arithmetic of lpd/specified_math.h a vector at a time, in the namespace and for the target of
// the including file. The same operations in the same order, multiply_add being fused here: the
// same bits in every lane.

inline Vector guided(Vector cond, Vector uncond, Vector cfg_scale) {
  const Vector value = multiply_add(cfg_scale, subtract(cond, uncond), uncond);
  return select(less(broadcast(-kInfinity), cond), value, cond);
}

inline Vector scaled(Vector value, Vector inverse_temperature) {
  return multiply_add(value, inverse_temperature, zero());
}

inline Masses masses_of(Vector value, Vector row_maximum) {
  const Vector shift = broadcast(0x1.8p+23f);
  const Vector log2_e = broadcast(kLog2E);
  const Vector difference = maximum(subtract(value, row_maximum), broadcast(kNegligible));
  const Vector shifted = multiply_add(difference, log2_e, shift);
  const Vector f = multiply_add(difference, log2_e, subtract(shift, shifted));
  Vector power = broadcast(0x1.4b0c3cp-13f);
  power = multiply_add(power, f, broadcast(0x1.5fa782p-10f));
  power = multiply_add(power, f, broadcast(0x1.3b222ep-7f));
  power = multiply_add(power, f, broadcast(0x1.c6adc4p-5f));
  power = multiply_add(power, f, broadcast(0x1.ebfbe6p-3f));
  power = multiply_add(power, f, broadcast(0x1.62e432p-1f));
  power = multiply_add(power, f, broadcast(1.0f));
  // A shift that is kMassBits lower adds them to the exponent.
  return rounded(scale_by_power_of_two(power, shifted, broadcast(0x1.8p+23f - kMassBits)));
}
