// Functions of a vector, in the namespace and for the target of the including file: include it
// there once, behind vector_<variant>.h.

// e^x for x <= 0, relative error at most 1.1e-7; 0 below -87, NaN stays NaN.
inline Vector exp_nonpositive(Vector x) {
  const Vector least = broadcast(-87.0f), shift = broadcast(0x1.8p+23f);
  const Vector clamped = maximum(x, least);
  const Vector shifted = multiply_add(clamped, broadcast(1.44269504f), shift);
  const Vector n = subtract(shifted, shift);
  // n * ln(2) in two parts, the first of them exact.
  Vector f = multiply_add(n, broadcast(-0.693359375f), clamped);
  f = multiply_add(n, broadcast(2.12194440e-4f), f);
  // Taylor polynomial on |f| <= ln(2) / 2.
  Vector power = broadcast(1.0f / 5040);
  power = multiply_add(power, f, broadcast(1.0f / 720));
  power = multiply_add(power, f, broadcast(1.0f / 120));
  power = multiply_add(power, f, broadcast(1.0f / 24));
  power = multiply_add(power, f, broadcast(1.0f / 6));
  power = multiply_add(power, f, broadcast(0.5f));
  power = multiply_add(power, f, broadcast(1.0f));
  power = multiply_add(power, f, broadcast(1.0f));
  const Vector result = scale_by_power_of_two(power, shifted, shift);
  return select(unordered(x, x), x, select(less(x, least), zero(), result));
}
